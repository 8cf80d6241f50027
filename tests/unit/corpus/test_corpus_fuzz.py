"""1,000 mutated inputs over all readers: no crash, no hang, none lost."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from corpus_builders import (
    PLAIN,
    make_config,
    page,
    picture,
    sample,
    warc_record,
    write_bytes,
    write_json,
    write_parquet,
    write_tar,
    write_warc,
)

from mm1_pipeline.config.ingest import SourceFormat
from mm1_pipeline.corpus.filters import ImageChecker, check_record
from mm1_pipeline.corpus.readers.base import RejectedRecord, Source
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source
from mm1_pipeline.corpus.steps import count_passed_over
from source_samples import FORMATS as SAMPLES
from source_samples import SETS, Writer, make_set

NUM_RECORDS = 6
INPUTS = 1_000
SECONDS_AN_INPUT = 5.0

DOCUMENTS = pa.schema([("texts", pa.list_(pa.string())), ("images", pa.list_(pa.binary()))])


def make_good(folder: Path, source_format: str) -> tuple[str, int]:
    """Writes a good source of the format; gives its main file and the units that it holds."""
    numbers = range(NUM_RECORDS)
    match source_format:
        case "img2dataset":
            members = [m for n in numbers for m in sample(f"{n}", picture(n), f"a {n}", url="u")]
            write_tar(folder / "0.tar", members)
            return "0.tar", NUM_RECORDS
        case "image_parquet":
            rows = [{"image": picture(n), "caption": f"caption {n}"} for n in numbers]
            write_parquet(folder / "0.parquet", rows)
            return "0.parquet", NUM_RECORDS
        case "interleaved_parquet":
            rows = [{"texts": [f"text {n}", None], "images": [None, picture(n)]} for n in numbers]
            write_parquet(folder / "0.parquet", rows, DOCUMENTS)
            return "0.parquet", NUM_RECORDS
        case "synth_dog":
            truth = json.dumps({"gt_parse": {"text_sequence": "words"}})
            rows = [{"image": {"bytes": picture(n)}, "ground_truth": truth} for n in numbers]
            write_parquet(folder / "0.parquet", rows)
            return "0.parquet", NUM_RECORDS
        case "jsonl":
            lines = [json.dumps({"caption": f"text {n}"}) for n in numbers]
            write_bytes(folder / "t.jsonl", "\n".join(lines).encode())
            return "t.jsonl", NUM_RECORDS
        case "warc_html":
            body = page('<p>text</p><img src="http://x/1.jpg">')
            records = [warc_record(f"http://x/{n}", body) for n in numbers]
            image = warc_record("http://x/1.jpg", picture(), "image/jpeg")
            write_warc(folder / "0.warc.gz", [*records, image])
            return "0.warc.gz", NUM_RECORDS
        case "llava":
            turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]
            entries = [{"id": n, "image": "1.jpg", "conversations": turns} for n in numbers]
            write_json(folder / "chat.json", entries)
            write_bytes(folder / "1.jpg", picture())
            return "chat.json", NUM_RECORDS
        case _ if source_format in SETS:
            make_set(folder, source_format)
            return SETS[source_format][0], 1
        case _:
            writer, name = Writer(folder), f"x{SAMPLES[source_format][1][0]}"
            getattr(writer, source_format)(name, [f"{n}" for n in numbers])
            return name, writer.rows


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four small damages, as disks, networks and enemies do them."""
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not mutated:
            break
        place = rng.randrange(len(mutated))
        match rng.randrange(7):
            case 0:
                mutated[place] ^= 1 << rng.randrange(8)
            case 1:
                del mutated[place:]
            case 2:
                del mutated[place : place + rng.randint(1, 64)]
            case 3:
                mutated[place:place] = rng.randbytes(rng.randint(1, 64))
            case 4:
                mutated[place : place + 8] = rng.choice(INTERESTING)
            case 5:
                end = place + rng.randint(1, 512)
                mutated[place:place] = mutated[place:end]
            case _:
                other = rng.randrange(len(mutated))
                mutated[place : place + 32] = mutated[other : other + 32]
    return bytes(mutated)


INTERESTING = (
    b"\0" * 8,
    b"\xff" * 8,
    b"\x7f\xff\xff\xff" * 2,
    b'"\\ud800"',
    b"[" * 64,
    b'{"a":' * 12,
    b"../../..",
    b"1e999999",
    b"<div>" * 12,
    b"NaN,null",
)


def read_all(folder: Path, source_format: str) -> tuple[int, int]:
    """Reads a source and checks every record; gives units read and units rejected."""
    options = {**PLAIN, "kind": SourceFormat(source_format).layout.kind.value}
    options |= {"format": source_format, "path": str(folder)}
    config = make_config({"s": options}, limits={"max_line_bytes": 100_000})
    settings = config.sources["s"]
    source = Source("s", settings, open_files(settings), config.limits)
    checker = ImageChecker(settings.image_rules, wants_hashes=True)
    read = rejected = 0
    for item in count_passed_over(read_source(source), Counter()):
        read += 1
        if isinstance(item, RejectedRecord):
            rejected += 1
            continue
        verdict = check_record(item, "s", settings, checker, config.limits.max_record_bytes)
        assert (verdict.record is None) == (verdict.why is not None)
        rejected += verdict.record is None
    return read, rejected


FORMATS = [item.value for item in SourceFormat]


@pytest.mark.parametrize("source_format", FORMATS)
def test_mutated_inputs_cost_themselves_only(tmp_path, source_format):
    name, units = make_good(tmp_path, source_format)
    good = (tmp_path / name).read_bytes()
    assert read_all(tmp_path, source_format) == (units, 0)
    rng = random.Random(source_format)
    for number in range(-(-INPUTS // len(FORMATS))):
        data = mutate(good, rng)
        if name.endswith(".gz") and number % 2:  # damage under the compression as well
            data = b"".join(gzip.compress(mutate(part, rng)) for part in unpacked(good))
        (tmp_path / name).write_bytes(data)
        start = time.monotonic()
        result = read_unless_refused(tmp_path, source_format)
        assert time.monotonic() - start < SECONDS_AN_INPUT, number
        if result is None or (name.endswith(".gz") and number % 2):
            continue  # under the compression, a changed type turns a page into none
        read, rejected = result
        if source_format in ("jsonl", "image_csv"):  # no end mark: a cut between lines is no damage
            units = sum(1 for line in data.split(b"\n") if line.strip())
            units -= source_format == "image_csv"  # whose first line names the columns
        assert read >= units or rejected, (number, read, units)


def read_unless_refused(folder: Path, source_format: str) -> tuple[int, int] | None:
    """As `read_all`; None where columns have other names: no damage but wrong parameters."""
    try:
        return read_all(folder, source_format)
    except ValueError as error:
        if "ingest.sources.s." not in str(error):
            raise
        return None


def unpacked(data: bytes) -> list[bytes]:
    """The records of an archive, each of which is packed on its own."""
    return [gzip.decompress(b"\x1f\x8b" + part) for part in data.split(b"\x1f\x8b")[1:]]
