"""Image encoders from other programs: CLIP, open_clip, SigLIP, SigLIP 2, BLIP, AIM v1 and v2."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm1_pipeline.config.model import EmbeddingNorm, PositionEmbedding, VisionConfig, VisionNorm
from mm1_pipeline.models.checkpoint import is_saved_vision_encoder
from mm1_pipeline.models.convert.accounting import Reason, check_tensors
from mm1_pipeline.models.convert.vision_layouts import (
    NAMES,
    VisionLayout,
    embedding_norm,
    of_json,
    of_layout,
    reason_to_skip,
    recognise,
)
from mm1_pipeline.models.safetensors_files import WeightFiles
from mm1_pipeline.models.vit import VisionTransformer, resize_positions

logger = logging.getLogger(__name__)


def import_vision_encoder(source: Path, config: VisionConfig) -> VisionTransformer:
    """Reads an encoder into the shape that a model wants.

    Another resolution is allowed: position embeddings are then interpolated as the layout's own
    program does it. So are a deeper encoder cut by `feature_layer`, and a final norm left out.
    Everything else must be what the file holds: every tensor of it is read, or known not to
    matter to patch embeddings. LayerScale becomes part of the maps before it. No code from the
    file is run.

    Source: MM1, Model (encoders pre-trained by CLIP or AIM are the start).

    Args:
        source: a .safetensors file or a folder with one, see `WeightFiles`.
        config: the encoder that is wanted, `model.vision`.

    Raises:
        ValueError: the file is of no known layout, or holds an encoder of another shape; all
            differences are named. Or it has tensors or fields that are not known.
    """
    file = _EncoderFile(source)
    facts = file.describe()
    _check_config(facts, config, source)
    file.check_tensors(config)
    untold = [name for name in ("num_heads", "activation", "norm_eps") if name not in facts]
    if untold:
        logger.warning(
            "%s does not tell %s; taken from model.vision. Check them against the model's page.",
            source,
            ", ".join(untold),
        )
    with torch.device("meta"):
        encoder = VisionTransformer(config)
    weights = file.weights(config)
    for name, expected in encoder.state_dict().items():
        if name not in weights or weights[name].shape != expected.shape:
            found = list(weights[name].shape) if name in weights else "no tensor"
            raise ValueError(
                f"{source}: found {found} for {name}, expected {list(expected.shape)}. The "
                "weights are not those of one encoder."
            )
    encoder.load_state_dict(weights, assign=True)
    return encoder.requires_grad_(True)


def check_vision_file(source: Path, config: VisionConfig) -> None:
    """Refuses a file that does not hold the wanted encoder, without reading its weights.

    Args:
        source: what `vision_pretrain.path` names: of this project or of another program.
        config: the encoder that is wanted.

    Raises:
        ValueError: it is missing, of no known layout, or holds another encoder.
    """
    if not is_saved_vision_encoder(source):
        file = _EncoderFile(source)
        _check_config(file.describe(), config, source)
        file.check_tensors(config)


def describe_vision_encoder(source: Path) -> dict[str, Any]:
    """What a file says of its encoder: the values to write under `model.vision`.

    Args:
        source: see `import_vision_encoder`.

    Returns:
        Fields of `VisionConfig`; `num_heads`, `activation` and `norm_eps` only where the
        file's JSON or its layout tells them, `final_norm` only where the file has none for
        patch embeddings.

    Raises:
        ValueError: the file is of no known layout, or its JSON has a field that is not known
            or would give other results here.
    """
    return _EncoderFile(source).describe()


class _EncoderFile:
    """A checkpoint whose layout is known."""

    def __init__(self, source: Path) -> None:
        self._files = WeightFiles(source)
        self._layout, self._prefix = recognise(self._files)
        self._names = NAMES[self._layout]

    def describe(self) -> dict[str, Any]:
        """See `describe_vision_encoder`."""
        files, prefix, names = self._files, self._prefix, self._names
        patch_shape = files.shape(f"{prefix}{names.patch}weight")
        d_model = patch_shape[0]
        if len(patch_shape) == 4 and (patch_shape[1] != 3 or patch_shape[2] != patch_shape[3]):
            raise ValueError(
                f"{files.source}: found patches of shape {patch_shape[1:]}, expected squares of "
                "three colours."
            )
        patch_size = (
            patch_shape[-1] if len(patch_shape) == 4 else round((patch_shape[1] / 3) ** 0.5)
        )
        first = prefix + names.layer.format(0)
        has_norm = f"{prefix}{names.embedding_norm}weight" in files.names
        facts = {
            "patch_size": patch_size,
            "d_model": d_model,
            "num_layers": self._count_layers(),
            "d_ff": files.shape(f"{first}{names.up}weight")[0],
            "class_token": names.class_embedding is not None,
            "bias": self._has_biases(first),
            "patch_bias": f"{prefix}{names.patch}bias" in files.names,
            "embedding_norm": embedding_norm(self._layout) if has_norm else EmbeddingNorm.NONE,
            **of_layout(self._layout),
        }
        positions = prefix + names.positions
        if positions in files.names:
            num_patches = files.shape(positions)[-2] - facts["class_token"]
            facts["positions"] = PositionEmbedding.LEARNED
            facts["image_size"] = patch_size * round(num_patches**0.5)
        else:
            facts["positions"] = PositionEmbedding.SINUSOIDAL
        if self._layout is VisionLayout.OPEN_CLIP and any(
            name.startswith(f"{prefix}attn_pool.") for name in files.names
        ):
            facts["final_norm"] = False  # theirs is of the pooled features
        return {**facts, **of_json(files, self._layout, facts)}

    def check_tensors(self, config: VisionConfig) -> None:
        """Every tensor of the file is read, or there is a reason to leave it out.

        Raises:
            ValueError: naming those that are missing or not known.
        """
        needed = [name for theirs in self._plan(config).values() for name in theirs]
        needed += self._scales(config).values()

        def reason(name: str) -> Reason | None:
            return self._reason_of_config(name, config) or reason_to_skip(
                name, self._names, self._prefix
            )

        what = f"an encoder of the layout {self._layout}"
        check_tensors(self._files.source, self._files.names, needed, what, reason)

    def weights(self, config: VisionConfig) -> dict[str, Tensor]:
        """Our names with tensors."""
        scales = self._scales(config)
        weights: dict[str, Tensor] = {}
        for ours, theirs in self._plan(config).items():
            parts = [self._files.tensor(name) for name in theirs]
            match ours:
                case "patch_embedding.weight":
                    weights[ours] = self._patch_weight(parts[0], config)
                case "class_embedding":
                    weights[ours] = parts[0].flatten()
                case "position_embeddings":
                    weights[ours] = resize_positions(
                        parts[0].reshape(-1, config.d_model),
                        config.grid,
                        class_token=config.class_token,
                        resampling=self._names.resampling,
                    )
                case _:
                    joined = torch.cat(parts) if len(parts) > 1 else parts[0]
                    scale = scales.get(ours.rpartition(".")[0])
                    if scale is not None:
                        factors = self._files.tensor(scale)
                        joined = joined * factors.reshape(-1, *(1,) * (joined.ndim - 1))
                    weights[ours] = joined
        return weights

    def _count_layers(self) -> int:
        layer = re.escape(self._prefix + self._names.layer)
        pattern = re.compile(layer.replace(r"\{\}", r"(\d+)"))
        found = (pattern.match(name) for name in self._files.names)
        return 1 + max(int(match[1]) for match in found if match)

    def _has_biases(self, layer: str) -> bool:
        """Whether the maps of a layer have biases; all or none of them."""
        names = self._names
        maps = (*names.qkv, names.attention_output, names.up, names.down)
        have = {name: f"{layer}{name}bias" in self._files.names for name in maps}
        if len(set(have.values())) > 1:
            without = ", ".join(name for name, has in have.items() if not has)
            raise ValueError(
                f"{self._files.source}: found no biases for {without} and some for the other "
                "linear maps of a layer (qkv_bias, mlp_bias and use_bias of a config.json), "
                "expected them in all or in none (model.vision.bias)."
            )
        return all(have.values())

    def _plan(self, config: VisionConfig) -> dict[str, tuple[str, ...]]:
        """For each of our tensors theirs, of which the rows are joined."""
        names, prefix = self._names, self._prefix
        plan: dict[str, tuple[str, ...]] = {
            "patch_embedding.weight": (f"{prefix}{names.patch}weight",)
        }
        if config.patch_bias:
            plan["patch_embedding.bias"] = (f"{prefix}{names.patch}bias",)
        if config.class_token and names.class_embedding is not None:
            plan["class_embedding"] = (prefix + names.class_embedding,)
        if config.positions is PositionEmbedding.LEARNED:
            plan["position_embeddings"] = (prefix + names.positions,)

        def add(ours: str, *theirs: str, bias: bool) -> None:
            for kind in ("weight", "bias") if bias else ("weight",):
                plan[f"{ours}.{kind}"] = tuple(f"{prefix}{their}{kind}" for their in theirs)

        norm_bias = config.norm is VisionNorm.LAYER_NORM
        if config.embedding_norm is not EmbeddingNorm.NONE and names.embedding_norm is not None:
            add("embedding_norm", names.embedding_norm, bias=norm_bias)
        if config.final_norm:
            add("final_norm", names.final_norm, bias=norm_bias)
        for index in range(config.num_built_layers):
            layer, ours = names.layer.format(index), f"layers.{index}"
            add(f"{ours}.attention_norm", layer + names.attention_norm, bias=norm_bias)
            add(f"{ours}.feed_forward_norm", layer + names.feed_forward_norm, bias=norm_bias)
            qkv = (layer + name for name in names.qkv)
            add(f"{ours}.attention.qkv", *qkv, bias=config.bias)
            add(f"{ours}.attention.output", layer + names.attention_output, bias=config.bias)
            if names.gate is not None:
                add(f"{ours}.feed_forward.gate", layer + names.gate, bias=config.bias)
            add(f"{ours}.feed_forward.up", layer + names.up, bias=config.bias)
            add(f"{ours}.feed_forward.down", layer + names.down, bias=config.bias)
        return plan

    def _scales(self, config: VisionConfig) -> dict[str, str]:
        """LayerScale: for each of our maps, the tensor that its output is multiplied by."""
        scales: dict[str, str] = {}
        maps = {
            "attention.output": self._names.attention_scale,
            "feed_forward.down": self._names.feed_forward_scale,
        }
        for index in range(config.num_built_layers):
            for ours, theirs in maps.items():
                name = f"{self._prefix}{self._names.layer.format(index)}{theirs}"
                if theirs is not None and name in self._files.names:
                    scales[f"layers.{index}.{ours}"] = name
        return scales

    def _reason_of_config(self, name: str, config: VisionConfig) -> Reason | None:
        """Why the wanted encoder has no use for a tensor."""
        names, prefix = self._names, self._prefix
        if name.startswith(prefix + names.final_norm) and not config.final_norm:
            return "model.vision.final_norm is false"
        later = range(config.num_built_layers, config.num_layers)
        if any(name.startswith(prefix + names.layer.format(index)) for index in later):
            return "behind model.vision.feature_layer"
        return None

    def _patch_weight(self, weight: Tensor, config: VisionConfig) -> Tensor:
        """float[D, 3 * patch_size ** 2]; ours is laid out channel, row, column."""
        if weight.ndim == 2:  # theirs is row, column, channel
            size = config.patch_size
            weight = weight.view(-1, size, size, 3).permute(0, 3, 1, 2)
        return weight.flatten(1).contiguous()


def _check_config(found: Mapping[str, Any], config: VisionConfig, source: Path) -> None:
    differences = [
        f"model.vision.{name}: {_plain(getattr(config, name))} -> {_plain(value)}"
        for name, value in found.items()
        if name != "image_size" and getattr(config, name) != value
    ]
    if differences:
        raise ValueError(
            f"{source}: found another encoder than model.vision describes; to use it, change "
            f"{'; '.join(differences)}."
        )


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value
