"""Tar archives as people, macOS and enemies make them: every member is in a count."""

from __future__ import annotations

import io
import random
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from corpus_builders import PLAIN, make_config, picture, run, sample, write_bytes, write_tar

from mm1_pipeline.corpus.readers.base import PassedOver, RawRecord, RejectedRecord, Source
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source

PICTURES = [picture(n) for n in range(8)]
BLOCK = 512


def read(folder: Path, **limits) -> tuple[list[str], list[tuple[str, str]], int]:
    """Keys of the records of a folder of tars, keys and reasons of the rejected, and the rest."""
    options = {**PLAIN, "kind": "caption", "format": "img2dataset", "path": str(folder)}
    config = make_config({"s": options}, limits=limits)
    settings = config.sources["s"]
    kept, rejected, passed = [], [], 0
    for item in read_source(Source("s", settings, open_files(settings), config.limits)):
        match item:
            case RawRecord():
                kept.append(item.key)
            case RejectedRecord():
                rejected.append((item.key, item.why.reason.value))
            case PassedOver():
                passed += item.count
    return kept, rejected, passed


def header(name: bytes, size: int | bytes, kind: bytes = b"0", content: bytes = b"") -> bytes:
    """A member whose header says what no library would write."""
    digits = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108], block[124:136] = b"0000644\0", digits
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    return sealed(block) + content + bytes(-len(content) % BLOCK)


def sealed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def members_of(*keys: str) -> bytes:
    """The members of samples, without an end mark."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, key in enumerate(keys):
            for name, data in sample(key, PICTURES[number], f"caption of {key}"):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return buffer.getvalue()[: archive.offset]


END = bytes(2 * BLOCK)


@pytest.mark.parametrize(
    ("members", "kept", "passed"),
    [
        (sample("photo.v1.7", PICTURES[0], "c"), ["photo.v1.7"], 0),
        ([*sample("22.00", PICTURES[0], "c"), *sample("22.01", PICTURES[1], "c")],
         ["22.00", "22.01"], 0),
        ([*sample("7", PICTURES[0], "c"), ("7.mask.png", b"x")], ["7"], 1),
        ([*sample("a.7", PICTURES[0], "c"), ("a.7.mask.png", b"x"), ("a.7.box.json", b"{}")],
         ["a.7"], 2),
        ([("7.JPG", PICTURES[0]), ("7.TXT", b"c")], ["7"], 0),
        ([("./d/7.jpg", PICTURES[0]), ("./d/7.txt", b"c")], ["d/7"], 0),
        ([("7.jpg", PICTURES[0]), ("7.png", b"x"), ("7.txt", b"c"), ("7.cls", b"3")], ["7"], 2),
        (
            [("._7.jpg", b"fork"), ("7.jpg", PICTURES[0]), ("__MACOSX/._7.txt", b"fork"),
             ("7.txt", b"c"), (".DS_Store", b"x"), ("README", b"x")],
            ["7"],
            4,
        ),
        # All pictures before all texts, as sorting by type gives.
        ([("a.jpg", PICTURES[0]), ("b.jpg", PICTURES[1]), ("a.txt", b"c"), ("b.txt", b"c"),
          ("b.json", b'{"url": "u"}'), ("a.json", b'{"url": "v"}')], ["a", "b"], 0),
        *(([(f"7.{suffix}", PICTURES[0]), ("7.txt", b"c")], ["7"], 0)
          for suffix in ("tif", "jpe", "jfif", "heic", "mpo", "tiff", "jxl")),
    ],
)  # fmt: skip
def test_members_find_their_sample(tmp_path, members, kept, passed):
    write_tar(tmp_path / "0.tar", members)
    assert read(tmp_path) == ([f"0/{key}" for key in kept], [], passed)


def test_folders_of_an_archive_are_counted(tmp_path):
    folder = tarfile.TarInfo("d/")
    folder.type = tarfile.DIRTYPE
    write_tar(tmp_path / "raw" / "0.tar", [folder, *sample("d/7", PICTURES[0], "a caption")])
    result = run(tmp_path / "out", "caption", "img2dataset", tmp_path / "raw")
    assert result.report["passed_over"] == {"directory": 1}
    assert [record.key for record in result.records] == ["0/d/7"]


def test_the_metadata_of_a_sample_may_lie_anywhere(tmp_path):
    members = [("a.jpg", PICTURES[0]), ("b.jpg", PICTURES[1]), ("a.txt", b"one"), ("b.txt", b"two")]
    members += [("b.json", b'{"url": "http://b"}'), ("a.json", b'{"url": "http://a"}')]
    write_tar(tmp_path / "raw" / "0.tar", members)
    result = run(tmp_path / "out", "caption", "img2dataset", tmp_path / "raw")
    found = [(r.key, r.segments[1].text, r.images[0].url) for r in result.records]
    assert found == [("0/a", "one", "http://a"), ("0/b", "two", "http://b")]


def test_archives_behind_each_other_are_read_on(tmp_path):
    write_bytes(tmp_path / "0.tar", members_of("a") + END * 9 + members_of("b") + END * 10)
    assert read(tmp_path) == (["0/a", "0/b"], [], 0)


@pytest.mark.parametrize("garbage", [b"garbage", b"x" * 5_000, b"\0" * 700 + b"x"])
def test_garbage_behind_an_archive_costs_none_of_its_samples(tmp_path, garbage):
    write_bytes(tmp_path / "0.tar", members_of("a", "b") + END + garbage)
    assert read(tmp_path) == (["0/a", "0/b"], [("0.tar", "unreadable_file")], 0)


BAD_SIZES = {
    "beyond 2^63": b"\x80" + (1 << 70).to_bytes(11, "big"),
    "negative": b"\xff" * 12,
    "beyond the end": b"77777777777\0",
    "no number": b"-1234567890\0",
}


@pytest.mark.parametrize("size", BAD_SIZES)
def test_a_size_that_is_a_lie_costs_its_sample(tmp_path, size):
    bad = (
        header(b"m.jpg", BAD_SIZES[size])
        + b"x" * 700
        + bytes(324)
        + header(b"m.txt", 1, b"0", b"c")
    )
    write_bytes(tmp_path / "0.tar", members_of("a", "b") + bad + members_of("y", "z") + END)
    kept, rejected, _ = read(tmp_path)
    assert kept == ["0/a", "0/b", "0/y", "0/z"]
    assert rejected == [("0/m", "unreadable_file")]


EXTENSIONS = {
    "no length": (b"x", b" path=m.jpg\n"),
    "length too large": (b"x", b"9999999 path=m.jpg\n"),
    "length 0": (b"x", b"0 path=m.jpg\n"),
    "many digits": (b"x", b"9" * 5_000 + b" path=m.jpg\n"),
    "size of words": (b"x", b"12 size=big\n"),
    "size of many digits": (b"x", b"4011 size=" + b"9" * 4_000 + b"\n"),
    "long name": (b"L", b"n" * 2_000_000),
}


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_header_about_a_member_costs_that_member(tmp_path, extension):
    kind, data = EXTENSIONS[extension]
    bad = header(b"././@LongLink", len(data), kind, data) + header(b"m.jpg", 1, b"0", b"x")
    write_bytes(tmp_path / "0.tar", members_of("a", "b") + bad + members_of("y", "z") + END)
    kept, rejected, _ = read(tmp_path)
    assert kept == ["0/a", "0/b", "0/y", "0/z"]
    assert [key for key, _ in rejected] == ["0/m"]


def test_long_and_odd_names_are_what_libraries_read(tmp_path):
    names = ["d/" * 60 + "n" * 150, "k\u00e4se", "n" * 255, "a b.c"]
    for number, style in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=style) as archive:
            for name in names:
                for suffix, data in ((".jpg", PICTURES[0]), (".txt", b"c")):
                    info = tarfile.TarInfo(name + suffix)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    kept, rejected, _ = read(tmp_path)
    assert kept == [f"{number}/{name}" for number in range(2) for name in names]
    assert not rejected


def test_names_that_are_no_text_are_kept_apart(tmp_path):
    with tarfile.open(
        tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as archive:
        for name in ("caf\xe9.jpg", "caf\xe9.txt", "caf\xe8.jpg", "caf\xe8.txt"):
            data = PICTURES[0] if name.endswith("jpg") else b"c"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert read(tmp_path) == (["0/caf\\xe9", "0/caf\\xe8"], [], 0)


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_files_with_holes_are_refused_by_name(tmp_path, kind):
    if kind == "gnu":
        block = bytearray(header(b"m.jpg", 1, b"S"))
        block[482:483] = b"\1"  # a map goes on, for two blocks
        maps = bytearray(2 * BLOCK)
        maps[504:505] = b"\1"
        bad = sealed(block) + bytes(maps) + b"x" + bytes(511)
    else:
        data = b"22 GNU.sparse.major=1\n"
        bad = header(b"p", len(data), b"x", data) + header(b"m.jpg", 1, b"0", b"x")
    write_bytes(tmp_path / "0.tar", members_of("a") + bad + members_of("y") + END)
    assert read(tmp_path) == (["0/a", "0/y"], [("0/m", "unsafe_member")], 0)


def test_chains_of_headers_need_no_memory(tmp_path):
    chain = header(b"././@LongLink", 5, b"L", b"m.jpg") * 5_000
    write_bytes(tmp_path / "0.tar", members_of("a") + chain + members_of("y") + END)
    tracemalloc.start()
    try:
        kept, _, _ = read(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept[0] == "0/a"
    assert peak < 8_000_000  # measured 2.4 MB
    assert read(tmp_path, max_members=100)[1] == [("0.tar", "too_many_members")]


def test_a_lost_header_costs_what_it_described(tmp_path):
    data = bytearray(members_of("a", "b", "c", "d", "e") + END)
    place = data.index(b"c.jpg")
    data[place + 20] ^= 255
    write_bytes(tmp_path / "0.tar", bytes(data))
    kept, rejected, _ = read(tmp_path)
    assert kept == ["0/a", "0/b", "0/d", "0/e"]
    assert rejected == [("0.tar", "unreadable_file")]
    del data[place + 10 : place + 47]  # everything behind it is out of step
    write_bytes(tmp_path / "0.tar", bytes(data))
    assert read(tmp_path)[0] == ["0/a", "0/b", "0/d", "0/e"]


def test_a_packed_tar_is_named(tmp_path):
    import gzip

    write_bytes(tmp_path / "raw" / "0.tar", gzip.compress(members_of("a") + END))
    result = run(tmp_path / "out", "caption", "img2dataset", tmp_path / "raw")
    assert result.rejected == {"unreadable_file": 1}
    assert "gunzip" in result.quarantine[0]["detail"]


NUM_SAMPLES = 8
FIELDS = ((0, 100), (100, 24), (124, 12), (136, 12), (148, 8), (156, 1), (157, 100), (257, 8),
          (345, 155))  # fmt: skip


def mutate(blocks: list[bytes], rng: random.Random) -> tuple[bytes, int]:
    """An archive with one member's header changed or others put before it, and its sample."""
    place = rng.randrange(len(blocks))
    block = bytearray(blocks[place][:BLOCK])
    before = b""
    match rng.randrange(6):
        case 0 | 1:
            start, length = rng.choice(FIELDS)
            block[start : start + length] = rng.randbytes(length)
        case 2:
            block[124:136] = rng.choice(list(BAD_SIZES.values()))
        case 3:
            block[156:157] = bytes([rng.randrange(256)])
        case 4:
            kind, data = rng.choice([v for k, v in EXTENSIONS.items() if k != "long name"])
            before = header(b"x", len(data), kind, data) * rng.choice((1, 3))
        case _:
            size = rng.choice([*BAD_SIZES.values(), b"00000000000\0"])
            before = header(b"x", size, rng.choice((b"L", b"K", b"x", b"g", b"S", b"M", b"1")))
    is_sealed = rng.random() < 0.7
    changed = (sealed(block) if is_sealed else bytes(block)) + blocks[place][BLOCK:]
    data = b"".join((*blocks[:place], before, changed, *blocks[place + 1 :]))
    return data + END, place // 2


def test_mutants_cost_the_sample_that_they_change(tmp_path):
    """700 archives: no error, and no sample is gone but the one and its neighbour."""
    keys = [f"k{n}" for n in range(NUM_SAMPLES)]
    whole = members_of(*keys)
    blocks, start = [], 0
    for n, key in enumerate(keys):
        for size in (len(PICTURES[n]), len(f"caption of {key}")):
            end = start + BLOCK + -(-size // BLOCK) * BLOCK
            blocks.append(whole[start:end])
            start = end
    assert b"".join(blocks) == whole
    rng = random.Random(14)
    for number in range(700):
        data, changed = mutate(blocks, rng)
        write_bytes(tmp_path / "0.tar", data)
        kept, rejected, passed = read(tmp_path)
        others = {f"0/k{n}" for n in range(NUM_SAMPLES) if abs(n - changed) > 1}
        assert others <= set(kept), (number, changed, rejected)
        assert len(kept) + len(rejected) + passed >= NUM_SAMPLES, (number, kept, rejected)
