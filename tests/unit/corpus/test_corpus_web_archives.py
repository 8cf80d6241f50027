"""Web archives: every record kept, rejected or passed over, across damage, packing and writers."""

from __future__ import annotations

import gzip
import random
import zlib
from collections import Counter

import brotli
import pytest
import zstandard
from corpus_builders import PLAIN, make_config, noise, page, picture, warc_record, write_bytes

from mm1_pipeline.corpus.readers.base import PassedOver, RawRecord, RejectedRecord, Source
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source

BODY = page('<p>text</p><img src="/1.jpg">')
NOISE = noise()
IMAGE = warc_record("http://x/1.jpg", NOISE, "image/jpeg")


def read(folder, **limits):
    """Every item of a folder of archives."""
    options = {**PLAIN, "kind": "interleaved", "format": "warc_html", "path": str(folder)}
    config = make_config({"s": options}, limits=limits)
    settings = config.sources["s"]
    return list(read_source(Source("s", settings, open_files(settings), config.limits)))


def read_bytes(folder, data, name="a.warc.gz", **limits):
    write_bytes(folder / name, data)
    return read(folder, **limits)


def count(items):
    """Kept, rejected by reason, passed over by kind."""
    found: Counter[str] = Counter()
    for item in items:
        match item:
            case RawRecord():
                found["kept"] += 1
            case RejectedRecord():
                found[item.why.reason.value] += 1
            case PassedOver():
                found[item.why.value] += item.count
    return dict(found)


def kept(item) -> RawRecord:
    assert isinstance(item, RawRecord)
    return item


def texts(items):
    return [
        "|".join(s.text or "[i]" for s in i.segments) for i in items if isinstance(i, RawRecord)
    ]


def raw(head: str, content: bytes, version: str = "WARC/1.0") -> bytes:
    """A record with its own headers, for what `warc_record` does not write."""
    lines = f"{version}\r\n{head.strip()}\r\nContent-Length: {len(content)}\r\n\r\n"
    return lines.encode("latin-1") + content + b"\r\n\r\n"


CHECKED = zstandard.ZstdCompressor(write_checksum=True)
"""As the command `zstd` does; without a checksum some flips cannot be seen."""
PACKINGS = {
    "gzip": lambda records: b"".join(gzip.compress(r, mtime=0) for r in records),
    "one gzip": lambda records: gzip.compress(b"".join(records), mtime=0),
    "zstd": lambda records: b"".join(CHECKED.compress(r) for r in records),
    "one zstd": lambda records: zstandard.compress(b"".join(records)),
    "plain": lambda records: b"".join(records),
    "blocks": lambda records: b"".join(
        gzip.compress(block, mtime=0)
        for data in [b"".join(records)]
        for block in (data[n : n + 1_000] for n in range(0, len(data), 1_000))
    ),
}


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.WARC.zst"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_the_first_bytes_say_how_an_archive_is_packed(tmp_path, packing, name):
    records = [warc_record("http://x/p", BODY), IMAGE, warc_record("http://x/q", BODY)]
    items = read_bytes(tmp_path, PACKINGS[packing](records), name)
    assert count(items) == {"kept": 2, "archived_file": 1}
    assert all(item.images[0].load() == NOISE for item in items if isinstance(item, RawRecord))


def test_a_dictionary_of_the_archive_is_used(tmp_path):
    samples = [warc_record(f"http://x/{n}", BODY) for n in range(200)]
    dictionary = zstandard.train_dictionary(2_000, list(samples))
    packer = zstandard.ZstdCompressor(dict_data=dictionary)
    for stored in (dictionary.as_bytes(), zstandard.compress(dictionary.as_bytes())):
        head = b"\x5d\x2a\x4d\x18" + len(stored).to_bytes(4, "little") + stored
        data = head + b"".join(packer.compress(record) for record in (samples[0], IMAGE))
        items = read_bytes(tmp_path, data, "a.warc.zst")
        assert count(items) == {"kept": 1, "archived_file": 1}
        assert kept(items[0]).images[0].load() == NOISE


def eight_pages() -> list[bytes]:
    rng = random.Random(8)
    records = []
    for n in range(8):
        words = " ".join(str(rng.random()) for _ in range(60))
        records.append(warc_record(f"http://x/{n}", page(f'<p>{words}</p><img src="/{n}.jpg">')))
        records.append(warc_record(f"http://x/{n}.jpg", picture(n), "image/jpeg"))
    return records


@pytest.mark.parametrize("packing", ["gzip", "zstd", "plain"])
def test_a_flipped_bit_costs_one_record_at_most(tmp_path, packing):
    data = PACKINGS[packing](eight_pages())
    rng = random.Random(packing)
    for _ in range(120):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        items = read_bytes(tmp_path, bytes(damaged))
        found = count(items)
        assert sum(found.values()) == 16, found
        assert found.get("kept", 0) >= 7
        loaded = Counter()
        for item in items:
            if isinstance(item, RawRecord):
                try:  # a flip in a plain page may hit the address of its image
                    loaded["images"] += any(image.load() for image in item.images)
                except ValueError:
                    loaded["missing"] += 1
        assert loaded["images"] >= 7, (found, loaded)


@pytest.mark.parametrize("packing", ["gzip", "zstd", "plain"])
def test_several_damaged_records_are_counted_one_by_one(tmp_path, packing):
    pieces = [PACKINGS[packing]([record]) for record in eight_pages()]
    for number in (2, 4, 5, 14):
        middle = len(pieces[number]) // 2 if packing != "plain" else 0
        pieces[number] = pieces[number][:middle] + b"\xa5" * 9 + pieces[number][middle + 9 :]
    items = read_bytes(tmp_path, b"".join(pieces))
    # Plain records without their first line are one stretch where they are neighbours.
    assert count(items) == {
        "kept": 5,
        "archived_file": 7,
        "damaged_member": 3 if packing == "plain" else 4,
    }


@pytest.mark.parametrize("packing", ["gzip", "zstd", "plain"])
@pytest.mark.parametrize("damage", ["garbage between", "zeros", "deleted", "doubled", "tail"])
def test_records_beside_other_damage_survive(tmp_path, packing, damage):
    pieces = [PACKINGS[packing]([record]) for record in eight_pages()]
    match damage:
        case "garbage between":
            pieces.insert(6, b"\x1f\x8b\x08 WARC/1.0 not at all" * 40)
        case "zeros":
            pieces[6] = bytes(len(pieces[6]))
        case "deleted":
            pieces[6] = pieces[6][: len(pieces[6]) // 2]
        case "doubled":
            pieces[6] = pieces[6][:80] + pieces[6]
        case _:
            pieces.append(b"\xff" * 4_000)
    found = count(read_bytes(tmp_path, b"".join(pieces)))
    assert found["kept"] >= 7, found
    assert found["archived_file"] == 8, found
    is_padding = damage == "zeros" and packing != "plain"
    is_header = damage == "doubled" and packing == "plain"  # a record with two first lines
    assert (found.get("damaged_member", 0) == 0) == (is_padding or is_header)


def test_a_wrong_length_does_not_swallow_the_records_behind_it(tmp_path):
    records = eight_pages()
    for number, length in ((2, b"9999"), (6, b"99999999"), (10, b"7"), (14, b"-1")):
        head, _, rest = records[number].partition(b"Content-Length: ")
        records[number] = head + b"Content-Length: " + length + b"\r\n" + rest.partition(b"\r\n")[2]
    for packing in ("plain", "gzip", "one gzip"):
        found = count(read_bytes(tmp_path, PACKINGS[packing](records)))
        if packing == "one gzip":  # cannot be read twice: what a record swallows is lost
            assert found["kept"] >= 1
            continue
        assert (found["kept"], found["archived_file"]) == (4, 8), packing
        assert found["damaged_member"] + found.get("truncated_file", 0) == 4


def test_everything_in_an_archive_is_counted(tmp_path):
    http = "Content-Type: application/http; msgtype=response\r\nWARC-Target-URI: http://x/"
    records = [
        raw("WARC-Type: warcinfo", b"software: x"),
        raw("WARC-Type: request\r\nContent-Type: application/http", b"GET / HTTP/1.1\r\n\r\n"),
        raw("WARC-Type: metadata", b"fetchTimeMs: 1"),
        raw("WARC-Type: conversion\r\nContent-Type: text/plain", b"text of a page"),
        raw("WARC-Type: continuation", b"x"),
        raw("WARC-Type: unheard-of", b"x"),
        raw("WARC-Date: 2020-01-01T00:00:00Z", b"without a type"),
        raw("WARC-Type: response\r\nContent-Type: text/dns\r\nWARC-Target-URI: dns:x", b"1.2.3.4"),
        raw("WARC-Type: resource\r\nContent-Type: text/html\r\nWARC-Target-URI: http://x/r", BODY),
        raw("WARC-Type: resource\r\nWARC-Target-URI: file:///r", BODY),
        raw(f"WARC-Type: response\r\n{http}none", b""),
        raw(f"WARC-Type: response\r\n{http}bad", b"HTTP/1.1 what"),
        raw(f"WARC-Type: response\r\n{http}cut", b"HTTP/1.1 200 OK\r\nContent-Type: text/html"),
        warc_record("http://x/gone", BODY, status="404 Not Found"),
        warc_record("http://x/moved", b"", "", "301 Moved", {"Location": "/p"}),
        warc_record("http://x/style.css", b"p {}", "text/css"),
        IMAGE,
    ]
    for packing in ("gzip", "plain"):
        items = read_bytes(tmp_path, PACKINGS[packing](records))
        assert count(items) == {
            "other_warc_record": 7,
            "kept": 3,
            "archived_file": 5,
            "malformed_record": 1,
            "http_status": 1,
        }
        keys = [item.key for item in items if not isinstance(item, PassedOver)]
        assert keys == [f"a/{number:06d}" for number in range(5)]


def response(head: str, body: bytes = BODY, url: str = "http://x/p", version="WARC/1.0") -> bytes:
    content = head.encode("latin-1") + body
    names = f"WARC-Type: response\r\nWARC-Target-URI: {url}\r\nContent-Type: application/http"
    return raw(names, content, version)


GOOD_RESPONSES = {
    "bare newlines": "HTTP/1.1 200 OK\nContent-Type: text/html\n\n",
    "mixed newlines": "HTTP/1.1 200 OK\r\nContent-Type: text/html\n\r\n",
    "no type": "HTTP/1.1 200 OK\r\nServer: x\r\n\r\n",
    "an unknown type": "HTTP/1.1 200 OK\r\nContent-Type: unknown/unknown\r\n\r\n",
    "a type of stars": "HTTP/1.1 200 OK\r\nContent-Type: */*\r\n\r\n",
    "upper case": "HTTP/1.1 200 OK\r\nCONTENT-TYPE: TEXT/HTML ; CHARSET=UTF-8\r\n\r\n",
    "a space for a semicolon": "HTTP/1.1 200 OK\r\nContent-Type: text/html charset=utf-8\r\n\r\n",
    "XHTML": "HTTP/1.1 200 OK\r\nContent-Type: application/xhtml+xml\r\n\r\n",
    "two types": "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Type: text/html\r\n\r\n",
    "HTTP/2": "HTTP/2 200\r\ncontent-type: text/html\r\n\r\n",
    "no words": "HTTP/1.0 200\r\nContent-Type: text/html\r\n\r\n",
    "a header that goes on": "HTTP/1.1 200 OK\r\nContent-Type:\r\n text/html\r\n\r\n",
    "lines that are no headers": "HTTP/1.1 200 OK\r\n???\r\nContent-Type: text/html\r\n\r\n",
    "bytes that are no UTF-8": "HTTP/1.1 200 OK\r\nX: \xe9\xff\r\nContent-Type: text/html\r\n\r\n",
    "all of a range": "HTTP/1.1 206 Partial Content\r\nContent-Type: text/html\r\n"
    f"Content-Range: bytes 0-{len(BODY) - 1}/{len(BODY)}\r\n\r\n",
    "a proxy": "HTTP/1.1 203 Non-Authoritative\r\nContent-Type: text/html\r\n\r\n",
    "a word about an encoding": "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
    "X-Crawl-Content-Encoding: gzip\r\nX-Crawl-Transfer-Encoding: chunked\r\n\r\n",
    "what was unpacked before": "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
    "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("name", GOOD_RESPONSES)
@pytest.mark.parametrize("version", ["WARC/1.0", "WARC/1.1", "WARC/0.18"])
def test_pages_of_all_servers_are_read(tmp_path, name, version):
    records = [response(GOOD_RESPONSES[name], version=version), IMAGE]
    items = read_bytes(tmp_path, PACKINGS["gzip"](records))
    assert texts(items) == ["text|[i]"], count(items)


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        ("HTTP/1.1 200 OK\r\n\r\n", b"no page", {"archived_file": 1}),
        ("HTTP/1.1 200 OK\r\n\r\n", picture(), {"archived_file": 1}),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", BODY, {"archived_file": 1}),
        (
            "HTTP/1.1 206 P\r\nContent-Type: text/html\r\nContent-Range: bytes 5-9/20\r\n\r\n",
            BODY,
            {"http_status": 1},
        ),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", b"", {"archived_file": 1}),
        ("<html>", BODY, {"malformed_record": 1}),
    ],
)
def test_what_is_no_page_is_told(tmp_path, head, body, expected):
    assert count(read_bytes(tmp_path, PACKINGS["gzip"]([response(head, body)]))) == expected


def test_addresses_that_are_no_utf8_are_escaped(tmp_path):
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    body = page('<p>text</p><img src="/caf%E9.jpg">')
    data = PACKINGS["gzip"](
        [
            response(head, body, "http://x/\xe9\xed\xa0\x80"),
            response(head.replace("text/html", "image/jpeg"), NOISE, "<http://x/caf\xe9.jpg>"),
        ]
    )
    item = kept(read_bytes(tmp_path, data)[0])
    assert item.metadata["url"] == "http://x/%E9%ED%A0%80"
    assert item.images[0].load() == NOISE


def chunked(body: bytes, size: int = 30) -> bytes:
    pieces = [body[n : n + size] for n in range(0, len(body), size)]
    return b"".join(b"%x;x=y\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def deflated(body: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(body) + packer.flush()


ENCODED = {
    "br": ("br", brotli.compress(BODY)),
    "gzip": ("gzip", gzip.compress(BODY, mtime=0)),
    "two members": ("gzip", gzip.compress(BODY[:40], mtime=0) + gzip.compress(BODY[40:], mtime=0)),
    "junk behind": ("gzip", gzip.compress(BODY, mtime=0) + b"junk"),
    "x-gzip": ("X-GZIP", gzip.compress(BODY, mtime=0)),
    "zstd": ("zstd", zstandard.compress(BODY)),
    "zlib": ("deflate", zlib.compress(BODY)),
    "bare deflate": ("deflate", deflated(BODY, -15)),
    "a chain": ("gzip, br", brotli.compress(gzip.compress(BODY, mtime=0))),
    "identity": ("identity", BODY),
    "wrongly br": ("br", BODY),
    "wrongly deflate": ("deflate", BODY),
    "wrongly zstd": ("zstd", BODY),
    "a charset": ("utf-8", BODY),
    "unsaid": ("", gzip.compress(BODY, mtime=0)),
}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_bodies_are_unpacked_as_browsers_do(tmp_path, name, is_chunked):
    encoding, body = ENCODED[name]
    headers = {"Content-Encoding": encoding}
    if is_chunked:
        body, headers = chunked(body), {**headers, "Transfer-Encoding": "Chunked"}
    data = PACKINGS["gzip"]([warc_record("http://x/p", body, headers=headers), IMAGE])
    items = read_bytes(tmp_path, data)
    assert texts(items) == ["text|[i]"], count(items)


@pytest.mark.parametrize(
    ("encoding", "body", "reason"),
    [
        ("br", brotli.compress(BODY)[:-9], "http_encoding"),
        ("br", b"\xff" * 50, "http_encoding"),
        ("gzip", gzip.compress(BODY, mtime=0)[:-9], "http_encoding"),
        ("zstd", zstandard.compress(BODY)[:-9], "http_encoding"),
        ("deflate", b"\xff" * 50, "http_encoding"),
        ("exi", b"\0\1\2", "http_encoding"),
        ("br", brotli.compress(bytes(10**7)), "page_too_large"),
        ("gzip", gzip.compress(bytes(10**7), mtime=0), "page_too_large"),
        ("zstd", zstandard.compress(bytes(10**7)), "page_too_large"),
        ("deflate", zlib.compress(bytes(10**7)), "page_too_large"),
        ("br, br", brotli.compress(brotli.compress(bytes(10**7))), "page_too_large"),
    ],
)
def test_bodies_that_cannot_be_unpacked_cost_themselves(tmp_path, encoding, body, reason):
    bad = warc_record("http://x/bad", body, headers={"Content-Encoding": encoding})
    data = PACKINGS["gzip"]([bad, warc_record("http://x/p", BODY), IMAGE])
    items = read_bytes(tmp_path, data, max_page_bytes=1_000_000)
    assert count(items) == {reason: 1, "kept": 1, "archived_file": 1}


def revisit(
    url: str, refers: str, head: str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
):
    names = f"WARC-Type: revisit\r\nWARC-Target-URI: {url}\r\nContent-Type: application/http"
    return raw(f"{names}\r\n{refers}".strip(), head.encode())


ID, DATE, DIGEST = "<urn:uuid:1>", "2020-01-01T00:00:00Z", "sha1:AAAA"
REFERENCES = {
    "id": f"WARC-Refers-To: {ID}",
    "address": "WARC-Refers-To-Target-URI: http://x/p",
    "address and date": f"WARC-Refers-To-Target-URI: http://x/p\r\nWARC-Refers-To-Date: {DATE}",
    "digest": f"WARC-Payload-Digest: {DIGEST}",
    "id of none, digest": f"WARC-Refers-To: <urn:x>\r\nWARC-Payload-Digest: {DIGEST}",
}


def original(body: bytes = BODY, url: str = "http://x/p", kind: str = "text/html") -> bytes:
    names = f"WARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Record-ID: {ID}"
    names += f"\r\nWARC-Date: {DATE}\r\nWARC-Payload-Digest: {DIGEST}"
    names += "\r\nContent-Type: application/http"
    return raw(names, f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode() + body)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("head", ["HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
                                  "HTTP/1.1 304 Not Modified\r\n\r\n", ""])  # fmt: skip
def test_a_revisit_record_is_the_page_that_it_repeats(tmp_path, name, head):
    write_bytes(tmp_path / "b.warc.gz", PACKINGS["gzip"]([original(), IMAGE]))
    items = read_bytes(tmp_path, PACKINGS["gzip"]([revisit("http://y/q", REFERENCES[name], head)]))
    assert [i.metadata["url"] for i in items if isinstance(i, RawRecord)] == [
        "http://y/q",
        "http://x/p",
    ]
    assert texts(items) == ["text|[i]"] * 2


@pytest.mark.parametrize("name", REFERENCES)
def test_an_image_may_be_a_revisit_record(tmp_path, name):
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n"
    records = [
        warc_record("http://x/page", BODY),
        revisit("http://x/1.jpg", REFERENCES[name], head),
        original(NOISE, "http://x/p", "image/jpeg"),
    ]
    items = read_bytes(tmp_path, PACKINGS["gzip"](records))
    assert count(items) == {"kept": 1, "archived_file": 2}
    assert kept(items[0]).images[0].load() == NOISE


@pytest.mark.parametrize(
    "refers",
    [
        "WARC-Refers-To: <urn:uuid:2>",
        "WARC-Refers-To-Target-URI: http://x/q",
        "WARC-Refers-To-Target-URI: http://x/p\r\nWARC-Refers-To-Date: 2021-01-01T00:00:00Z",
        "WARC-Refers-To-Target-URI: http://x/p\r\nWARC-Payload-Digest: sha1:BBBB",
        "",
    ],
)
def test_a_revisit_record_without_its_original_is_counted(tmp_path, refers):
    records = [revisit("http://y/q", refers), original(), IMAGE]
    items = read_bytes(tmp_path, PACKINGS["gzip"](records))
    assert count(items) == {"original_missing": 1, "kept": 1, "archived_file": 1}
    (rejected,) = (item for item in items if isinstance(item, RejectedRecord))
    assert rejected is items[0]
    assert rejected.why.detail.startswith("http://y/q: ")


def test_headers_without_end_cost_themselves(tmp_path):
    good = [warc_record("http://x/p", BODY), IMAGE]
    bombs = [
        raw("WARC-Type: response\r\nX: " + "x" * 2_000_000, b""),
        raw("WARC-Type: response\r\n" + "X: x\r\n" * 400_000, b""),
        response("HTTP/1.1 200 OK\r\nX: " + "x" * 2_000_000 + "\r\n\r\n"),
        response("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + "X: x\r\n" * 100_000 + "\r\n"),
    ]
    for packing in ("gzip", "plain"):
        found = count(read_bytes(tmp_path, PACKINGS[packing]([*bombs, *good])))
        assert found == {"damaged_member": 2, "malformed_record": 1, "kept": 2, "archived_file": 1}


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_a_member_that_swells_costs_itself(tmp_path, packing, monkeypatch):
    from mm1_pipeline.corpus import decompression

    monkeypatch.setattr(decompression, "_FREE_BYTES", 1_000_000)
    bomb = raw("WARC-Type: response\r\nWARC-Target-URI: http://x/b", bytes(20_000_000))
    records = [warc_record("http://x/p", BODY), bomb, IMAGE, warc_record("http://x/q", BODY)]
    found = count(read_bytes(tmp_path, PACKINGS[packing](records)))
    assert found == {"kept": 2, "compression_bomb": 1, "archived_file": 1}


@pytest.mark.parametrize(
    "unit", [b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"WARC/1.0\r\nA: b\r\n\r\n"]
)
def test_archives_of_nothing_but_starts_end(tmp_path, unit):
    items = read_bytes(tmp_path, unit * 20_000)
    assert set(count(items)) <= {"damaged_member", "truncated_file", "unreadable_file"}
    assert 1 <= len(items) <= 10_002


def test_the_images_of_one_member_of_many_records_are_found_in_any_order(tmp_path, monkeypatch):
    from mm1_pipeline.corpus import warc

    monkeypatch.setattr(warc, "_CHECKPOINT_BYTES", 3_000)
    names = [f"{n}.jpg" for n in (5, 1, 7, 0, 6, 2, 4, 3)]
    body = page("<p>text</p>" + "".join(f'<img src="/{name}">' for name in names))
    images = [warc_record(f"http://x/{n}.jpg", picture(n), "image/jpeg") for n in range(8)]
    for packing in ("one gzip", "one zstd", "blocks"):
        data = PACKINGS[packing]([*images, warc_record("http://x/p", body)])
        *_, item = read_bytes(tmp_path, data)
        found = [image.load() for image in kept(item).images]
        assert found == [picture(int(name[0])) for name in names], packing
