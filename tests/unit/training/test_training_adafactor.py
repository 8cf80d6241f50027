"""AdaFactor against torch's own, and what its learning rate means here."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mm1_pipeline.config.training import AdafactorConfig, OptimizerConfig, OptimizerKind
from mm1_pipeline.training.adafactor import Adafactor
from mm1_pipeline.training.optimizer import build_optimizer


class Shapes(nn.Module):
    """One parameter of each number of dimensions."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for dims in ((7,), (5, 9), (3, 4, 6), (4, 3, 2, 2)):
            values = torch.randn(dims, generator=generator) * 0.1
            self.register_parameter(f"p{len(dims)}", nn.Parameter(values))

    def set_gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in self.parameters():
            scale = 10.0 ** (step % 3 - 1)
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def test_scaled_by_the_weights_it_is_torchs_adafactor() -> None:
    ours, theirs = Shapes(), Shapes()
    config = AdafactorConfig(scale_by_parameter=True)
    groups = [{"params": list(ours.parameters()), "weight_decay": 0.1}]
    mine = Adafactor(groups, lr=0.01, config=config)
    oracle = torch.optim.Adafactor(theirs.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(20):
        for model, optimizer in ((ours, mine), (theirs, oracle)):
            model.set_gradients(step)
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        # Worst seen: 6e-8, where torch takes the second moments' roots in another order.
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_without_scaling_the_learning_rate_is_the_size_of_a_step() -> None:
    model = Shapes()
    before = copy.deepcopy(model)
    config = OptimizerConfig(kind=OptimizerKind.ADAFACTOR, weight_decay=0.0)
    optimizer = build_optimizer(model, config, 0.01)
    model.set_gradients(3)
    optimizer.step()
    for new, old in zip(model.parameters(), before.parameters(), strict=True):
        size = (new - old).square().mean().sqrt().item()
        # At the first step the update is the gradient over its own size: 1, or clipped to 1.
        assert size == pytest.approx(0.01, rel=0.15)
        assert size <= 0.01 * (1 + 1e-4)


def test_state_is_a_row_and_a_column() -> None:
    model = Shapes()
    optimizer = build_optimizer(model, OptimizerConfig(kind=OptimizerKind.ADAFACTOR), 0.01)
    model.set_gradients(0)
    optimizer.step()
    matrix = dict(model.named_parameters())["p2"]
    numbers = sum(value.numel() for value in optimizer.state[matrix].values())
    assert numbers == 5 + 9 + 1


def test_it_resumes_exactly() -> None:
    def run(steps: range, model: Shapes, optimizer: torch.optim.Optimizer) -> None:
        for step in steps:
            model.set_gradients(step)
            optimizer.step()

    def fresh(model: Shapes) -> torch.optim.Optimizer:
        return build_optimizer(model, OptimizerConfig(kind=OptimizerKind.ADAFACTOR), 0.01)

    whole = Shapes()
    run(range(6), whole, fresh(whole))
    begun = Shapes()
    first = fresh(begun)
    run(range(3), begun, first)
    resumed = Shapes()
    resumed.load_state_dict(begun.state_dict())
    second = fresh(resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(range(3, 6), resumed, second)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
