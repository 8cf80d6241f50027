"""Checks of trainings: mixtures, batches, devices, shapes, weights to start from, exports."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from mm1_pipeline.config.export import Layout
from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.pretraining import VisionObjective, WeightSource
from mm1_pipeline.config.shard import ShardConfig, shape_problems
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.preflight.run import Check, Run, missing, refused

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
"""Files that a machine with a GPU has; without one PyTorch, which takes seconds, is not asked."""


def check_vision_mixture(run: Run) -> Iterator[str]:
    """Of an encoder that is trained."""
    config = run.get("vision_pretrain")
    if config.source is WeightSource.TRAIN:
        path, sources = "vision_pretrain.training", run.pretraining_sources()
        yield from _mixture(path, config.training, sources)
        text = {name for name, kind in (sources or {}).items() if kind is RecordKind.TEXT}
        yield from _kinds(path, config.training, text, "text", "a source with images")


def check_text_mixture(run: Run) -> Iterator[str]:
    """Of a decoder that is trained alone."""
    config = run.get("text_pretrain")
    if config.source is WeightSource.TRAIN:
        path, sources = "text_pretrain.training", run.pretraining_sources()
        yield from _mixture(path, config.training, sources)
        for kind in (RecordKind.CAPTION, RecordKind.INTERLEAVED):
            of_kind = {name for name, found in (sources or {}).items() if found is kind}
            expected = "a source of text only, as the decoder is trained alone"
            yield from _kinds(path, config.training, of_kind, kind.value, expected)


def check_mixture(run: Run) -> Iterator[str]:
    """Of the multimodal pre-training."""
    yield from _mixture("pretrain", run.get("pretrain"), run.pretraining_sources())


def check_vision(run: Run) -> Iterator[str]:
    """Where an encoder's weights come from, and whether its objective can train it."""
    config, vision = run.get("vision_pretrain"), run.get("model.vision")
    yield from check_vision_mixture(run)
    match config.source:
        case WeightSource.FILE:
            path = "vision_pretrain.path"
            expected = "a .safetensors file or the folder of an encoder"
            if problems := missing(path, config.path, expected):
                yield from problems
                return
            from mm1_pipeline.models.convert.vision import check_vision_file

            yield from refused(path, lambda: check_vision_file(Path(config.path), vision))
        case WeightSource.TRAIN:
            training = config.training
            yield from _machine("vision_pretrain.training", training)
            size, batch = training.microbatch_size, training.global_batch_size
            is_clip = config.objective is VisionObjective.CLIP
            if is_clip and size is not None and size < batch:
                yield (
                    f"vision_pretrain.training.microbatch_size: found {size}, expected null or at "
                    f"least global_batch_size ({batch}): CLIP compares all examples of a batch."
                )
            if not is_clip and vision.class_token:
                yield (
                    "model.vision.class_token: found true, expected false: AIM predicts patches in "
                    "order, and a class token has no place in it."
                )
            yield from _shapes("shard", run.get("shard"), None, vision.image_size)
        case WeightSource.SCRATCH:
            pass


def check_text(run: Run) -> Iterator[str]:
    """Where a decoder's weights come from, and whether its training can begin."""
    config, decoder = run.get("text_pretrain"), run.get("model.decoder")
    yield from check_text_mixture(run)
    if config.source is WeightSource.FILE:
        from mm1_pipeline.models.convert.preflight import check_decoder_file

        path = "text_pretrain.path"
        yield from refused(path, lambda: check_decoder_file(Path(config.path), decoder))
    elif config.source is WeightSource.TRAIN:
        yield from _machine("text_pretrain.training", config.training)


def check_pretrain(run: Run) -> Iterator[str]:
    """The multimodal pre-training's mixture, machine and shapes."""
    yield from check_mixture(run)
    yield from _machine("pretrain", run.get("pretrain"))
    yield from _shapes("shard", run.get("shard"), *_shape_of(run.get("model")))


def check_upcycling(run: Run) -> Iterator[str]:
    """The dense model can become a mixture of experts."""
    yield from check_control(run)
    model, config = run.get("model"), run.get("upcycle")
    if model is not None:
        yield from _upcycled(model, config)[1]


def check_control(run: Run) -> Iterator[str]:
    """The trainings that go on from the dense model, with its parameters."""
    yield from _mixture("pretrain", run.get("pretrain"), run.pretraining_sources())
    yield from _machine("pretrain", run.get("pretrain"))


def check_sft(run: Run) -> Iterator[str]:
    """The fine-tuning's mixture and machine, and whether its shards fit the model."""
    config = run.get("sft")
    yield from _mixture("sft", config, run.conversation_sources())
    yield from _machine("sft", config)
    shards, model = run.get("sft_shard"), run.get("model")
    if shards is None or model is None:
        return
    # Position embeddings are interpolated where images are larger than in pre-training.
    yield from _shapes("sft_shard", shards, model.connector.num_tokens, None)
    size = shards.image.size
    try:
        vision = dataclasses.replace(model.vision, image_size=size)
        dataclasses.replace(model, vision=vision)
    except ValueError as error:
        yield (
            f"sft_shard.image.size: found {size}, expected a size that the encoder takes: "
            f"model.vision.{_message(error)}"
        )


def check_export(model: str) -> Check:
    """Of one exported model.

    Args:
        model: `pretrain`, `upcycle` or `sft`.
    """

    def check(run: Run) -> Iterator[str]:
        config, shape = run.get("export"), run.get("model")
        if config.chat_template is not None:
            yield from _template(config.chat_template)
        if config.layout is not Layout.LLAVA or shape is None:
            return
        from mm1_pipeline.export.llava import why_no_llava

        reasons = why_no_llava(shape)
        has_experts = model == "upcycle" or (model == "sft" and _starts_from_experts(run))
        if not reasons and has_experts and run.get("upcycle") is not None:
            reasons = why_no_llava(_upcycled(shape, run.get("upcycle"))[0])
        name = "sft_shard" if model == "sft" else "shard"
        shards = run.get(name)
        of_images = why_no_llava(None, shards.image, shards.sub_images) if shards else []
        for found in (reasons, [f"{name}.{reason}" for reason in of_images]):
            if found:
                changes = "; ".join(reason.partition(" (")[0] for reason in found)
                yield (
                    "export.layout: found llava, expected own, or what transformers' "
                    f"LlavaForConditionalGeneration can compute: {changes} (docs/models.md says "
                    "why)."
                )

    return check


def _starts_from_experts(run: Run) -> bool:
    sft = run.get("sft")
    return sft is not None and sft.init_from.value == "upcycle"


def _mixture(
    path: str, config: TrainingConfig, sources: Mapping[str, RecordKind] | None
) -> Iterator[str]:
    from mm1_pipeline.streams.mixture import mixture_problems

    drawn = {name for stream in config.mixture.streams.values() for name in stream.sources}
    known = drawn if sources is None else sources
    for text in mixture_problems(config.mixture, known):
        yield f"{path}.{text}"


def _kinds(
    path: str, config: TrainingConfig, wrong: Collection[str], kind: str, expected: str
) -> Iterator[str]:
    for stream_name, stream in config.mixture.streams.items():
        for name in stream.sources:
            if name in wrong:
                yield (
                    f"{path}.mixture.streams.{stream_name}.sources.{name}: found a source of kind "
                    f"{kind}, expected {expected}."
                )


def _machine(path: str, config: TrainingConfig) -> Iterator[str]:
    """Whether this machine can do it."""
    if config.engine == "composer":
        from mm1_pipeline.training.engine import choose_engine

        # Imports it, which takes seconds, as others' code may be installed and broken.
        yield from _inside(path, lambda: choose_engine(config.engine))
    if not asks_pytorch(config.device) and config.num_processes is None:
        return
    from mm1_pipeline.training.device import choose_device, choose_num_processes

    found: list[str] = []

    def look() -> None:
        found.append(choose_device(config))

    yield from _inside(path, look)
    if found:
        yield from _inside(path, lambda: choose_num_processes(config, found[0]))


def asks_pytorch(device: str) -> bool:
    """Whether only PyTorch can say if a device can be used: there is a GPU, or one is wanted."""
    return device == "cuda" or (
        device == "auto" and any(Path(file).exists() for file in _GPU_DEVICES)
    )


def _inside(path: str, look: Callable[[], Any]) -> list[str]:
    """As `refused`, for a check whose texts begin inside a group."""
    try:
        look()
    except ValueError as error:
        return [f"{path}.{error}"]
    return []


def _shape_of(model: MM1Config | None) -> tuple[int | None, int | None]:
    if model is None:
        return None, None
    return model.connector.num_tokens, model.vision.image_size


def _shapes(
    name: str, shards: ShardConfig | None, image_tokens: int | None, image_size: int | None
) -> list[str]:
    if shards is None:
        return []
    sizes = {"image_tokens": image_tokens, "image_size": image_size}
    return shape_problems(name, shards.packing, shards.image, **sizes)


def _upcycled(model: MM1Config, config: Any) -> tuple[MM1Config, list[str]]:
    """The model with experts, and why there can be none."""
    if model.decoder.moe is not None:
        found = f"model.decoder.moe: found {model.decoder.moe.num_experts} experts, expected null"
        return model, [f"{found}: a mixture of experts is made of a dense model. Run `pretrain`."]
    problems = []
    if config.moe.shared_d_ff is not None:
        problems.append(
            f"upcycle.moe.shared_d_ff: found {config.moe.shared_d_ff}, expected null: a dense "
            "model has no weights for an expert that computes every position."
        )
    try:
        decoder = dataclasses.replace(model.decoder, moe=config.moe)
    except ValueError as error:
        return model, [*problems, f"upcycle.{_message(error)}"]
    return dataclasses.replace(model, decoder=decoder), problems


def _message(error: ValueError) -> str:
    """The text of a group's own check, out of pydantic's."""
    errors = getattr(error, "errors", None)
    found = errors()[0].get("ctx", {}).get("error") if errors is not None else None
    return str(found or error)


def _template(text: str) -> list[str]:
    from jinja2 import Environment, TemplateSyntaxError

    try:
        Environment(autoescape=False).parse(text)  # noqa: S701 - nothing is rendered
    except TemplateSyntaxError as error:
        return [
            f"export.chat_template: found {text[:60]!r}, which is no Jinja template ({error}, line "
            f"{error.lineno}), expected one, or null for that of the fine-tuning."
        ]
    return []
