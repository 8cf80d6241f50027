"""Nodes of `download`: lists of image addresses to raw shards."""

from __future__ import annotations

from typing import Any

from mm1_pipeline.config.download import DownloadConfig


def download_images(config: DownloadConfig) -> dict[str, Any]:
    """Fetches the listed images; what failed is counted and listed beside them."""
    from mm1_pipeline.corpus.download.download import download

    return download(config)
