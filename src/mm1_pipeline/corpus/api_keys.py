"""Keys of endpoints: read from the environment, sent in a header, and shown nowhere."""

from __future__ import annotations

import os

_SHORTEST = 12
"""Characters below which a key is a placeholder, such as vLLM's `EMPTY`, and no secret."""


class ApiKey:
    """The key of an endpoint.

    Args:
        variable: The environment variable that holds it; None, or one that is not set, is no key.

    Raises:
        ValueError: It holds what no header can.
    """

    def __init__(self, variable: str | None) -> None:
        self._variable = variable
        # A key out of a file ends in a line feed.
        self._key = os.environ.get(variable, "").strip() if variable else ""
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(
                f"{variable}: found an environment variable with line ends or signs beyond ASCII, "
                "expected the key of an endpoint."
            )

    def __bool__(self) -> bool:
        return bool(self._key)

    def __repr__(self) -> str:
        return f"ApiKey({self._variable!r})"

    def headers(self) -> dict[str, str]:
        """The header that carries the key; none without one."""
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def hide(self, text: str) -> str:
        """A text without the key: servers repeat in answers and errors what they were sent."""
        return text.replace(self._key, "***") if len(self._key) >= _SHORTEST else text
