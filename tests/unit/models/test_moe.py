from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mm1_pipeline.config.model import (
    ConnectorConfig,
    DecoderConfig,
    MM1Config,
    MoEConfig,
    VisionConfig,
)
from mm1_pipeline.models import moe as moe_module
from mm1_pipeline.models.checkpoint import load_model, save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.moe import (
    MoEFeedForward,
    Routing,
    load_balance_loss,
    router_z_loss,
)
from typed_values import entry

D_MODEL, D_FF = 16, 24


def make_layer(**changes: object) -> MoEFeedForward:
    torch.manual_seed(0)
    config = MoEConfig(**{"num_experts": 6, **changes})
    layer = MoEFeedForward(config, D_MODEL, D_FF)
    with torch.no_grad():
        layer.router.weight.mul_(4)  # clear choices
    return layer


def naive(layer: MoEFeedForward, hidden: Tensor) -> Tensor:
    """The definition, a position and an expert at a time."""
    config, experts = layer.config, layer.experts
    rows = []
    for x in hidden:
        probabilities = torch.softmax(layer.router.weight.to(x.dtype) @ x, dim=0)
        chosen = sorted(range(config.num_experts), key=lambda e: -float(probabilities[e]))
        chosen = chosen[: config.top_k]
        total = sum(probabilities[e] for e in chosen) if config.renormalise else 1.0
        row = torch.zeros_like(x)
        for e in chosen:
            gate, up, down = (w[e].to(x.dtype) for w in (experts.gate, experts.up, experts.down))
            row = row + probabilities[e] / total * (down @ (F.silu(gate @ x) * (up @ x)))
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("top_k", [1, 2, 6])
@pytest.mark.parametrize("renormalise", [True, False])
def test_equals_the_float64_definition(top_k: int, renormalise: bool) -> None:
    layer = make_layer(top_k=top_k, renormalise=renormalise)
    hidden = torch.randn(40, D_MODEL)
    found, routing = layer(hidden)
    assert routing is None
    expected = naive(layer, hidden.double())
    # Worst seen 1.3e-7 for outputs up to 0.5.
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    assert expected.abs().max() > 0.2


def test_gradients_equal_those_of_the_definition() -> None:
    layer = make_layer().double()
    hidden = torch.randn(40, D_MODEL, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(40, D_MODEL, dtype=torch.float64)
    inputs = [hidden, *layer.parameters()]
    expected = torch.autograd.grad((naive(layer, hidden) * upstream).sum(), inputs)
    found = torch.autograd.grad((layer(hidden)[0] * upstream).sum(), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        # The router computes in float32. Worst seen 4.9e-7 for gradients up to 4.8.
        torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=0)
        assert theirs.any()


def test_no_position_is_dropped_when_all_choose_the_same_experts() -> None:
    layer = make_layer()
    direction = torch.randn(D_MODEL)
    with torch.no_grad():
        layer.router.weight[2] = 3 * direction
        layer.router.weight[4] = 2 * direction
    hidden = direction + 0.1 * torch.randn(200, D_MODEL)
    found, routing = layer(hidden, torch.ones(200, dtype=torch.bool))
    assert routing.chosen.tolist() == [0, 0, 200, 0, 200, 0]
    # Worst seen 1.2e-7.
    torch.testing.assert_close(found.double(), naive(layer, hidden.double()), atol=1e-6, rtol=0)


def test_a_position_does_not_depend_on_the_others() -> None:
    layer = make_layer()
    hidden = torch.randn(64, D_MODEL)
    together = layer(hidden)[0]
    alone = torch.cat([layer(x)[0] for x in hidden.split(1)])
    # Worst seen 1.5e-7.
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_equal_experts_compute_what_one_dense_layer_does() -> None:
    layer = make_layer()
    with torch.no_grad():
        for weight in layer.experts.parameters():
            weight.copy_(weight[:1].expand_as(weight))
    gate, up, down = (w[0] for w in layer.experts.parameters())
    hidden = torch.randn(40, D_MODEL)
    dense = F.linear(F.silu(F.linear(hidden, gate)) * F.linear(hidden, up), down)
    torch.testing.assert_close(layer(hidden)[0], dense, atol=1e-6, rtol=0)


def test_experts_without_positions_get_gradients_of_zero() -> None:
    layer = make_layer(num_experts=64)
    layer(torch.randn(3, D_MODEL))[0].sum().backward()
    used = layer.experts.down.grad.flatten(1).any(1)
    assert 2 <= used.sum() <= 6
    layer.zero_grad()
    layer(torch.randn(0, D_MODEL))[0].sum().backward()
    assert not layer.experts.down.grad.any()


def grouped_reference(rows: Tensor, weights: Tensor, *, offs: Tensor) -> Tensor:
    """What torch documents of grouped_mm: rows[start:end] @ weights[group]."""
    assert offs.dtype == torch.int32
    starts = [0, *offs.tolist()[:-1]]
    groups = zip(starts, offs.tolist(), weights, strict=True)
    return torch.cat([rows[start:end] @ weight for start, end, weight in groups])


def test_grouped_products_equal_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer().double()
    hidden = torch.randn(40, D_MODEL, dtype=torch.float64, requires_grad=True)
    inputs = [hidden, *layer.parameters()]
    loop = layer(hidden)[0]
    monkeypatch.setattr(F, "grouped_mm", grouped_reference, raising=False)
    monkeypatch.setattr(moe_module, "_has_grouped_products", lambda *_: True)
    grouped = layer(hidden)[0]
    torch.testing.assert_close(grouped, loop, atol=1e-12, rtol=0)
    for ours, theirs in zip(
        torch.autograd.grad(grouped.square().sum(), inputs),
        torch.autograd.grad(loop.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.skipif(
    not (torch.cuda.is_available() and hasattr(F, "grouped_mm")), reason="needs torch 2.10, CUDA"
)
def test_grouped_products_on_a_gpu_equal_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer().to("cuda", torch.bfloat16)
    hidden = torch.randn(40, D_MODEL, device="cuda", dtype=torch.bfloat16)
    grouped = layer(hidden)[0]
    monkeypatch.setattr(moe_module, "_has_grouped_products", lambda *_: False)
    torch.testing.assert_close(grouped, layer(hidden)[0], atol=0.02, rtol=0.02)


def test_grouped_products_are_used_only_where_they_exist() -> None:
    shape = torch.Size([6, D_FF, D_MODEL])
    for device, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float32)):
        assert not moe_module._has_grouped_products(torch.device(device), dtype, shape)
    odd = torch.Size([6, 20, D_MODEL])
    assert not moe_module._has_grouped_products(torch.device("cuda"), torch.bfloat16, odd)


def test_router_losses_by_their_definitions() -> None:
    layer = make_layer().double()
    hidden = torch.randn(50, D_MODEL, dtype=torch.float64)
    counted = torch.arange(50) % 3 > 0
    routing = layer(hidden, counted)[1]
    logits = hidden[counted] @ layer.router.weight.T
    probabilities = logits.softmax(-1)
    chosen = probabilities.topk(2).indices
    share = torch.tensor([(chosen == e).sum() / chosen.numel() for e in range(6)])
    balance = 6 * (share * probabilities.mean(0)).sum()
    z = (logits.exp().sum(-1).log() ** 2).mean()
    entropy = -(probabilities * probabilities.log()).sum(-1)
    # The router is float32.
    assert load_balance_loss(routing).item() == pytest.approx(balance.item(), rel=1e-5)
    assert router_z_loss(routing).item() == pytest.approx(z.item(), rel=1e-5)
    assert routing.entropies.item() == pytest.approx(entropy.sum().item(), rel=1e-5)
    assert routing.num_tokens.item() == counted.sum()
    assert routing.chosen.sum() == 2 * counted.sum()


def test_balance_is_1_when_even_and_num_experts_when_collapsed() -> None:
    ones = torch.ones(4)
    one_hot = torch.tensor([1.0, 0, 0, 0])
    unused = torch.tensor(0.0)
    even = Routing(torch.tensor(8.0), 4 * ones, 2 * ones, unused, unused, unused)
    collapsed = Routing(torch.tensor(8.0), 8 * one_hot, 8 * one_hot, unused, unused, unused)
    assert load_balance_loss(even).item() == 1
    assert load_balance_loss(collapsed).item() == 4


def test_minimising_the_router_losses_balances_the_load() -> None:
    layer = make_layer(top_k=1)
    hidden = torch.randn(500, D_MODEL) + torch.randn(D_MODEL)
    everyone = torch.ones(500, dtype=torch.bool)
    optimizer = torch.optim.Adam([layer.router.weight], lr=0.02)
    before = load_balance_loss(layer(hidden, everyone)[1]).item()
    for _ in range(60):
        optimizer.zero_grad()
        routing = layer(hidden, everyone)[1]
        load_balance_loss(routing).backward()
        optimizer.step()
    after = layer(hidden, everyone)[1]
    assert load_balance_loss(after).item() < 1.05 < before
    assert after.chosen.max() < 1.5 * 500 / 6


@pytest.fixture
def moe_config(tiny_config: MM1Config) -> MM1Config:
    moe = MoEConfig(num_experts=4, every_n_layers=2)
    decoder = dataclasses.replace(tiny_config.decoder, num_layers=4, moe=moe, output_z_weight=1e-2)
    return dataclasses.replace(tiny_config, decoder=decoder)


@pytest.fixture
def batch(
    make_document: Callable[..., list[int]], pack: Callable[..., dict[str, Tensor]]
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    documents = [make_document(words, images, generator) for words, images in [(5, 1), (17, 0)]]
    images = torch.randn(1, 3, 16, 16, generator=generator)
    return pack([documents], images, pad_to=48)


def test_experts_are_where_the_config_puts_them(moe_config: MM1Config) -> None:
    model = build_model(moe_config, 3, seed=0)
    kinds = [isinstance(layer.feed_forward, MoEFeedForward) for layer in model.decoder.layers]
    assert kinds == [False, True, False, True]


def test_padding_does_not_count(
    moe_config: MM1Config,
    batch: dict[str, Tensor],
    pack: Callable[..., dict[str, Tensor]],
) -> None:
    model = build_model(moe_config, 3, seed=0)
    real = int(batch["cu_seqlens"][-2])
    unpadded = {
        **{name: batch[name][:, :real] for name in ("input_ids", "position_ids", "labels")},
        "cu_seqlens": batch["cu_seqlens"][:-1],
        "pixel_values": batch["pixel_values"],
    }
    padded, exact = model(**batch), model(**unpadded)
    for name, term in padded.terms.items():
        expected = exact.terms[name].value
        torch.testing.assert_close(term.value, expected, atol=0, rtol=1e-5, msg=name)
    assert padded.loss.item() == pytest.approx(exact.loss.item(), rel=1e-6)
    gradients = []
    for output in (padded, exact):
        model.zero_grad()
        output.loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=0, msg=name)


def test_load_is_measured_for_each_group_of_rows(
    moe_config: MM1Config, batch: dict[str, Tensor]
) -> None:
    model = build_model(moe_config, 3, seed=0)
    num_rows = len(batch["input_ids"])
    groups = torch.zeros(3, num_rows, dtype=torch.bool)
    groups[0, 0] = True
    groups[2, 1:] = True
    terms = model(**batch, row_groups=groups).terms
    by_group = terms["router_load_by_stream"].value
    whole = terms["router_load"].value
    assert by_group.shape == (len(whole), 3, moe_config.decoder.moe.num_experts)
    sums = torch.tensor([1.0, 0.0, 1.0 if num_rows > 1 else 0.0])
    torch.testing.assert_close(by_group.sum(dim=-1), sums.expand(len(whole), 3))
    alone = model(**batch, row_groups=groups[:1]).terms["router_load"].value
    torch.testing.assert_close(by_group[:, 0], alone)
    expected = model(**batch).terms
    torch.testing.assert_close(whole, expected["router_load"].value)
    dead = (expected["router_load"].value == 0).sum(dim=-1).float()
    torch.testing.assert_close(terms["router_dead"].value, dead)


def test_recomputing_changes_nothing(moe_config: MM1Config, batch: dict[str, Tensor]) -> None:
    found = []
    for recompute in (False, True):
        config = dataclasses.replace(moe_config, gradient_checkpointing=recompute)
        model = build_model(config, 3, seed=0)
        output = model(**batch)
        output.loss.backward()
        assert output.terms["router_load"].value.shape == (2, 4)
        found.append([output.loss, *(p.grad for p in model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_loss_is_the_sum_of_its_parts(moe_config: MM1Config, batch: dict[str, Tensor]) -> None:
    model = build_model(moe_config, 3, seed=0)
    output = model(**batch)
    labelled = batch["labels"] != -100
    logits = model.logits(output.hidden)[labelled]
    z = torch.logsumexp(logits, -1) ** 2
    balance, router_z = (output.terms[name].value for name in ("load_balance", "router_z"))
    expected = F.cross_entropy(logits, batch["labels"][labelled]) + 1e-2 * z.mean()
    expected = expected + 2 * (0.01 * balance + 0.001 * router_z)  # two layers have experts
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert output.terms["output_z"].value.item() == pytest.approx(z.mean().item(), rel=1e-6)
    assert balance.item() > 0.99
    load, entropy = (output.terms[name].value for name in ("router_load", "router_entropy"))
    torch.testing.assert_close(load.sum(-1), torch.ones(2))
    assert (entropy > 0).all()
    assert (entropy < torch.tensor(4.0).log()).all()


def test_every_weight_gets_a_gradient(moe_config: MM1Config, batch: dict[str, Tensor]) -> None:
    model = build_model(moe_config, 3, seed=0)
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name


def test_without_labels_nothing_is_measured(
    moe_config: MM1Config, batch: dict[str, Tensor]
) -> None:
    model = build_model(moe_config, 3, seed=0)
    output = model(**{name: x for name, x in batch.items() if name != "labels"})
    assert output.loss is None
    assert not output.terms


def test_cached_decoding_equals_uncached(moe_config: MM1Config) -> None:
    model: MM1 = build_model(moe_config, 3, seed=0)
    input_ids = torch.randint(4, 64, (1, 20), generator=torch.Generator().manual_seed(0))
    images = torch.zeros(0, 3, 16, 16)
    positions = torch.arange(20)[None]
    with torch.no_grad():
        whole = model(input_ids, positions, torch.tensor([0, 20]), images).hidden
        embeddings = model.embed(input_ids, images)
        cache = model.make_cache(1, 20)
        pieces = [
            model.forward_cached(*piece, cache)
            for piece in zip(embeddings.split(1, 1), positions.split(1, 1), strict=True)
        ]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=0)


def test_checkpoint_keeps_every_bit(moe_config: MM1Config, tmp_path: Path) -> None:
    model = build_model(moe_config, 3, seed=0)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == moe_config
    expected = model.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in loaded.state_dict().items())


def test_each_expert_starts_like_a_dense_layer() -> None:
    moe = MoEConfig(num_experts=8)
    decoder = DecoderConfig(
        vocab_size=16, d_model=128, num_layers=2, num_heads=4, num_kv_heads=4, d_ff=256, moe=moe
    )
    vision = VisionConfig(
        image_size=8, patch_size=8, d_model=16, num_layers=1, num_heads=2, d_ff=16
    )
    config = MM1Config(
        vision=vision, connector=ConnectorConfig(num_tokens=1, num_blocks=1), decoder=decoder
    )
    experts: Any = build_model(config, 3, seed=0).decoder.get_submodule(
        "layers.1.feed_forward.experts"
    )
    for weight, std in ((experts.gate, 128**-0.5), (experts.down, 256**-0.5 / 2)):
        for expert in weight:  # 32,768 draws estimate it within 1.6 % (four sigmas)
            assert expert.std().item() == pytest.approx(std, rel=0.016)
        assert not torch.equal(weight[0], weight[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 7}, "top_k: found 7, expected 1..num_experts"),
        ({"every_n_layers": 0}, "every_n_layers: found 0"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entry(MoEConfig, num_experts=6, **changes)


def test_a_config_without_any_expert_layer_is_refused(tiny_config: MM1Config) -> None:
    with pytest.raises(ValueError, match="none would have experts"):
        dataclasses.replace(tiny_config.decoder, moe=MoEConfig(num_experts=4, every_n_layers=3))
