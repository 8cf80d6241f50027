from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mm1_pipeline.config.model import ConnectorConfig, ConnectorKind, MM1Config
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1

IMAGE = 3


@pytest.fixture
def model(tiny_config: MM1Config) -> MM1:
    return build_model(tiny_config, IMAGE, seed=0)


@pytest.fixture
def documents(make_document: Callable[..., list[int]]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(5, 1), (17, 0), (3, 2), (30, 1), (1, 0), (9, 1)]
    return [make_document(words, images, generator) for words, images in sizes]


def random_images(count: int, seed: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch(documents: list[list[int]], pack: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    rows = [[documents[0], documents[1], documents[2]], [documents[3], documents[4]], documents[5:]]
    return pack(rows, random_images(5), pad_to=64)


def test_packed_documents_have_the_losses_they_have_alone(
    model: MM1,
    batch: dict[str, Tensor],
    documents: list[list[int]],
    pack: Callable[..., dict[str, Tensor]],
) -> None:
    together = model(**batch).token_losses
    borders = batch["cu_seqlens"].tolist()
    real = [
        together.flatten()[start:end]
        for start, end in itertools.pairwise(borders)
        if batch["input_ids"].flatten()[start] != 0
    ]
    images = batch["pixel_values"].split([1, 0, 2, 1, 0, 1])
    for document, pixel_values, found in zip(documents, images, real, strict=True):
        alone = model(**pack([[document]], pixel_values)).token_losses
        # Worst seen 9.5e-7 for losses up to 7.
        torch.testing.assert_close(found, alone[0], atol=1e-5, rtol=0)
        assert alone.sum() > 0


def test_a_document_does_not_see_the_others(model: MM1, batch: dict[str, Tensor]) -> None:
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, -20:] = 9  # words and padding behind the row's first document
    start, end = batch["cu_seqlens"][:2].tolist()
    before = model(**batch).hidden[0, start:end]
    after = model(**changed).hidden[0, start:end]
    assert torch.equal(before, after)


def test_loss_is_the_mean_over_labels(model: MM1, batch: dict[str, Tensor]) -> None:
    output = model(**batch)
    labelled = batch["labels"] != -100
    expected = output.token_losses[labelled].mean()
    torch.testing.assert_close(output.loss, expected, atol=1e-6, rtol=0)
    assert torch.equal(output.token_losses != 0, labelled)
    assert torch.equal(model.token_losses(**batch), output.token_losses)


def test_images_take_their_placeholders_in_order(model: MM1, batch: dict[str, Tensor]) -> None:
    embeddings = model.embed(batch["input_ids"], batch["pixel_values"])
    tokens = torch.cat([model.connector(model.vision(x[None])) for x in batch["pixel_values"]])
    # One image at a time against all at once: worst seen 7.7e-7.
    torch.testing.assert_close(
        embeddings[batch["input_ids"] == IMAGE], tokens.flatten(0, 1), atol=1e-5, rtol=0
    )
    text = batch["input_ids"] != IMAGE
    assert torch.equal(embeddings[text], model.decoder.embedding(batch["input_ids"])[text])


@pytest.mark.parametrize("count", [4, 6, 0])
def test_mismatched_placeholders_are_refused(
    model: MM1, batch: dict[str, Tensor], count: int
) -> None:
    message = (
        rf"Found 20 image placeholders .* gives {count * 4} image tokens \({count} images x 4\)"
    )
    with pytest.raises(ValueError, match=message):
        model(**{**batch, "pixel_values": random_images(count)})


def test_image_token_must_be_in_the_vocabulary(tiny_config: MM1Config) -> None:
    with pytest.raises(ValueError, match="image_token_id 64"):
        MM1(tiny_config, 64)


def test_borders_that_do_not_cover_the_batch_are_refused(
    model: MM1, batch: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match="expected borders that rise from 0 to 192"):
        model(**{**batch, "cu_seqlens": batch["cu_seqlens"][:-1]})


def gradients(model: MM1) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    missing = [name for name, gradient in found.items() if gradient is None]
    assert not missing
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("kind", list(ConnectorKind))
def test_every_weight_gets_a_finite_gradient(
    tiny_config: MM1Config, batch: dict[str, Tensor], kind: ConnectorKind
) -> None:
    connector = ConnectorConfig(kind=kind, num_tokens=4, num_blocks=1, num_heads=4)
    model = build_model(dataclasses.replace(tiny_config, connector=connector), IMAGE, seed=0)
    model(**batch).loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient.isfinite().all(), name
        # The softmax of attention pooling does not depend on the keys' bias.
        assert gradient.any() or name == "connector.key.bias", name


def test_a_batch_without_images_gives_the_encoder_gradients_of_zero(
    model: MM1, make_document: Callable[..., list[int]], pack: Callable[..., dict[str, Tensor]]
) -> None:
    document = make_document(12, 0, torch.Generator().manual_seed(0))
    output = model(**pack([[document]], random_images(0)))
    assert output.loss.isfinite()
    output.loss.backward()
    for name, gradient in gradients(model).items():
        assert gradient.any() == name.startswith("decoder"), name


def test_equal_inputs_give_equal_bits(model: MM1, batch: dict[str, Tensor]) -> None:
    runs = []
    for _ in range(2):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        runs.append({"loss": loss.detach(), **gradients(model)})
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_gradient_checkpointing_changes_nothing(
    model: MM1, tiny_config: MM1Config, batch: dict[str, Tensor]
) -> None:
    saving = MM1(dataclasses.replace(tiny_config, gradient_checkpointing=True), IMAGE)
    saving.load_state_dict(model.state_dict())
    for each in (model, saving):
        each(**batch).loss.backward()
    expected = gradients(model)
    for name, gradient in gradients(saving).items():
        assert torch.equal(gradient, expected[name]), name


def test_mixed_precision_stays_near_float32(model: MM1, batch: dict[str, Tensor]) -> None:
    expected = model(**batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**batch).loss
    assert found.dtype == torch.float32
    found.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    # bfloat16 has 8 bits: worst seen 5.4e-4 for a loss of 4.6.
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
