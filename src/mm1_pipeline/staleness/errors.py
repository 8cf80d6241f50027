"""The one error that users of this package can mend."""

from __future__ import annotations


class StalenessError(ValueError):
    """Something that a user can mend; the text says what was found and how to mend it."""
