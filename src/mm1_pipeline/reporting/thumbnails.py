"""Small copies of images, to stand inside the page."""

from __future__ import annotations

import base64
import io

from PIL import Image

from mm1_pipeline.corpus.images import RejectedImage, open_image

MAX_SIDE = 208
"""Longer side in pixels: twice the size on the page, for sharp screens."""
_QUALITY = 88


def thumbnail_uri(data: bytes) -> str:
    """An image as a data URI, decoded and encoded anew so that only pixels are passed on.

    Args:
        data: the encoded image.

    Returns:
        The URI; empty where the image cannot be decoded, so that one bad image costs no page.
    """
    try:
        image = open_image(data)
    except RejectedImage:
        return ""
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Full colour resolution: flat shapes would get coloured fringes.
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
