"""The server that all tests of downloads ask."""

from download_server import server

__all__ = ["server"]
