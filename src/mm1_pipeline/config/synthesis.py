"""Parameters of `synthesize`: a second caption for the same images."""

from __future__ import annotations

import re
from typing import Literal

from mm1_pipeline.config._base import input_path, operational, parameters

DEFAULT_INSTRUCTION = (
    "Rewrite the alt text of an image as one fluent, factual sentence that uses what was seen in "
    "the image. Add nothing else.\nAlt text: {alt_text}\nSeen: {concepts}\nSentence:"
)
"""Our choice; the paper names VeCap and gives no prompt."""


@parameters
class EndpointConfig:
    """A language model behind an OpenAI-compatible `/chat/completions`."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address up to and without `/chat/completions`."""
    model: str = "default"
    """Name by which the endpoint knows the model."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; one that is not set sends none."""
    max_tokens: int = 96
    temperature: float = 0.0
    total_seconds: float = 60.0
    """Time for one answer."""
    num_retries: int = 4
    """Further tries after a time-out, a broken connection or an answer of 429 or 5xx."""
    concurrency: int = operational(default=8)
    """Captions that are asked for at once."""

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/@]+", self.base_url):
            raise ValueError(
                f"base_url: found {self.base_url!r}, expected http:// or https:// and a host."
            )
        if not 1 <= self.concurrency <= 1024:
            raise ValueError(f"concurrency: found {self.concurrency}, expected 1 to 1024.")


@parameters
class LocalModelConfig:
    """A model of this project, as `pretrain` or `sft` leave it."""

    checkpoint: str | None = input_path(default=None)
    """Folder of model.safetensors and config.json."""
    tokenizer: str | None = input_path(default=None)
    """Its tokenizer.json, or the folder of it."""
    max_new_tokens: int = 48
    batch_size: int = operational(default=16)


@parameters
class SynthesisConfig:
    """Parameters of the stage `synthesize`.

    Source: MM1, Data (VeCap: an LLM rewrites alt-text together with visual concepts; 7 % of the
    mixture's data). Writers, concepts and prompts are our choice.
    """

    sources: tuple[str, ...] = ()
    """Caption sources that get a second caption; none switches the stage off."""
    name: str = "captions_synthetic"
    """Source that holds them, for the mixture."""
    writer: Literal["template", "endpoint", "local"] = "template"
    """Who writes: fixed sentences, a model behind an endpoint, or a model of this project."""
    concepts: tuple[Literal["colours", "shape", "regions"], ...] = ("colours", "shape", "regions")
    """What is detected in an image and given to the writer."""
    instruction: str = DEFAULT_INSTRUCTION
    """Prompt of both kinds of models."""
    endpoint: EndpointConfig = EndpointConfig()
    local: LocalModelConfig = LocalModelConfig()
    max_characters: int = 600
    """Length above which an answer is rejected."""
    max_records: int | None = None
    """Takes at most this many records of each source."""
    cache: str | None = operational(default=None)
    """SQLite file of answers by the hash of all they depend on; a rerun asks for none again."""

    def __post_init__(self) -> None:
        for field in ("{alt_text}", "{concepts}"):
            if field not in self.instruction:
                raise ValueError(f"instruction: found no {field} in it; the writer needs both.")
        if not self.name.isidentifier() or self.name in self.sources:
            raise ValueError(
                f"name: found {self.name!r}, expected letters, digits and underscores, and none "
                "of the sources."
            )
        if self.writer == "local" and not (self.local.checkpoint and self.local.tokenizer):
            raise ValueError(
                "local: found no checkpoint or no tokenizer, which the local writer needs."
            )
