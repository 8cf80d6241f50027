"""Bad input of every kind, planted in copies of the sample's sources: the run completes."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[2]


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def plant(sample: Path) -> dict[str, set[str]]:
    """Puts bad input into the sources; gives the reasons expected in each one's quarantine."""
    good = next((ROOT / "data/sample/eval_coco_captions/images").glob("*.jpg")).read_bytes()
    with tarfile.open(sample / "captions_openclipart_wds" / "99999.tar", "w") as archive:
        add_member(archive, "../escape.jpg", good)
        for key, image in (("000", good[: len(good) // 2]), ("001", bomb())):
            add_member(archive, f"{key}.jpg", image)
            add_member(archive, f"{key}.txt", b"a caption")
    lines = [b'{"text": "cut', b'{"text": "\xff\xfe"}', b'{"text": "a good line"}']
    (sample / "text_jsonl" / "bad.jsonl").write_bytes(b"\n".join(lines))
    (sample / "text_jsonl" / "empty.jsonl").write_bytes(b"")
    archive = next((sample / "interleaved_warc").glob("*.warc.gz"))
    (sample / "interleaved_warc" / "cut.warc.gz").write_bytes(archive.read_bytes()[:50_000])
    conversations = sample / "sft_llava" / "llava_instruct.json"
    entries = json.loads(conversations.read_text())[:20]
    entries[0]["image"] = "../../secret.png"
    entries[1]["image"] = "images/missing.png"
    conversations.write_text(json.dumps(entries))
    broken = sample / "eval_coco_captions" / "images" / "000000.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    (sample / "captions_tuxpaint_parquet" / "broken.parquet").write_bytes(b"PAR1 no table")
    return {
        "captions_openclipart": {"unsafe_path", "image_truncated", "image_too_many_pixels"},
        "text": {"invalid_json", "invalid_utf8", "empty_file"},
        "web_documents": {"truncated_file"},
        "instructions": {"unsafe_path", "image_missing"},
        "eval_captions": {"image_truncated"},
        "captions_tuxpaint": {"unreadable_file"},
    }


def test_every_kind_of_bad_input_is_in_quarantine_with_its_reason(smoke_project, tmp_path):
    sample = tmp_path / "sample"
    shutil.copytree(ROOT / "data" / "sample", sample)
    expected = plant(sample)
    path = smoke_project.folder / "conf" / "smoke" / "globals.yml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "sample_root": str(sample)}))
    everything = {name: {"max_records": None} for name in expected}
    smoke_project.set_parameters(ingest={"sources": everything})

    status, output = smoke_project.run("run", "--pipelines=ingest,shard")

    assert status == 0, output
    report = json.loads((smoke_project.reports / "ingest_report.json").read_text())
    quarantines = {
        path.stem: path
        for records in (smoke_project.data / "03_primary").glob("*records")
        if (records / "CURRENT").exists()
        for path in (records / (records / "CURRENT").read_text().strip()).glob("quarantine/*")
    }
    for name, reasons in expected.items():
        source = report["sources"][name]
        assert source["read"] == source["kept"] + sum(source["rejected"].values()), name
        rows = pq.read_table(quarantines[name]).to_pylist()
        assert reasons <= {row["reason"] for row in rows}, (name, rows[:5])
        assert all(row["key"] and row["source"] == name for row in rows)
    assert not (tmp_path / "escape.jpg").exists()
