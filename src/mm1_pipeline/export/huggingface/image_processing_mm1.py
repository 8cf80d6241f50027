"""Pictures to pixel values."""

# pyright: reportIncompatibleMethodOverride=false
# The signatures are those that transformers documents for such classes, not those it writes.

from __future__ import annotations

import base64
import binascii
import io
import os
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from transformers import BaseImageProcessor, BatchFeature

from mm1_pipeline.config.shard import ImageTransform, SubImageConfig
from mm1_pipeline.corpus.containers import strip_metadata
from mm1_pipeline.corpus.pixels import exif_orientation, to_rgb, turn_upright
from mm1_pipeline.export.huggingface.parameters import build
from mm1_pipeline.streams.images import to_pixel_values
from mm1_pipeline.streams.sub_images import decompose

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""Formats of files that are tried: those of training."""

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_CHANNEL_COUNTS = (3, 4, 1, 2)  # in the order in which they are looked for
_URL_TIMEOUT_SECONDS = 20


class MM1ImageProcessor(BaseImageProcessor):
    """Makes each image sub-images of the encoder's size (one, or an overview and crops).

    Args:
        transform: the fields of `ImageTransform`.
        sub_images: the fields of `SubImageConfig`.
        **kwargs: what transformers keeps in every processor.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012  the name that transformers reads

    def __init__(
        self,
        transform: dict[str, Any] | None = None,
        sub_images: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.transform = transform
        self.sub_images = sub_images

    def preprocess(
        self,
        images: Any,
        return_tensors: Any = None,
        input_data_format: Any = None,
        **_: Any,
    ) -> BatchFeature:
        """Pixel values of some images, each as training would have shown it.

        Args:
            images: one, or (nested) lists of them; see `read_images`.
            return_tensors: `pt` or `np`.
            input_data_format: `channels_first` or `channels_last`, of arrays; found from their
                shape if not given.

        Returns:
            pixel_values float32[N, 3, S, S], the sub-images of all images; num_sub_images
            int64[images], those of each.

        Raises:
            ValueError: something is no image, or nothing says what its values mean.
        """
        assert self.transform is not None, "preprocessor_config.json has no transform"
        transform = build(ImageTransform, self.transform)
        sub_images = build(SubImageConfig, self.sub_images or {})
        decomposed = [
            decompose(image, transform, sub_images)
            for image in read_images(images, input_data_format)
        ]
        num_sub_images = torch.tensor([len(each) for each in decomposed], dtype=torch.int64)
        return BatchFeature(
            {
                "pixel_values": to_pixel_values(
                    [one for each in decomposed for one in each], transform
                ),
                "num_sub_images": num_sub_images,
            },
            tensor_type=return_tensors,
        )

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, *args, **kwargs)


def read_images(images: Any, input_data_format: Any = None) -> Iterator[Image.Image]:
    """All images in mode RGB, upright and on white, by the rules that training data went through.

    Args:
        images: a PIL image of any mode; an array or tensor (grey [H, W], or 1 to 4 channels
            first or last; integers of 0..255 or 0..65535, floats of 0..1 or those ranges; with
            more dimensions several images); the path of a file; its bytes; an open file; an
            http(s), file or data URL; base64 data; or (nested) lists of these.
        input_data_format: `channels_first` or `channels_last`, of arrays.

    Raises:
        ValueError: something is none of these, or nothing says what its values mean.
    """
    if isinstance(images, Image.Image):
        image = to_rgb(images)
        # Read when the pixels are: a PNG may state it behind them.
        yield turn_upright(image, exif_orientation(images.info.get("exif")))
    elif isinstance(images, (str, bytes, bytearray, os.PathLike)) or hasattr(images, "read"):
        yield _decode(_read(images), images)
    elif isinstance(images, (list, tuple)):
        for each in images:
            yield from read_images(each, input_data_format)
    elif hasattr(images, "__array__"):
        if isinstance(images, torch.Tensor):
            images = images.detach().cpu()
            images = (images.float() if images.is_floating_point() else images).numpy()
        yield from _from_array(np.asarray(images), input_data_format)
    else:
        raise ValueError(
            f"Found {type(images).__name__} as an image, expected a PIL image, an array, a path, "
            "bytes, an open file, a URL, base64 data, or a list of these."
        )


def _read(source: Any) -> bytes:
    """The bytes of an encoded image."""
    if isinstance(source, (bytes, bytearray)):
        return bytes(source)
    if hasattr(source, "read"):
        return source.read()
    if not isinstance(source, str):
        return Path(source).read_bytes()
    scheme, _, rest = source.partition(":")
    scheme = scheme.lower()
    if scheme in ("http", "https", "file") and rest.startswith("/"):
        request = urllib.request.Request(source, headers={"User-Agent": "Mozilla/5.0 (mm1)"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_URL_TIMEOUT_SECONDS) as response:  # noqa: S310
                return response.read()
        except (OSError, HTTPException, ValueError) as error:
            raise ValueError(
                f"Found no image at {source} ({error}). Give its file or its bytes instead."
            ) from error
    if scheme != "data" and os.path.isfile(source):
        return Path(source).read_bytes()
    kind, _, payload = rest.partition(",") if scheme == "data" else (";base64", "", source)
    if not kind.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(payload)
    encoded = "".join(urllib.parse.unquote(payload).split())
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        return b""


def _decode(data: bytes, source: Any) -> Image.Image:
    lean = strip_metadata(data)
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(lean.data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # damaged metadata is no news
            orientation = lean.orientation
            if orientation is None:
                orientation = exif_orientation(image.info.get("exif"))
            return turn_upright(to_rgb(image), orientation)
    except UnidentifiedImageError:
        if isinstance(source, str):  # a word that stands where an image should may be base64 too
            raise ValueError(
                f"Found {source[:80]!r} as an image, but no such file. Expected the path of a file,"
                " an http(s), file or data URL, or base64 data, of an image in "
                f"{', '.join(FORMATS)}."
            ) from None
        raise ValueError(
            f"Found data that start with {data[:8].hex(' ') or 'nothing'}, expected an image in "
            f"{', '.join(FORMATS)}."
        ) from None


def _from_array(array: np.ndarray, data_format: Any) -> Iterator[Image.Image]:
    if array.ndim > 3:
        for each in array:
            yield from _from_array(each, data_format)
        return
    if array.ndim < 2 or not array.size:
        raise ValueError(
            f"Found an array of shape {list(array.shape)} as an image, expected [H, W], [H, W, C] "
            "or [C, H, W]."
        )
    if array.ndim == 2:
        array = array[..., None]
    elif _channels_first(array.shape, data_format):
        array = np.moveaxis(array, 0, -1)
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    if array.dtype != np.uint8:
        array = _to_bytes(array)
    mode = _MODES[array.shape[-1]]
    channels = np.ascontiguousarray(array[..., 0] if mode == "L" else array)
    yield to_rgb(Image.fromarray(channels))


def _channels_first(shape: tuple[int, ...], data_format: Any) -> bool:
    if data_format is not None:
        return str(getattr(data_format, "value", data_format)) == "channels_first"
    for count in _CHANNEL_COUNTS:
        if count in (shape[0], shape[-1]):
            return shape[0] == count
    raise ValueError(
        f"Found an array of shape {list(shape)} as an image, expected 1 to 4 channels in the first "
        "place or the last."
    )


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """uint8[H, W, C] of other types: all channels as one tall grey, so that one range is found."""
    height, width, count = array.shape
    tall = np.moveaxis(array, -1, 0).reshape(count * height, width)
    if tall.dtype.kind == "f":
        tall = tall.astype(np.float32)
    elif tall.dtype != np.uint16:
        limits = np.iinfo(np.int32)
        tall = tall.clip(limits.min, limits.max).astype(np.int32)
    grey = np.asarray(to_rgb(Image.fromarray(tall)))[..., 0]
    return np.moveaxis(grey.reshape(count, height, width), 0, -1)
