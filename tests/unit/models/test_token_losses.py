from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mm1_pipeline.models.losses import labelled_losses, token_losses


def plain_losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """-log softmax by its definition; 0 without a label."""
    scores = hidden.detach() @ weight.detach().T
    shares = scores.exp() / scores.exp().sum(1, keepdim=True)
    rows = torch.arange(len(labels))
    return torch.where(labels == -100, 0.0, -shares[rows, labels.clamp(min=0)].log())


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 30, (50,), generator=generator)
    labels[torch.rand(50, generator=generator) < 0.5] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def test_only_labelled_positions_have_a_loss(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    found = token_losses(*problem)
    assert found.dtype == torch.float32
    # float32 losses up to 16: worst seen 7e-7.
    torch.testing.assert_close(found.double(), plain_losses(*problem), atol=2e-6, rtol=0)
    assert torch.equal(found == 0, problem[2] == -100)


@pytest.mark.parametrize("kept", [0, 10**9], ids=["recomputed", "kept"])
@pytest.mark.parametrize("chunk", [1, 30 * 7, 10**9])
def test_chunks_change_neither_losses_nor_gradients(
    problem: tuple[Tensor, Tensor, Tensor], chunk: int, kept: int
) -> None:
    hidden, weight, labels = problem
    labels = labels.clamp(min=0)
    upstream = torch.linspace(-1, 1, len(labels))
    losses = labelled_losses(hidden, weight, labels, chunk_logits=chunk, max_kept_logits=kept)
    found = torch.autograd.grad(losses, (hidden, weight), upstream)
    whole = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none")
    expected = torch.autograd.grad(whole, (hidden, weight), upstream.double())
    # The loss itself is float32: worst seen 7e-7 for losses up to 16.
    torch.testing.assert_close(losses.double(), whole, atol=2e-6, rtol=0)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_recomputing_keeps_no_logits(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, labels = problem
    kept: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        labelled_losses(hidden, weight, labels.clamp(min=0), chunk_logits=300, max_kept_logits=0)
    assert all(shape[-1:] != (30,) for shape in kept)


def test_without_labels_the_gradient_is_zero() -> None:
    hidden = torch.randn(5, 8, requires_grad=True)
    weight = torch.randn(30, 8, requires_grad=True)
    losses = token_losses(hidden, weight, torch.full((5,), -100))
    losses.sum().backward()
    assert torch.equal(losses, torch.zeros(5))
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()
