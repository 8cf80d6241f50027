"""Whatever `download` stores, `ingest` reads: one table of formats and suffixes for both."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from mm1_pipeline.config.download import DownloadConfig
from mm1_pipeline.config.ingest import ImageRules, IngestConfig, RecordKind, SourceConfig
from mm1_pipeline.config.ingest import SourceFormat as Format
from mm1_pipeline.corpus.download.failures import Failed
from mm1_pipeline.corpus.download.fetch import FetchedImage, Fetcher
from mm1_pipeline.corpus.download.shards import ListedImage, ShardWriter
from mm1_pipeline.corpus.images import FORMATS, RejectedImage
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import read_records

NUM_PILLOW_FORMATS = 10


def encode(number: int, kind: str) -> bytes | None:
    """A picture in one of Pillow's formats, None where it writes no such pictures."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 11, 3), np.uint8)
    image = Image.fromarray(pixels).resize((220, 180))
    more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **more)
    except (OSError, ValueError, KeyError, NotImplementedError):
        return None
    return buffer.getvalue()


def test_all_that_pillow_writes_is_stored_and_read_or_refused(tmp_path: Path) -> None:
    Image.init()
    tried = {kind: encode(number, kind) for number, kind in enumerate(sorted(Image.SAVE))}
    written = {kind: data for kind, data in tried.items() if data}
    assert len(written) > NUM_PILLOW_FORMATS
    fetcher = Fetcher(DownloadConfig(output=str(tmp_path)))
    shard = ShardWriter(tmp_path, 0, 100, "identity")
    stored, refused = [], []
    for kind, data in written.items():
        found: FetchedImage | Failed
        try:
            found = asyncio.run(fetcher._decode(data))
            stored.append(kind)
        except RejectedImage as error:
            found = Failed(error.reason, error.detail)
            refused.append(kind)
        shard.add(ListedImage(f"http://x/{kind}", f"a picture as {kind}"), found)
    statistics = shard.finish()
    assert set(stored) == {*FORMATS, "MPO"}
    assert statistics["status_dict"] == {"image_undecodable": len(refused)}
    source = SourceConfig(
        kind=RecordKind.CAPTION,
        format=Format.IMG2DATASET,
        path=str(tmp_path),
        images=ImageRules(),
    )
    report = ingest(IngestConfig(sources={"s": source}), tmp_path / "records")["sources"]["s"]
    assert report["kept"] == report["read"] == len(stored), report
    kept = {record.metadata["key"]: record for record in read_records(tmp_path / "records", "s")}
    for row in pq.read_table(tmp_path / "00000.parquet").to_pylist():
        if row["status"] == "success":
            (image,) = kept[row["key"]].images
            assert image.bytes == written[row["url"].removeprefix("http://x/")]
            assert (image.width, image.height) == (220, 180)
