"""What the pages of the three sample archives give: titles, images in their order, texts.

After a meant change of extraction, `python tests/golden/warc/test_warc_golden.py` records anew;
the difference in pages.json is then looked at.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mm1_pipeline.config.ingest import ReaderLimits, RecordKind, SourceConfig, SourceFormat
from mm1_pipeline.corpus.readers.base import PassedOver, RawRecord, Source
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source

EXPECTED = Path(__file__).parent / "pages.json"
SAMPLE = Path(__file__).parents[3] / "data" / "sample" / "interleaved_warc"


def describe_pages() -> dict[str, dict]:
    config = SourceConfig(
        kind=RecordKind.INTERLEAVED, format=SourceFormat.WARC_HTML, path=str(SAMPLE)
    )
    pages = {}
    for item in read_source(Source("web", config, open_files(config), ReaderLimits())):
        if isinstance(item, PassedOver):
            continue
        assert isinstance(item, RawRecord), item
        texts = [segment.text or "" for segment in item.segments]
        order = "".join("i" if segment.text is None else "t" for segment in item.segments)
        pages[item.key] = {
            "title": item.metadata["title"],
            "order": order,
            "images": [(image.url or "").rsplit("/", 1)[-1] for image in item.images],
            "characters": sum(map(len, texts)),
            "sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16],
        }
    return pages


def test_pages_of_the_sample_give_what_they_gave():
    if not SAMPLE.is_dir():
        pytest.skip("the embedded sample is not checked out")
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    found = describe_pages()
    assert found.keys() == expected.keys()
    for key, page in found.items():
        assert page == expected[key], key
    assert {key.split("/")[0] for key in found} == {
        "gimp_manual",
        "opencv_tutorials",
        "skimage_gallery",
    }


if __name__ == "__main__":
    content = json.dumps(describe_pages(), ensure_ascii=False, indent=1)
    EXPECTED.write_text(content + "\n", encoding="utf-8")
