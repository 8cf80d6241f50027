from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mm1_pipeline.config.model import (
    ConnectorConfig,
    ConnectorKind,
    DecoderConfig,
    MM1Config,
    VisionConfig,
)
from mm1_pipeline.models.connectors import (
    CONNECTORS,
    AttentionPooling,
    AveragePooling,
    CAbstractor,
    Connector,
    MLPProjector,
    ResNetBlock,
    build_connector,
    pool_patches,
    refuse_incomplete,
)

TOLERANCE = 1e-12
"""float64 on both sides; worst seen 1.8e-15."""


def vision(grid: int, d_model: int = 12) -> VisionConfig:
    return VisionConfig(
        image_size=grid, patch_size=1, d_model=d_model, num_layers=1, num_heads=1, d_ff=4
    )


def randomize(module: nn.Module) -> nn.Module:
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module


def connector(kind: ConnectorKind, grid: int, num_tokens: int, **options: int) -> nn.Module:
    config = ConnectorConfig(kind=kind, num_tokens=num_tokens, **options)
    return randomize(build_connector(config, vision(grid), 10))


def plain_pool(patches: Tensor, grid: int, token_grid: int) -> Tensor:
    """Averages written out: window i spans floor(i r) .. ceil((i + 1) r), r = grid / tokens."""
    spans = [
        (math.floor(i * grid / token_grid), math.ceil((i + 1) * grid / token_grid))
        for i in range(token_grid)
    ]
    image = patches.detach().numpy().reshape(len(patches), grid, grid, -1)
    rows = [
        image[:, top:bottom, left:right].mean((1, 2))
        for top, bottom in spans
        for left, right in spans
    ]
    return torch.from_numpy(np.stack(rows, 1))


def plain_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    variance = x.var(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-5) * weight + bias


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


PAPER_GRIDS = [(grid, tokens) for grid in (16, 24, 27, 48) for tokens in (8, 12)]
"""Patches along a side at 224, 336, 378 and 672 px; 64 and 144 tokens."""


@pytest.mark.parametrize(("grid", "token_grid"), [*PAPER_GRIDS, (8, 4), (5, 5), (5, 1), (31, 7)])
def test_pooling_is_the_average_of_its_window(grid: int, token_grid: int) -> None:
    patches = torch.randn(2, grid**2, 3, dtype=torch.float64)
    found = pool_patches(patches, grid, token_grid)
    expected = plain_pool(patches, grid, token_grid)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_average_pooling_27_to_12() -> None:
    module = connector(ConnectorKind.AVERAGE_POOLING, 27, 144)
    assert isinstance(module, AveragePooling)
    patches = torch.randn(2, 729, 12, dtype=torch.float64)
    weights = arrays(module)
    pooled = plain_pool(patches, 27, 12).numpy()
    expected = pooled @ weights["output.weight"].T + weights["output.bias"]
    torch.testing.assert_close(module(patches), torch.from_numpy(expected), atol=TOLERANCE, rtol=0)


def test_attention_pooling() -> None:
    module = connector(ConnectorKind.ATTENTION_POOLING, 5, 9, num_heads=2)
    assert isinstance(module, AttentionPooling)
    patches = torch.randn(2, 25, 12, dtype=torch.float64)
    w = arrays(module)
    normed = plain_norm(patches.numpy(), w["patch_norm.weight"], w["patch_norm.bias"])
    query = w["queries"] @ w["query.weight"].T + w["query.bias"]
    key = normed @ w["key.weight"].T + w["key.bias"]
    value = normed @ w["value.weight"].T + w["value.bias"]
    heads = []
    for head in (slice(0, 5), slice(5, 10)):
        scores = query[:, head] @ key[..., head].transpose(0, 2, 1) / math.sqrt(5)
        shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(shares @ value[..., head])
    expected = np.concatenate(heads, -1) @ w["output.weight"].T + w["output.bias"]
    torch.testing.assert_close(module(patches), torch.from_numpy(expected), atol=TOLERANCE, rtol=0)


def test_attention_pooling_to_more_tokens_than_patches() -> None:
    """Queries are no places, so there may be more of them; each still reads the patches alone."""
    module = connector(ConnectorKind.ATTENTION_POOLING, 2, 9, num_heads=1)
    assert isinstance(module, AttentionPooling)
    with torch.no_grad():
        module.query.weight.zero_()
        module.query.bias.zero_()
    patches = torch.randn(3, 4, 12, dtype=torch.float64)
    tokens = module(patches)
    assert tokens.shape == (3, 9, 10)
    # Without a question all patches count alike.
    mean = module.output(module.value(module.patch_norm(patches)).mean(1, keepdim=True))
    torch.testing.assert_close(tokens, mean.expand(3, 9, 10), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", list(ConnectorKind))
@pytest.mark.parametrize(("grid", "token_grid"), PAPER_GRIDS)
def test_every_connector_gives_the_papers_tokens(
    kind: ConnectorKind, grid: int, token_grid: int
) -> None:
    config = ConnectorConfig(kind=kind, num_tokens=token_grid**2, num_blocks=1)
    with torch.device("meta"):
        module = build_connector(config, vision(grid), 16)
        assert module(torch.empty(2, grid**2, 12)).shape == (2, token_grid**2, 16)


@pytest.mark.parametrize("num_tokens", [2, 63, 143, 150])
@pytest.mark.parametrize("kind", list(ConnectorKind))
def test_a_number_that_is_no_square_is_refused(kind: ConnectorKind, num_tokens: int) -> None:
    below = math.isqrt(num_tokens)
    with pytest.raises(ValueError, match=f"nearest: {below**2} or {(below + 1) ** 2}"):
        ConnectorConfig(kind=kind, num_tokens=num_tokens)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def plain_block(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """A ResNet block by its definition: x[N, height, width, channels]."""
    w = arrays(module)
    hidden = plain_norm(x @ w["reduce.weight"].T, w["reduce_norm.weight"], w["reduce_norm.bias"])
    hidden = hidden * sigmoid(hidden)
    height, width = hidden.shape[1:3]
    padded = np.pad(hidden, ((0, 0), (1, 1), (1, 1), (0, 0)))
    convolved = np.zeros_like(hidden)
    for row in range(3):
        for column in range(3):
            shifted = padded[:, row : row + height, column : column + width]
            convolved += shifted * w["spatial.weight"][:, 0, row, column]
    hidden = plain_norm(convolved, w["spatial_norm.weight"], w["spatial_norm.bias"])
    hidden = hidden * sigmoid(hidden)
    squeezed = hidden.mean((1, 2)) @ w["squeeze.weight"].T + w["squeeze.bias"]
    squeezed = squeezed * sigmoid(squeezed)
    gates = sigmoid(squeezed @ w["excite.weight"].T + w["excite.bias"])
    hidden = (hidden * gates[:, None, None]) @ w["output.weight"].T
    hidden = plain_norm(hidden, w["output_norm.weight"], w["output_norm.bias"])
    if "shortcut.output.weight" in w:
        shortcut = x @ w["shortcut.output.weight"].T
        x = plain_norm(shortcut, w["shortcut.norm.weight"], w["shortcut.norm.bias"])
    return (hidden + x) * sigmoid(hidden + x)


@pytest.mark.parametrize("d_out", [12, 8])
def test_resnet_block(d_out: int) -> None:
    module = randomize(ResNetBlock(12, d_out))
    x = torch.randn(2, 5, 5, 12, dtype=torch.float64)
    expected = torch.from_numpy(plain_block(module, x.numpy()))
    torch.testing.assert_close(module(x), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("grid", "token_grid"), [(4, 4), (4, 2), (5, 3)])
def test_mlp_by_its_definition(grid: int, token_grid: int) -> None:
    module = connector(ConnectorKind.MLP, grid, token_grid**2)
    assert isinstance(module, MLPProjector)
    patches = torch.randn(2, grid**2, 12, dtype=torch.float64)
    up, output = (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in (module.up, module.output)
    )
    hidden = plain_pool(patches, grid, token_grid).numpy() @ up[0].T + up[1]
    erf = np.vectorize(math.erf)
    expected = (hidden * (1 + erf(hidden / math.sqrt(2))) / 2) @ output[0].T + output[1]
    torch.testing.assert_close(module(patches), torch.from_numpy(expected), atol=TOLERANCE, rtol=0)


def test_c_abstractor_where_the_grid_does_not_divide() -> None:
    module = connector(ConnectorKind.C_ABSTRACTOR, 5, 9, num_blocks=2, d_hidden=8)
    assert isinstance(module, CAbstractor)
    patches = torch.randn(2, 25, 12, dtype=torch.float64)
    w = arrays(module)
    x = (patches.numpy() + w["position_embeddings"]).reshape(2, 5, 5, 12)
    for block in module.before:
        x = plain_block(block, x)
    x = plain_pool(torch.from_numpy(x.reshape(2, 25, 8)), 5, 3).numpy().reshape(2, 3, 3, 8)
    for block in module.after:
        x = plain_block(block, x)
    hidden = x.reshape(2, 9, 8) @ w["up.weight"].T + w["up.bias"]
    expected = (hidden * sigmoid(hidden)) @ w["output.weight"].T + w["output.bias"]
    torch.testing.assert_close(module(patches), torch.from_numpy(expected), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", list(ConnectorKind))
def test_no_images_give_no_tokens_and_gradients_of_zero(kind: ConnectorKind) -> None:
    module = connector(kind, 5, 9, num_heads=2)
    tokens = module(torch.zeros(0, 25, 12, dtype=torch.float64))
    assert tokens.shape == (0, 9, 10)
    tokens.sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("forgotten", ["forward", "count_flops"])
def test_what_a_connector_forgets_fails_at_import(forgotten: str) -> None:
    """`refuse_incomplete` runs when the module is imported; training would find it in step 1."""
    methods = {"__init__", "forward", "count_flops"} - {forgotten}
    whole = {name: getattr(MLPProjector, name) for name in methods}
    broken = type("Broken", (Connector,), whole)
    with pytest.raises(TypeError, match=f"found Broken in CONNECTORS, which lacks {forgotten}"):
        refuse_incomplete({**CONNECTORS, ConnectorKind.MLP: broken})
    unlisted = {kind: cls for kind, cls in CONNECTORS.items() if kind != ConnectorKind.MLP}
    with pytest.raises(TypeError, match="connector mlp: found no class"):
        refuse_incomplete(unlisted)


def model_config(connector: ConnectorConfig) -> MM1Config:
    decoder = DecoderConfig(
        vocab_size=8, d_model=12, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=8
    )
    return MM1Config(vision=vision(4), connector=connector, decoder=decoder)


def test_pooling_to_more_tokens_than_patches_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"connector.num_tokens: found 25, expected at most 16, the patches"
    ):
        model_config(ConnectorConfig(num_tokens=25))


def test_heads_of_attention_pooling_must_divide_the_decoder() -> None:
    with pytest.raises(ValueError, match=r"connector.num_heads: found 5.*\(12\)"):
        model_config(
            ConnectorConfig(kind=ConnectorKind.ATTENTION_POOLING, num_tokens=25, num_heads=5)
        )
