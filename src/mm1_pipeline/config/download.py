"""Parameters of `download`: lists of image addresses to shards that `ingest` reads."""

from __future__ import annotations

from typing import Annotated, Literal

from mm1_pipeline.config._base import (
    Count,
    Seconds,
    Tries,
    Workers,
    bounds,
    extent,
    input_path,
    operational,
    parameters,
)
from mm1_pipeline.config.ingest import ImageRules

OPT_OUT_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
"""Words of `X-Robots-Tag` with which a server asks not to be collected."""


@parameters
class FetchLimits:
    """What one image may cost, and what a server may be asked. Our choice throughout."""

    connect_seconds: Seconds = 10.0
    """Time for an address to be found and a connection to be made."""
    total_seconds: Seconds = 30.0
    """Time for one request, its body included."""
    max_bytes: Count = 20_000_000
    """Size at which a body is cut off and the image refused."""
    max_redirects: Annotated[int, bounds(ge=0, le=100)] = 5
    num_retries: Tries = 1
    """Further tries after a time-out, a broken connection or an answer of 429 or 5xx."""
    host_failures: Count = extent(default=4)
    """Times in a row that a host may be unknown, unreachable or silent until it is retired: its
    other addresses fail without being asked."""
    connections_per_host: Workers = 2
    host_delay_seconds: Annotated[float, bounds(ge=0, le=3_600)] = 0.1
    """Time between the starts of two requests to a host."""
    allow_private_addresses: bool = False
    """Also fetches from this machine and its networks. Only for tests and for own servers: a list
    from the web could otherwise read what only this machine can reach."""


@parameters
class DownloadConfig:
    """Parameters of the stage `download`."""

    lists: str | None = input_path(default=None)
    """File, or folder of files, with a row an image or a document: Parquet; for images also TSV
    (CC3M, CC12M), for documents also JSON lines (MMC4). Any URL that fsspec opens."""
    kind: Literal["caption", "interleaved"] = "caption"
    """`caption`: a row is an image and its caption. `interleaved`: a row is a document that names
    its images, laid out as OBELICS and OmniCorpus do (`texts` and `images`) or as MMC4 does
    (`text_list` and `image_info`)."""
    output: str = extent()
    """Folder that gets the shards; read it with a source of format `img2dataset`, or
    `interleaved_parquet`."""
    url_column: str = "url"
    caption_column: str = "caption"
    images_per_shard: Count = 10_000
    documents_per_shard: Count = 1_000
    max_images_per_document: Count = 100
    """Images of a document that are fetched; those after them are counted as refused. MM1 drops
    documents with more than 30, but counts only what its other rules leave. Our choice."""
    max_images: Count | None = extent(default=None)
    """Takes at most this many rows; None takes all."""
    images: ImageRules = ImageRules(max_pixels=50_000_000)
    """Which images are kept; they are stored as they came."""
    limits: FetchLimits = FetchLimits()
    user_agent: str = "mm1-pipeline (image collection; honours X-Robots-Tag)"
    """What servers are told. Name a contact here before you fetch at scale."""
    opt_out_directives: tuple[str, ...] = OPT_OUT_DIRECTIVES
    """Words of `X-Robots-Tag` at which an image is left alone."""
    concurrency: Workers = operational(default=64)
    """Images that are fetched at once."""
