"""Measures how a code base reads: sizes of files and functions, names, comments, imports.

    python benchmarks/house.py                        # src/ of this checkout
    python benchmarks/house.py src ../torchtitan/torchtitan ../kedro/kedro
    python benchmarks/house.py --walk ../before/src   # own frames on two ways through a checkout

One column a folder, beside the range of six code bases of this field and of tools like this one
(torchtitan without its experiments, nanochat, streaming, Kedro without its templates, datatrove,
big_vision but two files). Only `.py` files are read, none is run but with --walk; tests, vendored
code and empty files are left out. The figures say where to look, they are no goal: a page that
reads worse with a better figure is a loss.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import statistics
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
SHORT = 5
LEFT_OUT = {"tests", "test", "vendor", "_vendor", "third_party", "build", ".venv"}


@dataclass
class House:
    """What is counted over all files of one folder."""

    files: int = 0
    lines: int = 0
    import_lines: int = 0
    comment_lines: int = 0
    function_lines: list[int] = field(default_factory=list)
    public_names: int = 0
    definitions: int = 0
    documented: int = 0
    private_functions: int = 0
    short_with_one_use: int = 0

    def add(self, text: str) -> None:
        """Counts one file."""
        tree = ast.parse(text)
        self.files += 1
        self.lines += text.count("\n")
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self.comment_lines += sum(token.type == tokenize.COMMENT for token in tokens)
        uses = Counter(_names_used(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.import_lines += (node.end_lineno or node.lineno) - node.lineno + 1
            if isinstance(node, Function):
                self.function_lines.append((node.end_lineno or node.lineno) - node.lineno + 1)
                if node.name.startswith("_") and not node.name.endswith("__"):
                    self.private_functions += 1
                    short = self.function_lines[-1] <= SHORT
                    self.short_with_one_use += short and uses[node.name] == 1
        for definition in _public_definitions(tree):
            self.public_names += definition in tree.body
            self.definitions += 1
            self.documented += ast.get_docstring(definition) is not None

    def rows(self) -> dict[str, str]:
        """Figures by their names, as they are printed."""
        thousands = self.lines / 1000
        return {
            "lines": f"{self.lines:,}",
            "files": f"{self.files:,}",
            "lines a file": f"{self.lines / self.files:.0f}",
            "lines a function, median": f"{statistics.median(self.function_lines):.0f}",
            "functions per 1,000 lines": f"{len(self.function_lines) / thousands:.0f}",
            "public names per 1,000 lines": f"{self.public_names / thousands:.0f}",
            "public definitions documented": _percent(self.documented, self.definitions),
            f"private, used once, {SHORT} lines or fewer": _percent(
                self.short_with_one_use, self.private_functions
            ),
            "comment lines per 100": f"{100 * self.comment_lines / self.lines:.1f}",
            "import lines": _percent(self.import_lines, self.lines, 1),
        }


ANCHORS = {
    "lines a file": "176 to 319",
    "lines a function, median": "11 to 17",
    "functions per 1,000 lines": "29 to 39",
    "public names per 1,000 lines": "10 to 21",
    "comment lines per 100": "4.2 to 15.7",
    "import lines": "2.3 to 4.6 %",
}
"""Of those six, measured with this script in November 2026; public names are those of modules."""


def measure(folder: Path) -> House:
    """Counts over all modules below a folder.

    Raises:
        SystemExit: There are none. One that is no Python of this version is left out, in words.
    """
    house = House()
    for path in sorted(folder.rglob("*.py")):
        if LEFT_OUT & set(path.relative_to(folder).parts) or not path.stat().st_size:
            continue
        try:
            house.add(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError) as error:
            print(f"Left out: {path}: {error}", file=sys.stderr)
    if not house.function_lines:
        raise SystemExit(f"{folder}: found no functions in .py files, expected a package.")
    return house


def _names_used(tree: ast.Module) -> Iterator[str]:
    """Names that are read, as themselves or as attributes; definitions do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr


def _public_definitions(tree: ast.Module) -> Iterator[Definition]:
    """Public functions and classes of a module, and public methods of those classes."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, Function) and not inner.name.startswith("_"):
                        yield inner


def _percent(part: int, whole: int, digits: int = 0) -> str:
    return f"{100 * part / max(whole, 1):.{digits}f} %"


def walk(source: Path) -> None:
    """Prints the own frames on two ways through a checkout of this project, in its own process."""
    program = Path(__file__).with_name("_house_walk.py")
    environment = {**os.environ, "PYTHONPATH": str(source.resolve())}
    told = subprocess.run(
        [sys.executable, str(program)], env=environment, check=True, capture_output=True, text=True
    )
    print(source, told.stdout.splitlines()[-1], sep="  ")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("src")])
    parser.add_argument("--walk", action="store_true", help="counts own frames instead (it runs)")
    options = parser.parse_args(arguments)
    folders = options.folders
    if options.walk:
        for folder in folders:
            walk(folder)
        return
    columns = {str(folder): measure(folder).rows() for folder in folders}
    width = max(len(name) for name in next(iter(columns.values())))
    widths = {name: max(len(name), 9) for name in (*columns, "six others")}
    print(" " * width, *(name.rjust(size) for name, size in widths.items()), sep="  ")
    for row in next(iter(columns.values())):
        cells = [*(column[row] for column in columns.values()), ANCHORS.get(row, "")]
        print(
            row.ljust(width),
            *(cell.rjust(size) for cell, size in zip(cells, widths.values(), strict=True)),
            sep="  ",
        )


if __name__ == "__main__":
    main()
