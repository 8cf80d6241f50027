"""Own frames on two ways through the code; `house.py --walk` runs it.

    PYTHONPATH=<checkout>/src python benchmarks/_house_walk.py

Prints a JSON line: of `MM1.forward` the own functions on the stack when the attention kernel is
called with a vision encoder's queries and with a decoder's, the deepest of its layers; of one page
in a web archive the deepest stack of own functions, and how many different ones were called, while
it is read to a record and while that record is packed into a shard. Torch's and Python's own frames
do not count. It needs nothing but the package, whichever checkout it is of, and computes on a CPU.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from PIL import Image

import mm1_pipeline

PACKAGE = str(Path(str(mm1_pipeline.__file__)).parent)


def own_frames(frame: FrameType | None) -> Iterator[str]:
    """Names of the package's functions on a stack, the innermost first."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            yield f"{Path(code.co_filename).stem}.{code.co_qualname}"
        frame = frame.f_back


def walk(action: Callable[[], object]) -> dict[str, int]:
    """Depth of the deepest own stack of an action, and its different own functions."""
    deepest, functions = 0, set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal deepest
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            names = list(own_frames(frame))
            deepest = max(deepest, len(names))
            functions.update(names)

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return {"deepest": deepest, "functions": len(functions)}


def walk_pixels() -> dict[str, int]:
    """Own functions from `MM1.forward` to the kernel, both ends included, by part."""
    from mm1_pipeline.config.model import ConnectorConfig, DecoderConfig, MM1Config, VisionConfig
    from mm1_pipeline.models.initialization import build_model

    config = MM1Config(
        vision=VisionConfig(
            image_size=16, patch_size=4, d_model=32, num_layers=2, num_heads=2, d_ff=48
        ),
        connector=ConnectorConfig(num_tokens=4, num_blocks=1, num_heads=4),
        decoder=DecoderConfig(
            vocab_size=64, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=48
        ),
    )
    model = build_model(config, 3, seed=0)
    found: dict[str, int] = {}
    kernel = torch.nn.functional.scaled_dot_product_attention

    def noted(*arguments: Any, **options: Any) -> torch.Tensor:
        names = list(own_frames(sys._getframe(1)))
        part = "encoder" if any(name.startswith("vit.") for name in names) else "decoder"
        found[part] = max(found.get(part, 0), len(names))
        return kernel(*arguments, **options)

    torch.nn.functional.scaled_dot_product_attention = noted
    try:
        ids = torch.tensor([[1, *[3] * 4, 5, 6, 7]])
        places, borders = torch.arange(8)[None], torch.tensor([0, 8], dtype=torch.int32)
        model(ids, places, borders, torch.rand(1, 3, 16, 16), ids)
    finally:
        torch.nn.functional.scaled_dot_product_attention = kernel
    return found


def walk_record(folder: Path) -> dict[str, dict[str, int]]:
    """A page of a web archive to a record, and the record to a shard."""
    from pydantic import TypeAdapter

    from mm1_pipeline.config.ingest import IngestConfig
    from mm1_pipeline.config.shard import (
        ImageTransform,
        PackingConfig,
        ShardConfig,
        TokenizerConfig,
    )
    from mm1_pipeline.corpus.ingest import ingest
    from mm1_pipeline.corpus.records import RecordKind
    from mm1_pipeline.streams.shards import write_shards
    from mm1_pipeline.streams.tokenizer import train_tokenizer

    words = " ".join(f"word{n % 7} of the page number {n}" for n in range(80))
    page = f'<html><body><p>{words}</p><img src="/a.png"><p>{words}</p></body></html>'
    image = io.BytesIO()
    Image.effect_noise((200, 160), 90).convert("RGB").save(image, "PNG")
    raw = folder / "raw"
    raw.mkdir()
    bodies = {"page": ("text/html", page.encode()), "a.png": ("image/png", image.getvalue())}
    with (raw / "a.warc").open("wb") as archive:
        for name, (content_type, body) in bodies.items():
            payload = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode() + body
            head = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://x/{name}\r\n"
                f"WARC-Date: 2020-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{name}>\r\n"
                "Content-Type: application/http; msgtype=response\r\n"
            )
            archive.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode())
            archive.write(payload + b"\r\n\r\n")
    rules = {"text": {"defaults": False}, "deduplication": {"near": None}}
    source = {"kind": "interleaved", "format": "warc_html", "path": str(raw), "split": "train"}
    config = TypeAdapter(IngestConfig).validate_python(
        {"sources": {"web": {**source, **rules}}, "num_workers": 1}
    )
    read = walk(lambda: ingest(config, folder / "records"))
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=300), [words], folder / "tokenizer")
    kinds = {"web": RecordKind.INTERLEAVED}
    packing = PackingConfig(sequence_length=64, image_tokens=4)
    shard = ShardConfig(packing=packing, image=ImageTransform(size=16))
    packed = walk(
        lambda: write_shards(shard, folder / "records", tokenizer, kinds, folder / "shards")
    )
    return {"read": read, "packed": packed}


def main() -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"pixel_values": walk_pixels(), "record": walk_record(Path(folder))}))


if __name__ == "__main__":
    main()
