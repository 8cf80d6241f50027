"""What is done in a faster way comes out as it does in the plain way."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
from urllib.parse import quote, urldefrag, urljoin, urlsplit

import pyarrow as pa
import pytest
from corpus_builders import picture, write_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mm1_pipeline.corpus.columns import to_array, to_table
from mm1_pipeline.corpus.html import absolute_url
from mm1_pipeline.corpus.language import identify_language
from mm1_pipeline.corpus.quarantine import QUARANTINE_SCHEMA
from mm1_pipeline.corpus.records import RECORD_SCHEMA


def values_of(kind: pa.DataType) -> st.SearchStrategy:
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({field.name: values_of(field.type) for field in kind})
    if pa.types.is_list(kind):
        return st.lists(values_of(kind.value_type), max_size=3)
    if pa.types.is_integer(kind):
        return st.none() | st.integers(-(2**31), 2**31 - 1)
    if pa.types.is_fixed_size_binary(kind):
        return st.none() | st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    if pa.types.is_binary(kind):
        return st.none() | st.binary(max_size=9)
    return st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


@pytest.mark.parametrize(
    "schema",
    [
        RECORD_SCHEMA,
        QUARANTINE_SCHEMA,
        pa.schema(
            [("order", pa.int64()), ("perceptual_hash", pa.binary(4)), ("name", pa.large_string())]
        ),
    ],
    ids=["records", "quarantine", "keys"],
)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_tables_are_those_of_pyarrow(schema, data):
    row = values_of(pa.struct(list(schema)))
    rows = data.draw(st.lists(row, max_size=6))
    table = to_table(rows, schema)
    table.validate(full=True)
    assert table.equals(pa.Table.from_pylist(rows, schema=schema))


def test_columns_of_other_types_are_refused():
    with pytest.raises(TypeError, match="found a column of double"):
        to_array([1.0], pa.float64())


def texts(rng: random.Random):
    alphabets = ["abcdefgh éèüñ\n", "абвгд еж", "日本語の文章です。", "\x00\x7f\x80ÿ 🙂", "A B-1"]
    yield from ("", "a", "né", "🙂")
    for _ in range(60):
        drawn = "".join(rng.choice(a) for a in rng.choices(alphabets, k=rng.randint(1, 3)))
        yield "".join(rng.choice(drawn) for _ in range(rng.randint(100, 2_500)))


def test_languages_are_those_of_the_library():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    library = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    seen = set()
    for text in texts(random.Random(0)):
        language, confidence = library.classify(text[:2_000])
        assert identify_language(text) == (language, confidence), text
        seen.add(language)
    assert len(seen) > 5, "the texts are to differ in their language"


PIECES = st.one_of(
    st.sampled_from("/aBé. ?#;:[]@&=~_-\t,('|"),
    st.sampled_from(["http:", "https:", "ftp:", "//", "/../", "%20", "80", "x.y", "::1", "data:"]),
)
ADDRESSES = st.lists(PIECES, max_size=8).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from(["http://x/a/b", "https://h.org/", "http://x/a?c=d#e", "ftp://z/", ""]),
    start=st.sampled_from(["", "http://", "https://x.y/", "http://h:80/a/"]),
    rest=ADDRESSES,
)
def test_plain_addresses_need_no_parsing(base, start, rest):
    address = start + rest
    try:
        url = urldefrag(urljoin(base, address.strip())).url
        scheme = urlsplit(url).scheme
    except ValueError:
        expected = None
    else:
        spelled = quote(url, safe="%/:=&?~#+!$,;'@()*[]|")
        expected = url if scheme == "data" else spelled if scheme in ("http", "https") else None
    assert absolute_url(base, address) == expected


def test_workers_need_no_pandas(tmp_path):
    """It takes each of them a quarter of a second, and pyarrow imports it at the first array."""
    import pyarrow.parquet as pq

    rows = [{"image": picture(seed=n), "caption": f"a picture of number {n}"} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    lines = "".join(json.dumps({"text": f"{n} one two three"}) + "\n" for n in range(3))
    write_bytes(tmp_path / "texts.jsonl", lines.encode())
    program = """
        import json, sys
        from pathlib import Path
        from pydantic import TypeAdapter
        from mm1_pipeline.config.ingest import IngestConfig
        from mm1_pipeline.corpus.ingest import ingest
        config = TypeAdapter(IngestConfig).validate_python(json.loads(sys.argv[1]))
        report = ingest(config, Path(sys.argv[2]))
        print(report["totals"]["kept"], "pandas" in sys.modules)
    """
    pairs = {"kind": "caption", "format": "image_parquet", "path": str(tmp_path / "pairs.parquet")}
    documents = {
        "kind": "text",
        "format": "jsonl",
        "path": str(tmp_path / "texts.jsonl"),
        "text_column": "text",
        "text": {"defaults": False},
    }
    config = json.dumps({"sources": {"pairs": pairs, "texts": documents}})
    command = [sys.executable, "-c", textwrap.dedent(program), config, str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["6", "False"], finished.stderr
