"""What the repository promises beside its code: links that lead somewhere, lists that are whole."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
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


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_of_documents_uses_what_is_there(name):
    """Every name is defined further up on the page; of ours, every import and keyword exists."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL
    )
    tree = ast.parse("\n".join(blocks))
    ours: dict[str, object] = {}
    defined = set(dir(builtins))
    for statement in tree.body:
        nodes = list(ast.walk(statement))
        imported = [node for node in nodes if isinstance(node, ast.ImportFrom | ast.Import)]
        for node in imported:
            defined |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mm1_pipeline"):
                module = importlib.import_module(node.module or "")
                ours |= {alias.name: getattr(module, alias.name) for alias in node.names}
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        stored |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        stored |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        assert not used - defined - stored, f"{name}: undefined {sorted(used - defined - stored)}"
        defined |= stored
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            known = ours.get(call.func.id) if isinstance(call.func, ast.Name) else None
            if callable(known):
                taken = inspect.signature(known).parameters
                named = {keyword.arg for keyword in call.keywords if keyword.arg}
                assert named <= set(taken), f"{name}: {ast.unparse(call)}"
