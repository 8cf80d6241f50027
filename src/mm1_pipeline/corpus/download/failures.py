"""Why an image was not fetched."""

from __future__ import annotations

from enum import StrEnum


class Failure(StrEnum):
    """Reasons beside those of images (`ground.rejects.Reason`)."""

    URL_MISSING = "url_missing"
    URL_INVALID = "url_invalid"
    URL_SCHEME = "url_scheme"
    """Neither http nor https."""
    PRIVATE_ADDRESS = "private_address"
    """An address of this machine or its networks."""
    NAME_UNKNOWN = "name_unknown"
    TIMEOUT_CONNECT = "timeout_connect"
    TIMEOUT_TOTAL = "timeout_total"
    CONNECTION = "connection"
    """Refused, reset, or ended before the body did."""
    HOST_RETIRED = "host_retired"
    """Not asked: the host failed `host_failures` times in a row, and is left for this run."""
    TLS = "tls"
    HTTP_STATUS = "http_status"
    HTTP_PROTOCOL = "http_protocol"
    """An answer that is no HTTP, or in a compression that was not asked for."""
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_MANY_BYTES = "too_many_bytes"
    CONTENT_TYPE = "content_type"
    """An answer that calls itself something other than an image."""
    OPTED_OUT = "opted_out"
    """`X-Robots-Tag` asks not to be collected."""


class Failed(Exception):  # noqa: N818 - an outcome, counted as such
    """An image that is not kept.

    Args:
        reason: What is counted: a Failure or a Reason.
        detail: What was found, for a person.
        is_passing: Whether another try may succeed.
    """

    def __init__(self, reason: StrEnum, detail: str = "", *, is_passing: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason, self.detail, self.is_passing = reason, detail, is_passing
