"""A feed-forward layer of experts, of which each position uses a few.

Every position is computed by all the experts it chose, however many chose the same (dropless):
positions are sorted by expert, so that an expert's rows lie together. Shape letters: P positions,
D width, F width of an expert, E experts, k experts a position, L layers with experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm1_pipeline.config.model import MoEConfig
from mm1_pipeline.models.objective import Term
from mm1_pipeline.models.rows import repeat_rows, take_rows

_GROUPED_ALIGNMENT = 8
"""Widths that grouped products take: rows of 16 bytes in bfloat16."""


class Routing(NamedTuple):
    """What a router did, as sums over positions.

    One layer's; `RouterLog.stacked` puts [L] before each shape.
    """

    num_tokens: Tensor
    """float32[], positions that count."""
    chosen: Tensor
    """float32[E], positions that chose each expert; together k * num_tokens. Has no gradient."""
    probabilities: Tensor
    """float32[E], each expert's probability, before choosing."""
    squared_partitions: Tensor
    """float32[], log(sum(exp(router logits)))^2."""
    entropies: Tensor
    """float32[], entropy of the probabilities, in nats. Has no gradient."""
    chosen_by_group: Tensor
    """float32[G, E], as `chosen`, of each group of positions. Has no gradient."""


class RouterLog:
    """Takes what the routers of one forward pass did, layer by layer.

    Args:
        counted: bool[P], or bool[G, P] to measure G groups that do not overlap; positions that
            count. Padding must not (its many equal positions choose the same experts, which
            would look like imbalance).
    """

    def __init__(self, counted: Tensor) -> None:
        self.counted = counted
        self._layers: list[Routing] = []

    def add(self, routing: Routing) -> None:
        """Takes the next layer's."""
        self._layers.append(routing)

    def stacked(self) -> Routing:
        """All layers': every shape with [L] in front."""
        return Routing(*map(torch.stack, zip(*self._layers, strict=True)))


class MoEFeedForward(nn.Module):
    """A router and its experts, each a SwiGLU layer.

    Source: MM1, Mixture of experts; deviation: that no position is dropped is our choice.

    Args:
        config: number of experts, and how positions are routed.
        d_model: D, the width of positions.
        d_ff: F, the width inside one expert.
        shared: an expert of its own that computes every position.
    """

    def __init__(
        self, config: MoEConfig, d_model: int, d_ff: int, shared: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.shared = shared
        self.shared_gate = None if shared is None else nn.Linear(d_model, 1, bias=False)
        self.router = Router(d_model, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, d_model, d_ff)

    def forward(
        self, hidden: Tensor, counted: Tensor | None = None
    ) -> tuple[Tensor, Routing | None]:
        """Sum of the chosen experts' outputs, weighted by their probabilities.

        Args:
            hidden: float[P, D].
            counted: bool[P] or bool[G, P], positions over which the router is measured; see
                `RouterLog`. All are computed.

        Returns:
            float[P, D]; what the router did, if `counted` is given.
        """
        top_k = self.config.top_k
        logits = self.router(hidden)
        probabilities = logits.softmax(dim=-1)
        weights, experts = probabilities.topk(top_k, dim=-1)
        if self.config.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)

        order = experts.flatten().argsort(stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        ends = _ends_of_groups(experts.flatten()[order], self.config.num_experts)
        sorted_rows = self.experts(repeat_rows(hidden, order, places, top_k), ends)
        rows = take_rows(sorted_rows, places).unflatten(0, (-1, top_k))
        mixed = (rows * weights.to(rows.dtype).unsqueeze(-1)).sum(dim=1)
        if self.shared is not None and self.shared_gate is not None:
            mixed = mixed + self.shared_gate(hidden).sigmoid() * self.shared(hidden)
        if counted is None:
            return mixed, None
        return mixed, _measure(logits, probabilities, experts, counted)


class Router(nn.Linear):
    """Scores of the experts, in float32 always: rounding changes which experts are chosen."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Maps float[P, D] to float32[P, E]."""
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight.float())


class Experts(nn.Module):
    """The weights of all experts of a layer, stacked; each is laid out as `FeedForward`'s."""

    def __init__(self, num_experts: int, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.up = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.down = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights of the size that torch gives a linear layer."""
        for weight in self.parameters():
            nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Each group of rows by its expert; groups may be empty.

        Args:
            rows: float[N, D], sorted by expert.
            ends: int64[E], where each expert's rows end.

        Returns:
            float[N, D].
        """
        weights = self.gate, self.up, self.down
        dtype = _compute_dtype(rows)
        if _has_grouped_products(rows.device, dtype, self.gate.shape):
            return _grouped(rows.to(dtype), ends, *(weight.to(dtype) for weight in weights))
        return _loop(rows, ends, *weights)


def load_balance_loss(routing: Routing) -> Tensor:
    """E * sum over experts of (share of the choices) * (mean probability).

    1 when all experts are chosen equally often and equally probable, E when one gets all. Only
    the probabilities have a gradient: it lowers those of experts chosen too often.
    Source: MM1, Mixture of experts; the formula is that of Switch Transformers.

    Args:
        routing: sums of one layer (E experts), or of L layers stacked.

    Returns:
        float32[] or float32[L].
    """
    share = routing.chosen / routing.chosen.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = routing.probabilities / routing.num_tokens.clamp(min=1).unsqueeze(-1)
    return routing.chosen.shape[-1] * (share * mean).sum(dim=-1)


def router_z_loss(routing: Routing) -> Tensor:
    """Mean over positions of log(sum(exp(router logits)))^2.

    Keeps the router's logits small, where float32 and bfloat16 tell neighbours apart.
    Source: MM1, Mixture of experts; the formula is that of ST-MoE.

    Args:
        routing: sums of one layer (E experts), or of L layers stacked.

    Returns:
        float32[] or float32[L].
    """
    return routing.squared_partitions / routing.num_tokens.clamp(min=1)


def router_terms(config: MoEConfig, routing: Routing) -> dict[str, Term]:
    """What the routers of all layers add to the training loss, and what is worth watching.

    The two losses are means over layers, so that 1 is balanced at every depth; their
    coefficients make sums of them, as Switch Transformers does. The paper does not say.

    Args:
        config: weights of the two losses, from 0.
        routing: sums of L layers, stacked.

    Returns:
        load_balance and router_z, which join the loss; and, which do not: router_load
        float32[L, E], each expert's share of the choices, router_load_by_stream float32[L, G, E],
        the same for each group that is measured, router_entropy float32[L], in nats, and
        router_dead float32[L], experts that no position chose.
    """
    num_layers = len(routing.num_tokens)
    load = _shares(routing.chosen)
    entropy = routing.entropies / routing.num_tokens.clamp(min=1)
    return {
        "load_balance": Term(
            load_balance_loss(routing).mean(), config.load_balance_weight * num_layers
        ),
        "router_z": Term(router_z_loss(routing).mean(), config.router_z_weight * num_layers),
        "router_load": Term(load, 0.0),
        "router_entropy": Term(entropy, 0.0),
        "router_dead": Term((routing.chosen == 0).sum(dim=-1).float(), 0.0),
        "router_load_by_stream": Term(_shares(routing.chosen_by_group), 0.0),
    }


def _shares(chosen: Tensor) -> Tensor:
    """Counts as shares of the last axis; 0 where nothing was counted."""
    return chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=1)


def _measure(logits: Tensor, probabilities: Tensor, experts: Tensor, counted: Tensor) -> Routing:
    groups = counted.float().reshape(-1, len(probabilities))
    counts = groups.sum(dim=0)
    with torch.no_grad():
        by_group = groups @ torch.zeros_like(probabilities).scatter_(1, experts, 1.0)
        entropies = torch.special.entr(probabilities).sum(dim=-1) @ counts
    return Routing(
        num_tokens=counts.sum(),
        chosen=by_group.sum(dim=0),
        probabilities=counts @ probabilities,
        squared_partitions=logits.logsumexp(dim=-1).square() @ counts,
        entropies=entropies,
        chosen_by_group=by_group,
    )


def _ends_of_groups(sorted_experts: Tensor, num_experts: int) -> Tensor:
    """int64[E]. A search, not a count, for which a GPU would be waited for."""
    numbers = torch.arange(num_experts, device=sorted_experts.device)
    return torch.searchsorted(sorted_experts, numbers, right=True)


def _compute_dtype(rows: Tensor) -> torch.dtype:
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype


def _has_grouped_products(device: torch.device, dtype: torch.dtype, shape: torch.Size) -> bool:
    """Grouped products came with torch 2.10, for bfloat16 on CUDA."""
    aligned = all(size % _GROUPED_ALIGNMENT == 0 for size in shape[1:])
    return (
        hasattr(F, "grouped_mm") and device.type == "cuda" and dtype == torch.bfloat16 and aligned
    )


def _loop(rows: Tensor, ends: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """One expert after the other; on any device, in any precision."""
    sizes = torch.diff(ends, prepend=ends.new_zeros(1)).tolist()
    # unbind, not an index an expert: the gradient of an index is as large as all experts.
    experts = zip(rows.split(sizes), gate.unbind(), up.unbind(), down.unbind(), strict=True)
    return torch.cat(
        [F.linear(F.silu(F.linear(x, g)) * F.linear(x, u), d) for x, g, u, d in experts]
    )


def _grouped(rows: Tensor, ends: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """All experts in three kernels, whose sizes stay on the GPU."""
    offsets = ends.to(torch.int32)

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return F.grouped_mm(x, weight.transpose(1, 2), offs=offsets)  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]

    return product(F.silu(product(rows, gate)) * product(rows, up), down)
