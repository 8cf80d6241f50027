"""Encodings of the web: every label, every character, and which source of a label wins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mm1_pipeline.corpus.charsets import (
    ENCODINGS,
    REPLACEMENT,
    declared_encoding,
    decode,
    decode_page,
    encoding_of,
)

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "charsets" / "encodings.json").read_text("utf-8")
)


def pairs(count: int, size: int, first: int, split: int, upper: int) -> Iterator[bytes]:
    """Two bytes for each place of a table with `size` places a row."""
    for place in range(count):
        row, column = divmod(place, size)
        yield bytes((first + row, column + (0x40 if column < split else upper)))


def words(name: str) -> Iterator[bytes]:
    """The bytes of every place in the standard's table of an encoding, in its order."""
    match name:
        case "gbk":
            yield from pairs(23_940, 190, 0x81, 0x3F, 0x41)
            yield b"\x80"
        case "euc-kr":
            yield from (bytes((0x81 + p // 190, 0x41 + p % 190)) for p in range(23_940))
        case "big5":
            yield from pairs(19_782, 157, 0x81, 0x3F, 0x62)
        case "shift_jis":
            for word in pairs(11_280, 188, 0x81, 0x3F, 0x41):
                yield bytes((word[0] + (0x40 if word[0] > 0x9F else 0), word[1]))
        case "euc-jp" | "iso-2022-jp":
            high = 0xA1 if name == "euc-jp" else 0x21
            for place in range(8_836):
                word = bytes((high + place // 94, high + place % 94))
                yield word if name == "euc-jp" else b"\x1b$B" + word
            if name == "euc-jp":
                for place in range(8_836):
                    yield bytes((0x8F, 0xA1 + place // 94, 0xA1 + place % 94))
        case _:
            yield from (bytes([byte]) for byte in range(128, 256))


@pytest.mark.parametrize("name", GOLDEN["encodings"])
def test_every_character_is_the_standards(name):
    expected = GOLDEN["encodings"][name]
    texts = [decode(word, name) for word in words(name)][: expected["words"]]
    defined = [text for text in texts if REPLACEMENT not in text]
    assert (len(texts), len(defined)) == (expected["words"], expected["defined"])
    assert hashlib.sha256("".join(defined).encode()).hexdigest() == expected["sha256"]


def test_the_labels_are_the_standards_and_no_others():
    lines = "\n".join(f"{label} {name}" for label, name in sorted(ENCODINGS.items()))
    assert len(ENCODINGS) == GOLDEN["labels"]["count"] == 228
    assert hashlib.sha256(lines.encode()).hexdigest() == GOLDEN["labels"]["sha256"]
    for name in set(ENCODINGS.values()) - {"replacement"}:
        assert "a" in decode("a".encode("utf-16-be" if name == "utf-16be" else "utf-16-le"), name)
    assert encoding_of(" Shift_JIS\n") == "shift_jis"
    for label in ("punycode", "idna", "rot13", "utf-7", "unicode_escape", "utf-32", "cp037", "hz"):
        assert encoding_of(label) is None, label


@pytest.mark.parametrize(
    ("label", "body", "text"),
    [
        ("gb2312", "镕は①㐀".encode("gb18030"), "镕は①㐀"),
        ("x-gbk", "这是".encode("gbk"), "这是"),
        ("Shift_JIS", "①Ⅳ㈱髙".encode("cp932"), "①Ⅳ㈱髙"),
        ("euc-kr", "똠방각하 펲".encode("cp949"), "똠방각하 펲"),
        ("euc-jp", b"\xad\xa1 \xa1\xc1 \x8e\xb1 \x8f\xb0\xa1", "① ～ ｱ 丂"),
        ("iso-2022-jp", b'a\x1b$B-!$"\x1b(J\\~\x1b(I1\x1b(Bz', "a①あ¥‾ｱz"),
        ("big5", b"\x87\x7a \xa2\x44 \xa3\xe1", "㡵 ￥ €"),
        ("iso-8859-1", b"\x93quoted\x94 \x80 \x81", "“quoted” € \x81"),
        ("us-ascii", b"caf\xe9", "café"),
        ("iso-8859-9", b"\xfe\x80", "ş€"),
        ("tis-620", b"\xa1\x80", "ก€"),
        ("koi8-ru", b"\xae\xbe", "ўЎ"),
        ("x-user-defined", b"a\x80\xff", "a\uf780\uf7ff"),
        ("utf-16", "aé".encode("utf-16-le"), "aé"),
        ("iso-2022-kr", b"<script>", REPLACEMENT),
        ("hz-gb-2312", b"~{", REPLACEMENT),
        ("utf-8", b"\xff<p>", f"{REPLACEMENT}<p>"),
        ("big5", b"\xa1<p>", f"{REPLACEMENT}<p>"),
        ("euc-jp", b"\xa1<p>\x8f\xa1<", f"{REPLACEMENT}<p>{REPLACEMENT}<"),
        ("iso-2022-jp", b'\x1b$B$"\xff\x1b\x0e', f"あ{REPLACEMENT * 3}"),
        ("shift_jis", b"\x80\xa0\xfd", f"\x80{REPLACEMENT * 2}"),
    ],
)
def test_text_is_what_browsers_read(label, body, text):
    assert decode_page(body, label) == text


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ('<meta charset="gbk">', "gbk"),
        ("<META CHARSET=Big5 />", "big5"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=euc-kr">', "euc-kr"),
        ("<meta content='text/html;charset=\"koi8-r\"' http-equiv=content-type>", "koi8-r"),
        ("<meta name=x content='charset=gbk'>", None),
        ("<!-- <meta charset=gbk> --><meta charset=utf-8>", "utf-8"),
        ("<!--><meta charset=gbk>", "gbk"),
        ("<a title='<meta charset=gbk>'><meta charset=big5>", "big5"),
        ("<meta charset=no-such><meta charset=big5>", "big5"),
        ("<meta charset=utf-16>", "utf-8"),
        ("<meta charset=x-user-defined>", "windows-1252"),
        ('<?xml version="1.0" encoding="EUC-JP"?><html>', "euc-jp"),
        ("<title>x" + " " * 3_000 + "</title><meta charset=gbk>", "gbk"),
        ("<meta charset='gbk", None),
        ("<metal charset=gbk>", None),
        ("", None),
    ],
)
def test_what_a_page_declares(head, expected):
    assert declared_encoding(head.encode()) == expected


def test_the_order_of_sources():
    page = '<meta charset="windows-1251">é'
    assert decode_page(b"\xef\xbb\xbf" + page.encode(), "gbk") == page
    assert decode_page(page.encode("utf-16"), "gbk") == page
    assert decode_page(page.encode("cp1252"), "latin1") == page
    assert decode_page(b'<meta charset="windows-1251">\xe9', "punycode").endswith("й")
    assert decode_page("<p>é".encode(), None) == "<p>é"
    assert decode_page(b"<p>caf\xe9", "") == "<p>café"


@pytest.mark.parametrize(
    "unit",
    [b"<meta ", b'<a b="', b"<!--", b"<", b"<?xml encoding=", b"\x1b$B", b"\xa4\xa2", b"\x80"],
)
@pytest.mark.parametrize("label", ["", "punycode", "gbk", "euc-jp", "iso-2022-jp", "big5"])
def test_hostile_pages_are_decoded_in_linear_time(unit, label):
    # 300 kB; of `charset=punycode` 600 kB took Python's codec 51 s, growing with the square.
    assert isinstance(decode_page(unit * (300_000 // len(unit)), label), str)
