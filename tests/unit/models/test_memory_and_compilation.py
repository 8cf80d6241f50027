"""What is never written whole, and what compiling leaves as it was."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mm1_pipeline.config.model import (
    ConnectorConfig,
    ConnectorKind,
    DecoderConfig,
    MM1Config,
    VisionConfig,
)
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.losses import token_losses
from mm1_pipeline.models.next_token import NextToken
from mm1_pipeline.training.compilation import compile_layers

VOCABULARY, POSITIONS, WIDTH = 100_352, 800, 16


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any result, forward and backward."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.num_elements = max(self.num_elements, *sizes, 0)
        return result


def test_logits_of_a_large_vocabulary_never_exist_whole():
    """800 positions of 100k tokens: 80 million logits, of which 4 million exist at once."""
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    labels = torch.randint(VOCABULARY, (POSITIONS,))
    labels[::100] = -100
    with LargestTensor() as largest:
        token_losses(hidden, weight, labels).sum().backward()
    assert largest.num_elements <= 1 << 22
    assert largest.num_elements < POSITIONS * VOCABULARY / 15
    with LargestTensor() as whole:
        nn.functional.cross_entropy(hidden @ weight.T, labels)
    assert whole.num_elements == POSITIONS * VOCABULARY, "the measure sees what it should"


def test_compiled_layers_compute_the_same_under_the_same_names():
    """Traced and differentiated by PyTorch's compiler, without generating code."""
    config = MM1Config(
        vision=VisionConfig(
            image_size=16, patch_size=8, d_model=16, num_layers=2, num_heads=2, d_ff=32
        ),
        connector=ConnectorConfig(kind=ConnectorKind.AVERAGE_POOLING, num_tokens=1),
        decoder=DecoderConfig(
            vocab_size=32, d_model=16, num_layers=2, num_heads=2, num_kv_heads=1, d_ff=32
        ),
    )
    plain = NextToken(build_model(config, 3, seed=0)).double()
    compiled = copy.deepcopy(plain)
    assert compile_layers(compiled, backend="aot_eager") == 4
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for num_images, length in ((2, 12), (3, 10), (1, 7)):
        input_ids = torch.randint(4, 32, (1, length))
        input_ids[0, :num_images] = 3
        batch = {
            "input_ids": input_ids,
            "labels": input_ids.roll(-1),
            "position_ids": torch.arange(length)[None],
            "cu_seqlens": torch.tensor([0, length], dtype=torch.int32),
            "pixel_values": torch.randn(num_images, 3, 16, 16, dtype=torch.float64),
            "stream_ids": torch.tensor([0]),
        }
        for objective in (plain, compiled):
            objective.zero_grad()
            objective(batch).losses.sum().backward()
        for expected, found in zip(plain.parameters(), compiled.parameters(), strict=True):
            # In float64. Worst seen 5.8e-15.
            torch.testing.assert_close(found.grad, expected.grad, atol=1e-12, rtol=0)
