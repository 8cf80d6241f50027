"""What each hand-made page gives: a page a rule, its expectation beside it as JSON.

A page that comes to give something else is looked at by a person, who writes the new expectation.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm1_pipeline.corpus.html import Image, extract_document

FOLDER = Path(__file__).parent
PAGES = sorted(path.stem for path in FOLDER.glob("*.html"))
URL = "http://site.example/folder/page.html"


@pytest.mark.parametrize("name", PAGES)
def test_page_gives_what_is_expected(name):
    html = (FOLDER / f"{name}.html").read_text(encoding="utf-8")
    document = extract_document(html, URL)
    found = [
        {"image": list(part.urls)} if isinstance(part, Image) else {"text": part.text}
        for part in document.parts
    ]
    expected = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert found == expected


def test_every_page_has_its_expectation_and_there_are_enough():
    assert len(PAGES) >= 20
    assert {path.stem for path in FOLDER.glob("*.json")} == set(PAGES)
