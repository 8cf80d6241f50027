"""Parameters of `synthesize`: a second caption for the same images."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from kedro_rerun.errors import without_secrets

from mm1_pipeline.config._base import (
    Count,
    Seconds,
    Share,
    Tries,
    Workers,
    bounds,
    check_order,
    input_path,
    operational,
    parameters,
)

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
    max_tokens: Count = 96
    temperature: Annotated[float, bounds(ge=0, le=100)] = 0.0
    total_seconds: Seconds = 60.0
    """Time for one answer."""
    num_retries: Tries = 4
    """Further tries after a time-out, a broken connection or an answer of 429 or 5xx."""
    concurrency: Workers = operational(default=8)
    """Captions that are asked for at once."""

    def __post_init__(self) -> None:
        if without_secrets(self.base_url) != self.base_url:
            raise ValueError(
                f"base_url: found {without_secrets(self.base_url)!r}, an address with a key in it, "
                "which would be stored with the parameters; name an environment variable that "
                "holds it as key_variable."
            )
        if not re.match(r"https?://[^/@]+", self.base_url):
            raise ValueError(
                f"base_url: found {self.base_url!r}, expected http:// or https:// and a host."
            )


@parameters
class LocalModelConfig:
    """A model of this project, as `pretrain` or `sft` leave it."""

    checkpoint: str | None = input_path(default=None)
    """Folder of model.safetensors and config.json."""
    tokenizer: str | None = input_path(default=None)
    """Its tokenizer.json, or the folder of it."""
    max_new_tokens: Count = 48
    batch_size: Count = operational(default=16)


@parameters
class CaptionerConfig:
    """A model of this project that says what an image shows, as `pretrain`, `upcycle` or `sft`
    leaves it.
    """

    checkpoint: str | None = input_path(default=None)
    """Folder of model.safetensors and config.json. A copy outside of the data root stays, whatever
    a later run trains or removes."""
    tokenizer: str | None = input_path(default=None)
    """Its tokenizer.json, or the folder of it."""
    shards: str | None = input_path(default=None)
    """The shards.json of what it was trained on, which says how images were shown; null shows an
    image as one padded square."""
    style: Literal["plain", "chat"] = "plain"
    """`plain`: the caption follows the image, as in pre-training. `chat`: the image and a request,
    as `sft` has learned them."""
    prompt: str | None = None
    """What follows the image; null is nothing, and in a chat the request for one sentence."""
    max_new_tokens: Count = 48
    batch_size: Count = operational(default=16)


@parameters
class TextReaderConfig:
    """What is taken over of the text in an image; needs the extra `ocr`. Our choice."""

    min_confidence: Share = 0.8
    """Lines of which the reader is less sure are left out, 0 to 1."""
    min_characters: Count = 2
    """Lines with fewer letters and digits are left out: a drawn circle is read as an O."""
    max_characters: Count = 200
    """Length at which the text is cut, between words."""

    def __post_init__(self) -> None:
        check_order(self, ("min_characters", "max_characters"))


Concept = Literal["colours", "shape", "regions", "text", "caption"]


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
    concepts: tuple[Concept, ...] = ("colours", "shape", "regions")
    """What is detected in an image and given to the writer, in this order: measurements of its
    pixels, the text in it (`text`), what a model says of it (`caption`)."""
    text: TextReaderConfig = TextReaderConfig()
    captioner: CaptionerConfig = CaptionerConfig()
    instruction: str = DEFAULT_INSTRUCTION
    """Prompt of both kinds of models."""
    endpoint: EndpointConfig = EndpointConfig()
    local: LocalModelConfig = LocalModelConfig()
    max_characters: Count = 600
    """Length above which an answer is rejected."""
    max_records: Count | None = None
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
        captioner = self.captioner
        if "caption" in self.concepts and not (captioner.checkpoint and captioner.tokenizer):
            raise ValueError(
                "captioner: found no checkpoint or no tokenizer, which the concept 'caption' needs."
            )
        if len(set(self.concepts)) < len(self.concepts):
            raise ValueError(f"concepts: found {list(self.concepts)}, expected each name once.")
