"""Addresses as they may be shown."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(//)[^/?#@\s'\"]*+@(?:[^/?#@\s'\"]*+@)*+")
_SECRET = re.compile(
    r"([?&;][\w.-]{0,60}?(?:token|key|secret|signature|sig|passw(?:or)?d|pwd|auth|credential"
    r"|session)[\w.-]{0,20}=)[^&;#\s'\"]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text in whose addresses no user name, password or token is left to read.

    Args:
        text: an address, or a message that may hold some.
    """
    if "//" in text:
        text = _USERINFO.sub(r"\1***@", text)
    return _SECRET.sub(r"\1***", text)
