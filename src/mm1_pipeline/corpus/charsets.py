"""Encodings of the web: the labels that pages use, and the text that browsers read under them.

A label names an encoding of the WHATWG Encoding Standard, and nothing else: Python's codecs differ
from what the same words mean on the web (`gb2312` is GBK there), reject what browsers read, and
are partly no character encodings at all (`punycode`, whose time grows with the square).

Source: WHATWG Encoding Standard, names, labels and indexes; HTML Standard, 13.2.3 on the sources
of an encoding. Deviations: a `meta` counts anywhere in the first 64 kB, as it does once a browser
has parsed it; no guess by frequencies; U+E7C7 is U+1E3F in four-byte GB18030.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

REPLACEMENT = "\ufffd"
"""Stands for bytes that an encoding lacks."""

_LABELS = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf8 x-unicode20utf8",
    "ibm866": "866 cp866 csibm866",
    "iso-8859-2": "csisolatin2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso-8859-3": "csisolatin3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso-8859-4": "csisolatin4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso-8859-5": "csisolatincyrillic cyrillic iso-ir-144 iso8859-5 iso88595 iso_8859-5 "
    "iso_8859-5:1988",
    "iso-8859-6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6-e "
    "iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso-8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-ir-126 iso8859-7 iso88597 "
    "iso_8859-7 iso_8859-7:1987 sun_eu_greek",
    "iso-8859-8": "csiso88598e csisolatinhebrew hebrew iso-8859-8-e iso-ir-138 iso8859-8 iso88598 "
    "iso_8859-8 iso_8859-8:1988 visual",
    "iso-8859-8-i": "csiso88598i logical",
    "iso-8859-10": "csisolatin6 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso-8859-13": "iso8859-13 iso885913",
    "iso-8859-14": "iso8859-14 iso885914",
    "iso-8859-15": "csisolatin9 iso8859-15 iso885915 iso_8859-15 l9",
    "iso-8859-16": "",
    "koi8-r": "cskoi8r koi koi8 koi8_r",
    "koi8-u": "koi8-ru",
    "macintosh": "csmacintosh mac x-mac-roman",
    "windows-874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620",
    "windows-1250": "cp1250 x-cp1250",
    "windows-1251": "cp1251 x-cp1251",
    "windows-1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 "
    "iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii x-cp1252",
    "windows-1253": "cp1253 x-cp1253",
    "windows-1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 "
    "iso_8859-9:1989 l5 latin5 x-cp1254",
    "windows-1255": "cp1255 x-cp1255",
    "windows-1256": "cp1256 x-cp1256",
    "windows-1257": "cp1257 x-cp1257",
    "windows-1258": "cp1258 x-cp1258",
    "x-mac-cyrillic": "x-mac-ukrainian",
    "gbk": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 iso-ir-58 x-gbk",
    "gb18030": "",
    "big5": "big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc-jp": "cseucpkdfmtjapanese x-euc-jp",
    "iso-2022-jp": "csiso2022jp",
    "shift_jis": "csshiftjis ms932 ms_kanji shift-jis sjis windows-31j x-sjis",
    "euc-kr": "cseuckr csksc56011987 iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 "
    "ksc_5601 windows-949",
    "replacement": "csiso2022kr hz-gb-2312 iso-2022-cn iso-2022-cn-ext iso-2022-kr",
    "utf-16be": "unicodefffe",
    "utf-16le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16",
    "x-user-defined": "",
}
ENCODINGS = {label: name for name, labels in _LABELS.items() for label in (name, *labels.split())}
"""The encoding that each label names, both in lower case."""

FALLBACK = "windows-1252"
"""What a page in no known encoding is read as: the web's old default."""

_PYTHON_NAMES = {
    "ibm866": "cp866",
    "koi8-u": "koi8_u",
    "macintosh": "mac_roman",
    "x-mac-cyrillic": "mac_cyrillic",
    "windows-874": "cp874",
    "iso-8859-8-i": "iso-8859-8",
}
_OTHER_BYTES = {"koi8-u": {0xAE: "ў", 0xBE: "Ў"}, "windows-1255": {0xCA: "\u05ba"}}
"""Bytes that the standard reads differently than Python does."""
_OTHER_GB18030 = str.maketrans(
    "\ue5e5\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796\ue7c7"
    "\ue81e\ue826\ue82b\ue82c\ue832\ue843\ue854\ue864",
    "\u3000\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19\u1e3f"
    "\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8\u9fb9\u9fba\u9fbb",
)
"""Characters that had no code points of their own when Python's table was made."""
_MORE_BIG5 = (
    "877a㡵𡵓𣚞𦀡㻬 87a1𥣞㫵竼龗𤅡𨤍𣇪𠪊𣉞䌊蒄龖鐯䤰蘓墖靊鈘秐稲晠権袝瑌篅枂稬剏遆㓦珄𥶹瓆鿇垳"
    "䤯呌䄱𣚎堘穲𧭥讏䚮𦺈䆁𥶙箮𢒼鿈𢓁𢓉𢓌鿉蔄𣖻䂴鿊䓡𪷿拁灮鿋 8e69箸 8e6f簆 8e7e糎 8eab緒 8eb4縝 "
    "8ecd者 8ed0耨 8f57菁 8f69蒨 8f6e萏 8fcb覦覩 8ffe起 906d都 907a銹 90dc靜 90f1響 91bf鼖 "
    "9244蔃 92af兙兛兝兞 92c8鍮 92d1瑹 9447浧 94ca禛 95d9邗 9644靝 96ed瀞 96fc嬨 9b76爁 9b78矗 "
    "9b7b纇 9bc6駖 9bde釔 9bec惞 9bf6澶 9c42輶 9c53侻 9c62營 9c68鄄 9c6b鷰 9c77菏 9cbc尐秣 "
    "9cd0婧 9d57輋 9d5a筑 9dc4拐 9ea9恢 9eef痹 9efd汊 9f60鬮 9f66鼗 9fcb僭 9fd8弌 a063蠏 a077拎 "
    "a0d5瑨 a0df煢 a0e4牐 a145‧ a14e﹑ a1c2¯ a1e3～ a1f2⊕⊙ a241∕﹨ a244￥ a246￠￡ "
    "a3c0␀␁␂␃␄␅␆␇␈␉␊␋␌␍␎␏␐␑␒␓␔␕␖␗␘␙␚␛␜␝␞␟␡€ c6cf廴 c6d3无 c6d5癶 c6d7隶 c6de〃仝 fa5f倩 fa66偽 "
    "fabd包 fac5卄 fad5卿 fb48嘅 fbb8婷 fbf3幵 fbf9廐 fc4f彘 fc6c悤 fcb9撐 fce2晴 fcf1杞 "
    "fdb7沜渝 fdbb港 fdf1煮 fe52猪 fe6f瑜 feaa瓩 fedd砉"
)
"""Characters of the standard's Big5 beside Python's big5hkscs, in runs from a code on."""

_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe": "utf-16le",
    b"\xfe\xff": "utf-16be",
}
_LOOKED_AT = 64_000
_SPACE = "\t\n\f\r "
_TAG = re.compile(rb"<(?:!--|(/?[a-zA-Z][^\t\n\f\r >/]*+)|[!/?])")
_ATTRIBUTE_NAME = re.compile(rb"[\t\n\f\r /]*+([^\t\n\f\r />][^\t\n\f\r />=]*+)?")
_EQUALS = re.compile(rb"[\t\n\f\r ]*+=[\t\n\f\r ]*+")
_PLAIN_VALUE = re.compile(rb"[^\t\n\f\r >]*+")
_CONTENT_CHARSET = re.compile(r"""charset[\t\n\f\r ]*+=[\t\n\f\r ]*+(?:"([^"]*)"|'([^']*)'|"""
                              r"""([^\t\n\f\r ;"']++))""")  # fmt: skip
_XML_ENCODING = re.compile(rb"""<\?xml[^>]*?[\t\n\f\r ]encoding[\t\n\f\r ]*=[\t\n\f\r ]*"""
                           rb"""(?:"([^"<>]*)"|'([^'<>]*)')""")  # fmt: skip


def encoding_of(label: str) -> str | None:
    """The encoding that a label names, in lower case; None where the standard has no such label."""
    return ENCODINGS.get(label.strip(_SPACE).lower())


def decode_page(body: bytes, charset: str | None) -> str:
    """Decodes a page: byte order mark, HTTP header, the page's own word, UTF-8, Windows-1252.

    Bytes that the encoding lacks become U+FFFD, as in a browser. A page of which nobody says how
    it is encoded is UTF-8 where its bytes are.

    Args:
        body: the unpacked page.
        charset: the label in the HTTP header.
    """
    for mark, name in _BYTE_ORDER_MARKS.items():
        if body.startswith(mark):
            return decode(body[len(mark) :], name)
    name = encoding_of(charset or "") or declared_encoding(body)
    if name is None:
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError:
            name = FALLBACK
    return decode(body, name)


def decode(body: bytes, name: str) -> str:
    """Decodes bytes in one of the encodings; what it lacks becomes U+FFFD.

    Args:
        body: without a byte order mark.
        name: a value of `ENCODINGS`.
    """
    match name:
        case "utf-8" | "utf-16le" | "utf-16be":
            return body.decode(name, "replace")
        case "gbk" | "gb18030":
            text = body.decode("gb18030", "replace")
            if REPLACEMENT in text and b"\x80" in body:
                text = body.decode("gb18030", _EURO_SIGN)
            return text.translate(_OTHER_GB18030)
        case "shift_jis":
            # Bytes that Python keeps as private characters.
            return re.sub("[\uf8f0-\uf8f3]", REPLACEMENT, body.decode("cp932", "replace"))
        case "euc-kr":
            return body.decode("cp949", "replace")
        case "big5" | "euc-jp":
            table = _big5() if name == "big5" else _euc_jp()
            return _decode_by_table(body, table)
        case "iso-2022-jp":
            return _decode_iso_2022_jp(body)
        case "replacement":
            return REPLACEMENT if body else ""
        case "x-user-defined":
            return body.decode("latin-1").translate({n: n + 0xF700 for n in range(128, 256)})
        case _:
            characters: Any = _single_bytes(name)
            return codecs.charmap_decode(body, "replace", characters)[0]


def declared_encoding(body: bytes) -> str | None:
    """The encoding that a page itself declares, by `meta` or as XML; None where it does not.

    Args:
        body: the page, of which the first 64 kB are looked at.
    """
    head = body[:_LOOKED_AT]
    for start, name in ((b"<\0?\0x\0", "utf-16le"), (b"\0<\0?\0x", "utf-16be")):
        if head.startswith(start):
            return name
    name = _meta_encoding(head)
    if name is None and (found := _XML_ENCODING.match(head)):
        label = (found[1] or found[2] or b"").decode("latin-1")
        name = None if any(byte < " " for byte in label) else encoding_of(label)
    # Who can read the word in ASCII is not reading UTF-16.
    return {"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": FALLBACK}.get(
        name or "", name
    )


def _meta_encoding(head: bytes) -> str | None:
    """The first `meta` that names an encoding, found without parsing the page."""
    place = 0
    while tag := _TAG.search(head, place):
        place = tag.end()
        if tag[0] == b"<!--":
            end = head.find(b"-->", tag.start() + 2)
        elif tag[1] is None:
            end = head.find(b">", place)
        else:
            attributes, end = _read_attributes(head, place)
            if tag[1].lower() == b"meta" and (name := _of_meta(attributes)):
                return name
        if end < 0:
            return None
        place = max(place, end)
    return None


def _read_attributes(head: bytes, place: int) -> tuple[dict[str, str], int]:
    """The attributes of a tag, and where it ends; -1 where it does not."""
    attributes: dict[str, str] = {}
    while (name := _ATTRIBUTE_NAME.match(head, place)) and name[1] is not None:
        place, value = name.end(), b""
        if equals := _EQUALS.match(head, place):
            place = equals.end()
            quote = head[place : place + 1]
            if quote in (b'"', b"'"):
                end = head.find(quote, place + 1)
                if end < 0:
                    return {}, -1
                value, place = head[place + 1 : end], end + 1
            else:
                plain = _PLAIN_VALUE.match(head, place)
                assert plain is not None, "it matches nothing as well"
                value, place = plain[0], plain.end()
        attributes.setdefault(name[1].decode("latin-1").lower(), value.decode("latin-1").lower())
    return attributes, name.end() if name is not None else -1


def _of_meta(attributes: dict[str, str]) -> str | None:
    if "charset" in attributes:
        return encoding_of(attributes["charset"])
    if attributes.get("http-equiv") != "content-type":
        return None
    found = _CONTENT_CHARSET.search(attributes.get("content", ""))
    return encoding_of(found[1] or found[2] or found[3] or "") if found else None


def _euro_sign(error: UnicodeError) -> tuple[str, int]:
    """In GBK the byte 0x80 alone is the euro sign."""
    assert isinstance(error, UnicodeDecodeError)
    start = end = error.start
    while error.object[end : end + 1] == b"\x80":
        end += 1
    return ("€" * (end - start), end) if end > start else (REPLACEMENT, error.end)


_EURO_SIGN = "mm1_pipeline.euro_sign"
codecs.register_error(_EURO_SIGN, _euro_sign)


@lru_cache
def _single_bytes(name: str) -> str:
    """The 256 characters of an encoding; in Windows' ones, gaps are control characters."""
    python_name = _PYTHON_NAMES.get(name, name)
    gaps = range(0x80, 0xA0) if name.startswith("windows-") else range(0)
    characters = []
    for byte in range(256):
        try:
            character = bytes([byte]).decode(python_name)
        except UnicodeDecodeError:
            character = chr(byte) if byte in gaps else REPLACEMENT
        characters.append(_OTHER_BYTES.get(name, {}).get(byte, character))
    return "".join(characters)


_WORDS = re.compile("\x8f[\xa1-\xfe]{2}|[\x81-\xfe][\x40-\x7e\xa1-\xfe]|[\x80-\xff]")


def _decode_by_table(body: bytes, table: dict[str, str]) -> str:
    """Decodes an encoding of two and three bytes a character.

    Args:
        body: text in that encoding, which may be damaged.
        table: of the characters, by their bytes read as Latin-1.
    """

    def read(word: re.Match[str]) -> str:
        found = word[0]
        if found in table:
            return table[found]
        if len(found) == 3 and found[:2] in table:
            return table[found[:2]] + REPLACEMENT
        # Markup must not vanish with a damaged character before it.
        return REPLACEMENT + (found[-1] if found[-1] < "\x80" else "")

    return _WORDS.sub(read, body.decode("latin-1"))


@lru_cache
def _big5() -> dict[str, str]:
    trails = (*range(0x40, 0x7F), *range(0xA1, 0xFF))
    table = _table("big5hkscs", [bytes((a, b)) for a in range(0x81, 0xFF) for b in trails])
    for run in _MORE_BIG5.split(" "):
        code = int(run[:4], 16)
        for number, character in enumerate(run[4:]):
            table[(code + number).to_bytes(2, "big").decode("latin-1")] = character
    return table


@lru_cache
def _euc_jp() -> dict[str, str]:
    """With the characters of vendors, which Shift_JIS knows and Python's euc_jp does not."""
    rows = range(0xA1, 0xFF)
    kanji = {(a, b): _as_shift_jis((a - 0xA1) * 94 + b - 0xA1) for a in rows for b in rows}
    found = _table("cp932", list(kanji.values()))
    table = {chr(a) + chr(b): found.get(s.decode("latin-1"), "") for (a, b), s in kanji.items()}
    table = {word: character for word, character in table.items() if character}
    table |= _table("euc_jp", [bytes((0x8F, a, b)) for a in rows for b in rows])
    table |= {f"\x8e{chr(n)}": chr(n + 0xFEC0) for n in range(0xA1, 0xE0)}
    table["\x8f\xa2\xb7"] = "～"
    return table


def _as_shift_jis(pointer: int) -> bytes:
    """A place in the table of JIS X 0208 as Shift_JIS writes it."""
    lead, trail = divmod(pointer, 188)
    return bytes((lead + (0x81 if lead < 0x1F else 0xC1), trail + (0x40 if trail < 0x3F else 0x41)))


def _table(python_name: str, words: list[bytes]) -> dict[str, str]:
    table = {}
    for word in words:
        try:
            table[word.decode("latin-1")] = word.decode(python_name)
        except UnicodeDecodeError:
            continue
    return table


_ESCAPE = re.compile(rb"\x1b(\([BJI]|\$[@B])")


def _decode_iso_2022_jp(body: bytes) -> str:
    """Runs of ASCII, Roman letters, half-width katakana and kanji, each begun by an escape."""
    pieces = []
    run_kind = b"(B"
    parts = _ESCAPE.split(body)
    readers: dict[bytes, Callable[[bytes], str]] = {
        b"(B": lambda run: run.decode("ascii", "replace"),
        b"(J": lambda run: run.decode("ascii", "replace").translate({0x5C: "¥", 0x7E: "‾"}),
        b"(I": lambda run: re.sub("[^!-_]", REPLACEMENT, run.decode("latin-1")).translate(
            {n: n + 0xFF40 for n in range(0x21, 0x60)}
        ),
        b"$B": lambda run: _decode_by_table(
            bytes(n | 0x80 if 0x21 <= n <= 0x7E else 0xFF for n in run), _euc_jp()
        ),
    }
    for number, part in enumerate(parts):
        if number % 2:
            run_kind = part.replace(b"@", b"B")
        elif part:
            pieces.append(re.sub("[\x0e\x0f\x1b]", REPLACEMENT, readers[run_kind](part)))
    return "".join(pieces)
