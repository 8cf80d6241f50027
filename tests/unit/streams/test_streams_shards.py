"""Shards hold what the records say, deterministically, and are checked before use."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.config.shard import ShardConfig
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.corpus.records import read_records
from mm1_pipeline.streams.images import resize_image
from mm1_pipeline.streams.loader import read_sequences
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.shard_index import (
    ShardIndex,
    Split,
    dataset_directory,
    file_sha256,
    verify_shards,
)
from mm1_pipeline.streams.shards import split_of, write_shards
from mm1_pipeline.streams.tokenizer import Tokenizer

SOURCES = ("pairs", "few_pairs", "pages", "books")


def files_of(directory: Path) -> list[Path]:
    return sorted(p.relative_to(directory) for p in directory.rglob("*") if p.is_file())


def samples_of(shards_dir: Path, source: str) -> list[dict]:
    return [
        sample
        for split in Split
        for sample in read_sequences(dataset_directory(shards_dir, source, split))
    ]


@pytest.mark.parametrize("source", SOURCES)
def test_every_token_of_every_record_is_written_once(
    shards_dir: Path, records_dir: Path, tokenizer: Tokenizer, source: str
) -> None:
    documents = [
        serialize(record.segments, tokenizer, 4) for record in read_records(records_dir, source)
    ]
    samples = samples_of(shards_dir, source)
    expected = np.concatenate([document.input_ids for document in documents])
    found = np.concatenate([sample["input_ids"] for sample in samples])
    found = found[found != tokenizer.pad_id]
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))
    assert sum(sample["loss_mask"].sum() for sample in samples) == sum(
        document.loss_mask.sum() for document in documents
    )


@pytest.mark.parametrize("source", ["pairs", "pages"])
def test_images_stand_at_their_own_tokens(
    shards_dir: Path,
    records_dir: Path,
    tokenizer: Tokenizer,
    shard_config: ShardConfig,
    source: str,
) -> None:
    """Each run of image tokens is followed by the text that follows its picture."""
    by_picture = {}
    for record in read_records(records_dir, source):
        tokens = serialize(record.segments, tokenizer, 4)
        places = np.flatnonzero(tokens.input_ids == tokenizer.image_id)[::4]
        for place, index in zip(places, tokens.images, strict=True):
            square = resize_image(open_image(record.images[index].bytes), shard_config.image)
            by_picture[square.tobytes()] = int(tokens.input_ids[place + 4])
    seen = 0
    for sample in samples_of(shards_dir, source):
        places = np.flatnonzero(sample["input_ids"] == tokenizer.image_id)[::4]
        offsets = sample["image_offsets"]
        assert len(places) == len(offsets) - 1
        for number, place in enumerate(places):
            data = sample["images"][offsets[number] : offsets[number + 1]]
            after = int(sample["input_ids"][place + 4]) if place + 4 < 64 else None
            assert by_picture[open_image(data).tobytes()] == after
            seen += 1
    assert seen == len(by_picture)


def test_no_record_is_in_both_splits(shards_dir: Path, shard_config: ShardConfig) -> None:
    held_out = 0
    for source in SOURCES:
        keys = {}
        for split in Split:
            directory = dataset_directory(shards_dir, source, split)
            keys[split] = {k for s in read_sequences(directory) for k in json.loads(s["keys"])}
        assert not keys[Split.TRAIN] & keys[Split.VALIDATION]
        held_out += len(keys[Split.VALIDATION])
        assert keys[Split.VALIDATION] == {
            key
            for key in keys[Split.TRAIN] | keys[Split.VALIDATION]
            if split_of(source, key, shard_config.validation_fraction, 0) == Split.VALIDATION
        }
    assert 0.1 < held_out / 295 < 0.3


def test_the_share_of_held_out_records_is_the_parameter() -> None:
    keys = [str(number) for number in range(20_000)]
    held_out = {key for key in keys if split_of("s", key, 0.02, 0) == Split.VALIDATION}
    # Binomial: 400 expected, standard deviation 20; found 379.
    assert 300 < len(held_out) < 500
    other_seed = {key for key in keys if split_of("s", key, 0.02, 1) == Split.VALIDATION}
    assert len(held_out & other_seed) < 40
    assert not any(split_of("s", key, 0.0, 0) == Split.VALIDATION for key in keys)


def test_the_report_counts_what_is_there(
    shards: tuple[Path, dict], records_dir: Path, tokenizer: Tokenizer
) -> None:
    shards_dir, report = shards
    for source in SOURCES:
        for split in Split:
            counts = report["sources"][source][split.value]
            samples = list(read_sequences(dataset_directory(shards_dir, source, split)))
            ids = np.stack([sample["input_ids"] for sample in samples])
            assert counts["sequences"] == len(samples)
            assert counts["positions"] == ids.size
            assert counts["real_positions"] == (ids != tokenizer.pad_id).sum()
            assert counts["image_tokens"] == (ids == tokenizer.image_id).sum()
            assert counts["images"] * 4 == counts["image_tokens"]
            assert counts["text_tokens"] + counts["image_tokens"] == counts["real_positions"]
            assert counts["fill"] == pytest.approx(
                counts["real_positions"] / counts["positions"], abs=1e-6
            )
        both = [report["sources"][source][split.value]["records"] for split in Split]
        assert sum(both) == sum(1 for _ in read_records(records_dir, source))
    pairs = [report["sources"][name]["train"]["records"] for name in ("pairs", "few_pairs")]
    assert report["streams"]["caption"]["records"] == sum(pairs)
    assert list(report["streams"]) == ["caption", "interleaved", "text"]


def test_writing_again_gives_the_same_bytes(
    shards_dir: Path,
    records_dir: Path,
    tokenizer: Tokenizer,
    shard_config: ShardConfig,
    tmp_path: Path,
) -> None:
    """Also with two worker processes, which is why this is slow."""
    config = replace(shard_config, num_workers=2)
    sources = {"pages": RecordKind.INTERLEAVED}
    write_shards(config, records_dir, tokenizer, sources, tmp_path)
    expected, found = shards_dir / "pages", tmp_path / "pages"
    assert files_of(found) == files_of(expected)
    for file in files_of(found):
        assert filecmp.cmp(found / file, expected / file, shallow=False), file


def test_truncating_is_counted(
    records_dir: Path, tokenizer: Tokenizer, shard_config: ShardConfig, tmp_path: Path
) -> None:
    packing = replace(shard_config.packing, overflow="truncate")
    config = replace(shard_config, packing=packing, validation_fraction=0.0)
    sources = {"books": RecordKind.TEXT}
    report = write_shards(config, records_dir, tokenizer, sources, tmp_path)
    lengths = [
        len(serialize(record.segments, tokenizer, 4).input_ids)
        for record in read_records(records_dir, "books")
    ]
    counts = report["sources"]["books"]["train"]
    assert counts["truncated_positions"] == sum(max(0, length - 64) for length in lengths) > 0
    assert counts["real_positions"] == sum(min(64, length) for length in lengths)
    assert report["sources"]["books"]["validation"]["sequences"] == 0
    assert verify_shards(tmp_path) > 0


def test_the_index_tells_a_reader_everything(
    shards_dir: Path, tokenizer: Tokenizer, shard_config: ShardConfig
) -> None:
    index = ShardIndex.read(shards_dir)
    assert index.packing == shard_config.packing
    assert index.image == shard_config.image
    assert index.special_ids == {"pad": 0, "bos": 1, "eos": 2, "image": 3}
    assert (index.vocab_size, index.tokenizer_sha256) == (tokenizer.vocab_size, tokenizer.sha256)
    assert index.sources["pages"].kind == RecordKind.INTERLEAVED
    assert list(index.sources) == sorted(SOURCES)


def test_a_folder_without_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Found no shards.json"):
        ShardIndex.read(tmp_path)
    (tmp_path / "shards.json").write_text('{"schema_version": 0}')
    with pytest.raises(ValueError, match=r"found schema version 0, expected 1"):
        ShardIndex.read(tmp_path)


def test_whole_shards_pass(shards_dir: Path) -> None:
    assert verify_shards(shards_dir) == len(list(shards_dir.rglob("*.mds.zstd"))) > 10


def remove(file: Path) -> None:
    file.unlink()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def claim_one_sequence_less(file: Path) -> None:
    """An index whose digest is the one that is expected, as another tool would write it."""
    content = json.loads(file.read_text())
    content["shards"][0]["samples"] -= 1
    file.write_text(json.dumps(content))
    expect_digest_of(file)


def forget_hashes(file: Path) -> None:
    content = json.loads(file.read_text())
    first = content["shards"][0]
    (first["zip_data"] or first["raw_data"])["hashes"] = {}
    file.write_text(json.dumps(content))
    expect_digest_of(file)


def expect_digest_of(file: Path) -> None:
    source, split = file.parts[-3:-1]
    shards_file = file.parents[2] / "shards.json"
    index = json.loads(shards_file.read_text())
    index["sources"][source][split]["index_sha256"] = file_sha256(file)
    shards_file.write_text(json.dumps(index))


@pytest.fixture(scope="session")
def raw_shards_dir(
    shards_dir: Path,
    records_dir: Path,
    tokenizer: Tokenizer,
    shard_config: ShardConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Shards without compression: of these, Streaming notices no flipped bit by itself."""
    directory = tmp_path_factory.mktemp("raw_shards")
    kinds = {name: source.kind for name, source in ShardIndex.read(shards_dir).sources.items()}
    config = replace(shard_config, compression="")
    write_shards(config, records_dir, tokenizer, kinds, directory)
    return directory


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("pages/train/shard.00000.00001.mds", remove, "missing"),
        ("pages/train/shard.00000.00001.mds", cut_short, "bytes, expected"),
        ("pages/train/shard.00000.00000.mds", cut_in_half, "bytes, expected"),
        ("pages/train/shard.00000.00000.mds", empty, "found 0 bytes, expected"),
        ("books/validation/shard.00000.00000.mds", flip_a_bit, "xxh64 differs"),
        ("pairs/train/index.json", remove, "missing"),
        ("pairs/train/index.json", flip_a_bit, "SHA-256"),
        ("pairs/train/index.json", cut_in_half, "SHA-256"),
        ("pairs/train/index.json", claim_one_sequence_less, r"found \d+ sequences, expected \d+"),
        ("pairs/train/index.json", forget_hashes, "found no xxh64"),
    ],
)
@pytest.mark.parametrize("kind", ["zstd", "raw"])
def test_a_broken_file_is_named(
    shards_dir: Path,
    raw_shards_dir: Path,
    tmp_path: Path,
    kind: str,
    name: str,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    """Whatever is wrong with whichever file; training starts with this check."""
    shards = tmp_path / "shards"
    shutil.copytree(shards_dir if kind == "zstd" else raw_shards_dir, shards)
    name += ".zstd" if kind == "zstd" and name.endswith(".mds") else ""
    damage(shards / name)
    named = "pairs/train/shard.00000.00000.mds" if damage is forget_hashes else name
    with pytest.raises(ValueError, match=rf"1 broken files.*\n.*{re.escape(named)}.*: .*{message}"):
        verify_shards(shards)


def test_an_index_cannot_lead_out_of_its_folder(shards_copy: Path) -> None:
    file = shards_copy / "pages/train/index.json"
    content = json.loads(file.read_text())
    content["shards"][0]["zip_data"]["basename"] = "../../../secret"
    file.write_text(json.dumps(content))
    index = json.loads((shards_copy / "shards.json").read_text())
    index["sources"]["pages"]["train"]["index_sha256"] = file_sha256(file)
    (shards_copy / "shards.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="leads out of the folder"):
        verify_shards(shards_copy)
