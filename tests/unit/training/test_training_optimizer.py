from __future__ import annotations

import pytest
import torch
from torch import nn

from mm1_pipeline.config.training import OptimizerConfig, ScheduleConfig
from mm1_pipeline.training.optimizer import build_optimizer, parameter_groups, peak_learning_rate
from mm1_pipeline.training.schedule import build_scheduler, multiplier


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(requires_grad=False)


def test_a_step_without_gradient_shrinks_a_weight_by_a_tenth_of_its_learning_rate():
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    peak, schedule = 3e-4, ScheduleConfig(num_steps=8, warmup_steps=3)
    optimizer = build_optimizer(model, OptimizerConfig(), peak)
    scheduler = build_scheduler(optimizer, schedule)
    bias = model.bias.detach().clone()
    for step in range(8):
        before = model.weight.detach().clone()
        model.weight.grad, model.bias.grad = torch.zeros(64, 64), torch.zeros(64)
        optimizer.step()
        scheduler.step()
        eta = peak * multiplier(step, schedule)
        # Exact, bit for bit: the decay is one multiplication, and Adam adds 0.
        assert torch.equal(model.weight, before * (1 - eta * 0.1))
    assert torch.equal(model.bias, bias)


def test_matches_adamw_written_out():
    torch.manual_seed(1)
    config = OptimizerConfig(betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.1)
    model = nn.Linear(8, 8, bias=False)
    weight = model.weight.detach().double().clone()
    optimizer = build_optimizer(model, config, 1e-2)
    first, second = torch.zeros(8, 8).double(), torch.zeros(8, 8).double()
    for step in range(1, 21):
        gradient = torch.randn(8, 8)
        model.weight.grad = gradient.clone()
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient.double() ** 2
        weight = weight * (1 - 1e-2 * 0.1)
        scale = (second / (1 - 0.95**step)).sqrt() + 1e-8
        weight = weight - 1e-2 * (first / (1 - 0.9**step)) / scale
    # float32 against float64 over 20 steps: worst difference of 20 seeds 2.7e-7.
    assert (model.weight.double() - weight).abs().max() < 1e-6


def test_matrices_decay_vectors_do_not_and_frozen_weights_are_left_out():
    model = Toy()
    decaying, plain = parameter_groups(model.named_parameters(), 0.1)
    assert decaying["weight_decay"] == 0.1
    assert [id(p) for p in decaying["params"]] == [id(model.table.weight), id(model.layer.weight)]
    assert plain["weight_decay"] == 0.0
    names = [id(model.layer.bias), id(model.norm.weight), id(model.norm.bias)]
    assert [id(p) for p in plain["params"]] == names


def test_peak_comes_from_the_law_unless_it_is_given():
    assert peak_learning_rate(OptimizerConfig(), 2_960_000_000) == pytest.approx(5.9e-5, rel=0.03)
    assert peak_learning_rate(OptimizerConfig(learning_rate=1e-3), 2_960_000_000) == 1e-3


def test_where_the_law_does_not_hold_a_rate_must_be_given():
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: found null"):
        peak_learning_rate(OptimizerConfig(), None)
    assert peak_learning_rate(OptimizerConfig(learning_rate=1e-3), None) == 1e-3
