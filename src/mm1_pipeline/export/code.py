"""The model's own source, made to stand without this package.

An exported directory computes with the very code that trained the model: the modules that the
Hugging Face classes need are copied, imports between them made relative, and pydantic's
parameter groups replaced by plain dataclasses.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import mm1_pipeline

PACKAGE = "mm1_pipeline"
_HUGGINGFACE = f"{PACKAGE}.export.huggingface"
_REPLACED = {
    f"{PACKAGE}.config._base": f"{_HUGGINGFACE}.parameters",
}
_IMPORT = re.compile(rf"^(\s*)from ({PACKAGE}(?:\.\w+)+) import ", re.MULTILINE)
_HEADER = (
    "# Part of mm1-pipeline {version} (Apache-2.0), copied by its export. Change it there: this\n"
    "# copy is what the weights beside it were trained with.\n"
)


def auto_map() -> dict[str, str]:
    """Which class transformers takes for which of its own, as an exported config.json names it.

    The classes are imported, not named, so that staleness sees a change of their code.
    """
    from mm1_pipeline.export.huggingface.configuration_mm1 import MM1HFConfig
    from mm1_pipeline.export.huggingface.image_processing_mm1 import MM1ImageProcessor
    from mm1_pipeline.export.huggingface.modeling_mm1 import MM1ForConditionalGeneration
    from mm1_pipeline.export.huggingface.processing_mm1 import MM1Processor

    classes: dict[str, type] = {
        "AutoConfig": MM1HFConfig,
        "AutoModel": MM1ForConditionalGeneration,
        "AutoModelForCausalLM": MM1ForConditionalGeneration,
        "AutoModelForImageTextToText": MM1ForConditionalGeneration,
        "AutoModelForVision2Seq": MM1ForConditionalGeneration,  # its name before transformers 5
        "AutoImageProcessor": MM1ImageProcessor,
        "AutoProcessor": MM1Processor,
    }
    return {
        auto_class: f"{_flat_name(cls.__module__)}.{cls.__name__}"
        for auto_class, cls in classes.items()
    }


def write_code(directory: Path) -> list[str]:
    """Writes the modules that an exported model needs.

    Args:
        directory: gets a file a module.

    Returns:
        Names of the files.
    """
    entries = sorted({name.partition(".")[0] for name in auto_map().values()})
    modules = _closure([f"{_HUGGINGFACE}.{entry}" for entry in entries])
    names = {module: _flat_name(module) for module in modules}
    assert len(set(names.values())) == len(names), f"two modules of one name: {names}"
    for module, name in names.items():
        text = _HEADER.format(version=mm1_pipeline.__version__) + _relative(_source(module))
        if name in entries:
            text += _mentions(module)
        (directory / f"{name}.py").write_text(text, encoding="utf-8")
    return [f"{name}.py" for name in names.values()]


def _closure(entries: Iterable[str]) -> list[str]:
    """Modules of this package that the entries import, and they themselves."""
    found: dict[str, None] = {}
    waiting = list(entries)
    while waiting:
        module = _REPLACED.get(waiting[-1], waiting[-1])
        waiting.pop()
        if module not in found:
            found[module] = None
            waiting += _imported(module)
    return sorted(found)


def _imported(module: str) -> list[str]:
    imported = []
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            assert node.module is not None
            if _path(node.module).is_file():
                imported.append(node.module)
            else:  # a package, whose modules are imported
                imported += [f"{node.module}.{alias.name}" for alias in node.names]
    return imported


def _relative(source: str) -> str:
    """`from mm1_pipeline.a.b import c` becomes `from .a_b import c`."""
    lines = []
    for line in source.splitlines(keepends=True):
        if (found := _IMPORT.match(line)) is None:
            lines.append(line)
            continue
        indent, module = found.groups()
        rest = line[found.end() :]
        if _path(module).is_file():
            lines.append(f"{indent}from .{_flat_name(_REPLACED.get(module, module))} import {rest}")
        else:
            for name in rest.strip().split(", "):
                flat = _flat_name(f"{module}.{name}")
                lines.append(f"{indent}from . import {flat} as {name}\n")
    return "".join(lines)


def _mentions(entry: str) -> str:
    """Imports of all that an entry needs: transformers fetches what the entry's file names, but
    not what those files name in turn.
    """
    needed = [_flat_name(module) for module in _closure([entry]) if module != entry]
    lines = [f"from .{name} import __name__ as _{name}  # noqa: E402, F401\n" for name in needed]
    return "\n# Named for transformers, which brings the files that this one names.\n" + "".join(
        lines
    )


def _flat_name(module: str) -> str:
    return module.removeprefix(f"{_HUGGINGFACE}.").removeprefix(f"{PACKAGE}.").replace(".", "_")


def _source(module: str) -> str:
    return _path(module).read_text(encoding="utf-8")


def _path(module: str) -> Path:
    root = Path(mm1_pipeline.__file__).parent
    return root.joinpath(*module.split(".")[1:]).with_suffix(".py")
