"""Models of this project write captions as a plain greedy loop over them would."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from kedro_rerun.code import CodeIndex
from kedro_rerun.parameters import flatten_parameters
from PIL import Image

from mm1_pipeline.config.model import (
    ConnectorConfig,
    ConnectorKind,
    DecoderConfig,
    MM1Config,
    VisionConfig,
)
from mm1_pipeline.config.shard import ImageTransform, TokenizerConfig
from mm1_pipeline.config.synthesis import CaptionerConfig, LocalModelConfig, SynthesisConfig
from mm1_pipeline.corpus.records import RecordImage
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest
from mm1_pipeline.evaluation.captioning.caption_writer import (
    LOCAL_VERSION,
    make_concept_sources,
    make_writer,
)
from mm1_pipeline.evaluation.captioning.local_models import LocalWriter, ModelCaptioner
from mm1_pipeline.ground.rejects import Reason, Rejected
from mm1_pipeline.models.checkpoint import WEIGHTS, save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.pipelines.synthesize.nodes import synthesize_captions
from mm1_pipeline.settings import SESSION_CLASS
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer
from typed_values import entry

MAX_NEW_TOKENS = 5
_LOUD = 20.0


@dataclass
class Trained:
    """A small model with random weights on disk."""

    folder: Path
    model: MM1
    tokenizer: Tokenizer

    @property
    def paths(self) -> dict[str, str]:
        names = {"checkpoint": "model", "tokenizer": "tokenizer"}
        return {name: str(self.folder / folder) for name, folder in names.items()}

    def greedy(self, ids: list[int], image_tokens: torch.Tensor | None = None) -> str:
        """What the model goes on with, every token computed anew from the start."""
        written: list[int] = []
        tokenizer = self.tokenizer
        with torch.inference_mode():
            for _ in range(MAX_NEW_TOKENS):
                logits = next_logits(self.model, ids + written, image_tokens)
                for never in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id):
                    logits[never] = -torch.inf
                token = int(logits.argmax())
                if token == tokenizer.eos_id:
                    break
                written.append(token)
        return tokenizer.decode(written).partition("\n")[0].strip()


def next_logits(
    model: MM1, ids: Sequence[int], image_tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits after a sequence of tokens, all of it computed anew."""
    cache = model.make_cache(1, len(ids))
    tokens = torch.tensor([list(ids)])
    embedded = model.decoder.embedding(tokens)
    if image_tokens is not None:
        embedded[tokens == model.image_token_id] = image_tokens
    hidden = model.forward_cached(embedded, torch.arange(len(ids))[None], cache)
    return model.logits(hidden[:, -1])[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=300), ["a red cat runs"] * 9, folder / "tokenizer"
    )
    config = MM1Config(
        vision=VisionConfig(
            image_size=16, patch_size=8, d_model=16, num_layers=1, num_heads=2, d_ff=32
        ),
        connector=ConnectorConfig(kind=ConnectorKind.AVERAGE_POOLING, num_tokens=4),
        decoder=DecoderConfig(
            vocab_size=tokenizer.vocab_size,
            d_model=16,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            d_ff=32,
        ),
    )
    model = build_model(config, tokenizer.image_id, seed=3).eval()
    with torch.no_grad():
        # Or every image would look the same to random weights, and every context.
        for name, weight in model.named_parameters():
            if name.startswith("connector") or "attention" in name:
                weight.mul_(_LOUD)
    save_model(model, folder / "model")
    return Trained(folder, model, tokenizer)


def test_the_local_writer_goes_on_where_the_instruction_ends(trained: Trained) -> None:
    local = LocalModelConfig(**trained.paths, max_new_tokens=MAX_NEW_TOKENS, batch_size=2)
    writer = make_writer(SynthesisConfig(sources=("pairs",), writer="local", local=local))
    assert isinstance(writer, LocalWriter)
    requests = [CaptionRequest(str(n), f"a cat {n}", {"shape": "wide"}) for n in range(3)]
    found = writer.write(requests)
    assert found == writer.write(requests)
    for request, text in zip(requests, found, strict=True):
        prompt = trained.tokenizer.encode(writer.prompt(request).strip())
        assert text == trained.greedy([trained.tokenizer.bos_id, *prompt])
    assert len(writer.provenance["model"]) == 64


def picture(seed: int, width: int = 24, height: int = 12) -> RecordImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    return RecordImage(data, None, hashlib.sha256(data).hexdigest(), width, height)


def captioner(trained: Trained, **options) -> ModelCaptioner:
    config = CaptionerConfig(
        **trained.paths, max_new_tokens=MAX_NEW_TOKENS, batch_size=2, **options
    )
    (source,) = make_concept_sources(SynthesisConfig(concepts=("caption",), captioner=config))
    assert isinstance(source, ModelCaptioner)
    return source


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({}, "", ""),
        ({"prompt": "A photo of"}, "", " A photo of"),
        ({"style": "chat", "prompt": "What is it?"}, "User:", " What is it?\nAssistant:"),
    ],
)
def test_the_captioner_says_what_follows_the_image(
    trained: Trained, options: dict, before: str, after: str
) -> None:
    images = [picture(seed) for seed in range(5)]
    images.append(images[1])
    source = captioner(trained, **options)
    found = source.detect(images)
    assert found == source.detect(images)
    assert len({str(one) for one in found}) > 1, "the images make a difference"
    tokenizer, model = trained.tokenizer, trained.model
    transform = ImageTransform(size=16)
    for image, one in zip(images, found, strict=True):
        square = resize_image(Image.open(io.BytesIO(image.bytes)), transform)
        with torch.inference_mode():
            pixel_values = to_pixel_values([square], transform)
            image_tokens = model.connector(model.vision(pixel_values))[0]
        start = [tokenizer.bos_id, *(tokenizer.encode(before) if before else [])]
        end = tokenizer.encode(after) if after else []
        text = trained.greedy([*start, *[tokenizer.image_id] * 4, *end], image_tokens)
        assert one == ({"caption": " ".join(text.split())} if text else {})


def test_an_image_that_cannot_be_shown_costs_its_own_caption(trained: Trained) -> None:
    whole = picture(1)
    broken = replace(whole, bytes=whole.bytes[:60], sha256="0" * 64)
    first, second = captioner(trained).detect([broken, whole])
    assert isinstance(first, Rejected)
    assert first.reason == Reason.CONCEPTS_FAILED
    assert not isinstance(second, Rejected)


def test_the_provenance_is_all_that_a_caption_depends_on(trained: Trained, tmp_path: Path) -> None:
    found = captioner(trained).provenance
    weights = (trained.folder / "model" / WEIGHTS).read_bytes()
    assert found["model"] == hashlib.sha256(weights).hexdigest()
    assert found["version"] == LOCAL_VERSION == 1
    assert found == captioner(trained).provenance
    for options in ({"prompt": "A"}, {"style": "chat"}):
        assert captioner(trained, **options).provenance != found
    other = build_model(trained.model.config, trained.tokenizer.image_id, seed=4)
    save_model(other, tmp_path / "model")
    retrained = replace(trained, folder=tmp_path)
    (tmp_path / "tokenizer").symlink_to(trained.folder / "tokenizer")
    assert captioner(retrained).provenance != found


def test_what_cannot_be_read_is_named_before_work_starts(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="captioner: found no checkpoint or no tokenizer"):
        SynthesisConfig(concepts=("caption",))
    broken = build_model(trained.model.config, trained.tokenizer.image_id, seed=3)
    with torch.no_grad():
        broken.decoder.embedding.weight[0, 0] = torch.nan
    save_model(broken, tmp_path / "model")
    (tmp_path / "tokenizer").symlink_to(trained.folder / "tokenizer")
    with pytest.raises(ValueError, match="found weights that are no numbers"):
        captioner(replace(trained, folder=tmp_path))
    with pytest.raises(ValueError, match=r"Found no shards\.json"):
        captioner(trained, shards=str(tmp_path))


def test_edits_of_the_models_do_not_rerun_synthesize() -> None:
    """LOCAL_VERSION stands for them: raise it when the same model says something else."""
    settings = SESSION_CLASS.staleness_settings
    entry = (synthesize_captions.__module__, synthesize_captions.__name__)

    def reached(excluded: tuple[str, ...]) -> set[str]:
        return set(CodeIndex(settings.packages, excluded).closure([entry]).parts)

    def of_models(parts: set[str]) -> list[str]:
        return [part for part in parts if part.startswith("mm1_pipeline.models")]

    parts = reached(settings.excluded)
    assert "mm1_pipeline.evaluation.captioning.caption_writer:LOCAL_VERSION" in parts
    assert not of_models(parts)
    assert of_models(reached(())), "what settings.py is there for"


def test_the_models_count_by_their_content(trained: Trained) -> None:
    config = SynthesisConfig(
        concepts=("caption",),
        captioner=entry(CaptionerConfig, **trained.paths, shards="shards.json", batch_size=3),
    )
    flat = flatten_parameters(config, "synthesis")
    names = ("checkpoint", "tokenizer", "shards")
    assert {f"synthesis.captioner.{name}" for name in names} <= flat.input_paths.keys()
    assert "synthesis.captioner.batch_size" not in flat.values
