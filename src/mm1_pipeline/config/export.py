"""Parameters of `export`: a trained model as a directory of Hugging Face's layout."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from mm1_pipeline.config._base import Count, parameters


class Layout(StrEnum):
    """Which class of transformers an exported directory is for."""

    OWN = "own"
    """This project's, whose code is exported too: every model it can train."""
    LLAVA = "llava"
    """transformers' own LlavaForConditionalGeneration, without any code: models of its shape."""


@parameters
class ExportConfig:
    """How a model is written for transformers."""

    layout: Layout = Layout.OWN
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the stored weights. float32 keeps every bit of the trained model."""
    max_shard_bytes: Count = 5_000_000_000
    """Size of a safetensors file above which another is begun; transformers' own value."""
    chat_template: str | None = None
    """Jinja template of conversations; None takes the one that SFT trains with."""
