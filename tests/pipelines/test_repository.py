"""What the repository promises beside its code: links that lead somewhere, lists that are whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("data/sample/*.md"),
        *ROOT.glob("plugins/*/*.md"),
    ]
)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_of_documents_lead_to_files_and_headings(name):
    path = ROOT / name
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in _LINK.findall(text):
        place, _, heading = link.partition("#")
        if "://" in place or place.startswith("mailto:"):
            continue
        target = (path.parent / place) if place else path
        assert target.exists(), f"{name}: {link}"
        if heading:
            lines = target.read_text(encoding="utf-8").splitlines()
            assert heading in {_anchor(line) for line in lines if line.startswith("#")}, link


def _anchor(line: str) -> str:
    """As code hosts make it of a heading: small letters, no signs, hyphens for spaces."""
    words = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
    return words.replace(" ", "-")


def test_every_decision_has_a_number_a_date_a_status_and_a_row():
    index = (ROOT / "docs/adr/README.md").read_text(encoding="utf-8")
    pages = sorted((ROOT / "docs/adr").glob("0*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        title, _, state = page.read_text(encoding="utf-8").splitlines()[:3]
        number, name = re.fullmatch(r"# ADR (\d+): (.+)", title).groups()
        date, status = re.fullmatch(r"(\d{4}-\d\d-\d\d), (\w.*)\.", state).groups()
        assert int(number) == int(page.name[:4])
        assert f"| [{number}]({page.name}) | {date} | {status} | {name} |" in index


def test_recipes_are_files_and_one_recipe():
    links = [path for path in (ROOT / "conf").rglob("*") if path.is_symlink()]
    assert not links, "a checkout on Windows makes text files of links"
    recipe = (ROOT / "conf/mm1_3b/parameters.yml").read_bytes()
    for folder in (ROOT / "conf").glob("mm1_*"):
        assert (folder / "parameters.yml").read_bytes() == recipe, (
            f"{folder.name}: copy conf/mm1_3b/parameters.yml; sizes stand in globals.yml"
        )
