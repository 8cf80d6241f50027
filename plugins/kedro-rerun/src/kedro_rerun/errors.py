"""The one error that users of this package can mend, and how its texts speak.

Of unknown names they tell the nearest; of addresses they leave out what lets in.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Collection, Iterable
from typing import Any

_USERINFO = re.compile(r"(//)[^/?#@\s'\"]*+@(?:[^/?#@\s'\"]*+@)*+")
_SECRET = re.compile(
    r"([?&;][\w.-]{0,60}?(?:token|key|secret|signature|sig|passw(?:or)?d|pwd|auth|credential"
    r"|session)[\w.-]{0,20}=)[^&;#\s'\"]+",
    re.IGNORECASE,
)


class StalenessError(ValueError):
    """Something that a user can mend; the text says what was found and how to mend it."""


def is_mended_by_user(
    error: BaseException, kinds: tuple[type[Exception], ...], packages: Collection[str]
) -> bool:
    """Whether an error says what its user has to mend: some code of the project raised it to.

    Args:
        error: What was raised.
        kinds: Of such errors.
        packages: The project's; a library's error of the same kind may be anybody's fault.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, kinds):
        return False
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] in packages


def unknown_name(what: str, found: str, allowed: Iterable[str], hint: str = "") -> str:
    """Says that a name is not known, which one is nearest, and which there are.

    Args:
        what: what the name was given for, for instance `--env`.
        found: what the user gave, misspelt perhaps.
        allowed: names that can be given.
        hint: said in place of the nearest name.
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(found, names, n=1)
    nearest = f"did you mean {close[0]!r}? There are" if close else "there are"
    return f"{what}: found {found!r}; {hint or nearest}: {', '.join(names) or 'none'}."


def hide_secrets(error: BaseException) -> None:
    """Takes them out of the texts of an error, and of those that it came from, in place."""
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        with contextlib.suppress(AttributeError, TypeError):
            found.args = tuple(_hidden(value) for value in found.args)
        names = (
            *vars(found),
            *(("filename", "filename2", "strerror") * isinstance(found, OSError)),
        )
        for name in names:
            with contextlib.suppress(AttributeError, TypeError):
                setattr(found, name, _hidden(getattr(found, name)))
        waiting += [cause for cause in (found.__cause__, found.__context__) if cause is not None]
        if isinstance(found, BaseExceptionGroup):
            waiting += found.exceptions


def _hidden(value: Any) -> Any:
    if isinstance(value, list):  # The notes of an error.
        return [_hidden(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """A text in whose addresses no user name, password or token is left to read.

    Args:
        text: an address, or a message that may hold some.
    """
    if "//" in text:
        text = _USERINFO.sub(r"\1***@", text)
    return _SECRET.sub(r"\1***", text)
