"""Makes the emoji corpora of the embedded sample from packages of the npm registry.

    pip install --requirement data/sample/make_emoji/requirements.txt
    python data/sample/make_emoji [--packages FOLDER]
    python data/sample/make_emoji --check

Same packages, same libraries, same bytes: `--check` makes everything again in a temporary folder
and compares it with what is stored. The archives are fetched by the npm client (`npm pack`), each
in one version, and refused unless their SHA-512 is the one in `packages.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from concepts import HELD_OUT_STYLE, Concept, read_concepts
from evaluation_sets import evaluation
from packages import STYLES, Packages
from small_talk import small_talk
from training_sets import captions, conversations, documents

SAMPLE = Path(__file__).parents[1]
CAPTIONS, DOCUMENTS, CONVERSATIONS, EVALUATION = FOLDERS = (
    "captions_emoji",
    "interleaved_emoji",
    "sft_emoji",
    "eval_emoji",
)
LICENCES = SAMPLE / "LICENSES"
DIGESTS = Path(__file__).with_name("digests.json")
"""What each folder hashed to when it was made."""


def main() -> None:
    """Writes the corpora, or compares them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, help="keeps the archives between runs")
    parser.add_argument("--check", action="store_true", help="writes nothing, compares")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "sample"
        concepts, left_out = read_concepts(Packages(options.packages or Path(temporary) / "npm"))
        make(concepts, made)
        for why, number in sorted(left_out.items()):
            print(f"left out {number:4d}: {why}")
        if options.check:
            check(made)
            return
        for folder in FOLDERS:
            shutil.rmtree(SAMPLE / folder, ignore_errors=True)
            shutil.copytree(made / folder, SAMPLE / folder)
    DIGESTS.write_text(json.dumps(folder_digests(SAMPLE), indent=2) + "\n", encoding="utf-8")
    print(f"{len(concepts)} concepts, {sum(not c.is_seen for c in concepts)} of them never shown")


def make(concepts: list[Concept], sample: Path) -> None:
    """Writes all corpora below a folder."""
    talk: list[dict[str, Any]] = []
    for style in STYLES:
        if style == HELD_OUT_STYLE:
            continue
        write_table(captions(concepts, style), sample / CAPTIONS / style, style)
        write_table(documents(concepts, style), sample / DOCUMENTS / style, style)
        entries, images = conversations(concepts, style)
        talk += entries
        write_files(images, sample / CONVERSATIONS / "images")
        copy_licence(style, sample / CONVERSATIONS / "images" / style)
    talk += small_talk()
    write_json(talk, sample / CONVERSATIONS / "conversations.json")
    files, images = evaluation(concepts)
    for name, content in files.items():
        write_json(content, sample / EVALUATION / name)
    write_files(images, sample / EVALUATION / "images")
    copy_licence(HELD_OUT_STYLE, sample / EVALUATION / "images")


def write_table(table: pa.Table, folder: Path, style: str) -> None:
    """One Parquet file, in which an image that occurs again is stored once."""
    folder.mkdir(parents=True)
    pq.write_table(
        table,
        folder / "00000.parquet",
        compression="zstd",
        compression_level=15,
        dictionary_pagesize_limit=1 << 26,
        data_page_size=1 << 26,
        row_group_size=table.num_rows,
    )
    copy_licence(style, folder)


def write_files(files: dict[str, bytes], folder: Path) -> None:
    """Files by their paths below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_json(content: Any, path: Path) -> None:
    """One entry a line where it is a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in content)
        path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_licence(style: str, folder: Path) -> None:
    """Beside the pictures, the licence that they are under."""
    shutil.copyfile(LICENCES / f"emoji-{style}.LICENSE", folder / "LICENSE")


def check(made: Path) -> None:
    """Compares what was made with what is stored.

    Raises:
        SystemExit: names the files that differ.
    """
    found, expected = digests(SAMPLE), digests(made)
    differing = sorted(name for name in found | expected if found.get(name) != expected.get(name))
    if differing:
        raise SystemExit(
            f"{len(differing)} of {len(expected)} files differ from what the packages give, as "
            f"{differing[0]}. Are the libraries those of requirements.txt?"
        )
    print(f"{len(expected)} files are what the packages give")


def digests(sample: Path) -> dict[str, str]:
    """SHA-256 of every file that is made, by its path below the sample."""
    return {
        path.relative_to(sample).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in FOLDERS
        for path in sorted((sample / folder).rglob("*"))
        if path.is_file()
    }


def folder_digests(sample: Path) -> dict[str, str]:
    """One SHA-256 a folder, of the paths and digests of its files."""
    lines: dict[str, list[str]] = {folder: [] for folder in FOLDERS}
    for name, digest in digests(sample).items():
        lines[name.split("/")[0]].append(f"{digest}  {name}\n")
    return {
        folder: hashlib.sha256("".join(rows).encode()).hexdigest() for folder, rows in lines.items()
    }


if __name__ == "__main__":
    main()
