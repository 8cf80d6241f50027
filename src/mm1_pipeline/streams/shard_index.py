"""What a folder of shards says of itself, and whether its files are still what was written.

    shards.json                     packing, image transform, special tokens, sources
    <source>/train/index.json       MDS index: files, sizes, hashes
    <source>/train/shard.*.mds.zstd
    <source>/validation/...

Reading this needs no torch, so a pipeline can plan before it trains.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import xxhash

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.config.shard import ImageTransform, PackingConfig, SubImageConfig
from mm1_pipeline.ground.files import link_or_copy, write_json

SHARDS_FILE = "shards.json"
INDEX_FILE = "index.json"
SCHEMA_VERSION = 1

HASHES = ("sha1", "xxh64")
"""Hashes that every shard file has; the second is fast enough to check before a training."""


class Split(StrEnum):
    """What a sequence is for."""

    TRAIN = "train"
    VALIDATION = "validation"


@dataclass(frozen=True, slots=True)
class SplitShards:
    """One MDS dataset."""

    sequences: int
    index_sha256: str
    """Of index.json, which holds the hash of every shard: the identity of the content."""


@dataclass(frozen=True, slots=True)
class SourceShards:
    """The sequences of one source."""

    kind: RecordKind
    train: SplitShards
    validation: SplitShards


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Everything a reader of shards needs to know; `shards.json`."""

    packing: PackingConfig
    image: ImageTransform
    special_ids: dict[str, int]
    """Ids of `pad`, `bos`, `eos` and `image`."""
    vocab_size: int
    tokenizer_sha256: str
    sources: dict[str, SourceShards]
    sub_images: SubImageConfig = field(default_factory=SubImageConfig)

    @classmethod
    def read(cls, shards_dir: Path) -> ShardIndex:
        """Reads `shards.json`.

        Raises:
            ValueError: There is none, or it was written by another version.
        """
        file = Path(shards_dir) / SHARDS_FILE
        if not file.is_file():
            raise ValueError(
                f"Found no {SHARDS_FILE} in {shards_dir}; expected a folder that the stage "
                "`shard` has finished."
            )
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{file}: found schema version {content.get('schema_version')}, expected "
                f"{SCHEMA_VERSION}; run the stage `shard` again."
            )
        return cls(
            packing=PackingConfig(**content["packing"]),
            image=ImageTransform(**content["image"]),
            special_ids=content["special_ids"],
            vocab_size=content["vocab_size"],
            tokenizer_sha256=content["tokenizer_sha256"],
            sources={name: _source(source) for name, source in content["sources"].items()},
            sub_images=SubImageConfig(**content.get("sub_images", {})),
        )

    def write(self, shards_dir: Path) -> None:
        """Writes `shards.json`; its presence means that everything else is complete."""
        (shards_dir / SHARDS_FILE).write_text(self.to_text(), encoding="utf-8")

    def to_text(self) -> str:
        """The content of `shards.json`."""
        content = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"


def dataset_directory(shards_dir: Path, source: str, split: Split) -> Path:
    """Folder of the MDS dataset of one source and split."""
    return Path(shards_dir) / source / split.value


def link_sources(shards_dir: Path, names: Collection[str], output_dir: Path) -> None:
    """Makes shards of some sources of others; their files are linked, and take no second room.

    Who reads these depends on no other source.

    Args:
        shards_dir: What `streams.shards.write_shards` made.
        names: Of its sources; with none, only the file that says so is written.
        output_dir: Gets the same layout.
    """
    index = ShardIndex.read(shards_dir)
    for name in names:
        shutil.copytree(shards_dir / name, output_dir / name, copy_function=link_or_copy)
    if names:
        chosen = {name: index.sources[name] for name in names}
        # What became of long documents stands in the files alone; no reader asks for the rule.
        usual = PackingConfig()
        packing = dataclasses.replace(index.packing, overflow=usual.overflow, window=usual.window)
        dataclasses.replace(index, sources=chosen, packing=packing).write(output_dir)
    else:
        # Nor on how the others are packed.
        write_json(output_dir / SHARDS_FILE, {"schema_version": SCHEMA_VERSION, "sources": {}})


def file_sha256(file: Path) -> str:
    """SHA-256 of a small file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def verify_shards(shards_dir: Path) -> int:
    """Checks that every shard is there, whole and unchanged.

    A training calls this first: what is broken is then known before the first step, with all
    else that is, and not when a sequence of it is drawn.

    Args:
        shards_dir: The artifact of the stage `shard`.

    Returns:
        Number of shard files.

    Raises:
        ValueError: Names every bad file and what is wrong with it.
    """
    shards_dir = Path(shards_dir)
    num_files, problems = 0, []
    for name, source in ShardIndex.read(shards_dir).sources.items():
        for split, expected in ((Split.TRAIN, source.train), (Split.VALIDATION, source.validation)):
            directory = dataset_directory(shards_dir, name, split)
            if problem := _index_problem(directory, expected):
                problems.append(problem)
                continue
            if problem := _count_problem(directory, expected):
                problems.append(problem)
            for file, stored in _shard_files(directory):
                num_files += 1
                if problem := _file_problem(file, stored):
                    problems.append(problem)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(
            f"Found {len(problems)} broken files in the shards:\n{listed}\n"
            f"Delete {shards_dir} and run the stage `shard` again, or restore the files."
        )
    return num_files


def _source(content: dict[str, Any]) -> SourceShards:
    return SourceShards(
        RecordKind(content["kind"]),
        SplitShards(**content["train"]),
        SplitShards(**content["validation"]),
    )


def _index_problem(directory: Path, expected: SplitShards) -> str | None:
    file = directory / INDEX_FILE
    if not file.is_file():
        return f"{file}: missing"
    if (found := file_sha256(file)) != expected.index_sha256:
        return f"{file}: found SHA-256 {found}, expected {expected.index_sha256}"
    return None


def _count_problem(directory: Path, expected: SplitShards) -> str | None:
    """A reader that believes a wrong index ends early, or looks for what is not there."""
    file = directory / INDEX_FILE
    found = sum(shard["samples"] for shard in json.loads(file.read_text("utf-8"))["shards"])
    if found != expected.sequences:
        return f"{file}: found {found} sequences, expected {expected.sequences} ({SHARDS_FILE})"
    return None


def _shard_files(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each shard file with its stored size and hashes."""
    content = json.loads((directory / INDEX_FILE).read_text(encoding="utf-8"))
    for shard in content["shards"]:
        stored = shard["zip_data"] or shard["raw_data"]
        if Path(stored["basename"]).name != stored["basename"]:
            raise ValueError(
                f"{directory / INDEX_FILE}: found the file name {stored['basename']!r}, which "
                "leads out of the folder; these shards were not written by the stage `shard`."
            )
        yield directory / stored["basename"], stored


def _file_problem(file: Path, stored: dict[str, Any]) -> str | None:
    if not file.is_file():
        return f"{file}: missing"
    if (found := file.stat().st_size) != stored["bytes"]:
        return f"{file}: found {found} bytes, expected {stored['bytes']}"
    if "xxh64" not in stored["hashes"]:
        return f"{file}: found no xxh64 in {INDEX_FILE}, expected one to check the file by"
    digest = xxhash.xxh64()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != stored["hashes"]["xxh64"]:
        return f"{file}: found other content than was written (xxh64 differs)"
    return None
