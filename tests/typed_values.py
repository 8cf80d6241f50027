"""Values whose type only a test knows, in words that the type checker reads as well."""

from __future__ import annotations

import io
from typing import Any, TypeVar

from PIL import Image
from pydantic import TypeAdapter
from rich.console import Console

T = TypeVar("T")


def entry(group: type[T], **values: Any) -> T:
    """Parameters as a configuration file gives them: plain values, completed by a task file."""
    return TypeAdapter(group).validate_python(values)


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    """The colour at a place of an image with several channels."""
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


def shown_on(console: Console) -> str:
    """All that a console whose file is a StringIO has shown."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def not_none(value: T | None) -> T:
    """A value that must be there."""
    assert value is not None
    return value
