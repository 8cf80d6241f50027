"""The contrastive objective against plain loops, and over two processes against one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from mm1_pipeline.config.model import VisionConfig
from mm1_pipeline.config.pretraining import ClipConfig
from mm1_pipeline.config.shard import ImageTransform, Resize
from mm1_pipeline.models.checkpoint import load_vision_encoder
from mm1_pipeline.models.clip import (
    HEADS,
    Contrastive,
    PairInputs,
    contrast,
    load_contrastive,
)
from mm1_pipeline.models.initialization import build_vision_encoder
from mm1_pipeline.models.objective import Objective
from mm1_pipeline.models.pairs import pair_images_with_texts, text_keys

IMAGE = 3
VISION = VisionConfig(image_size=8, patch_size=4, d_model=16, num_layers=1, num_heads=2, d_ff=32)
CLIP = ClipConfig(d_embedding=12, d_model=16, num_layers=1, num_heads=2, d_ff=32)


def objective(class_token: bool = False) -> Contrastive:
    config = VisionConfig(
        image_size=8,
        patch_size=4,
        d_model=16,
        num_layers=1,
        num_heads=2,
        d_ff=32,
        class_token=class_token,
    )
    vision = build_vision_encoder(config, seed=1)
    return Contrastive(vision, CLIP, vocab_size=64, image_token_id=IMAGE, seed=2)


@pytest.fixture
def batch(make_document: Callable, pack: Callable) -> dict[str, Any]:
    """Rows of captions, of one interleaved document, of text, and of an image without words."""
    generator = torch.Generator().manual_seed(0)
    captions = [make_document(words, 1, generator) for words in (3, 5, 2)]
    interleaved = [make_document(2, 3, generator)]
    text = [make_document(9, 0, generator)]
    wordless = [[1, *[IMAGE] * 4, 2]]
    rows = [captions, interleaved, text, wordless]
    pixel_values = torch.randn(7, 3, 8, 8, generator=generator)
    packed = pack(rows, pixel_values)
    counts = torch.tensor([3, 3, 0, 1])
    return {**packed, "images_per_sequence": counts, "documents": rows}


def find(batch: dict[str, Any]):
    return pair_images_with_texts(
        batch["input_ids"],
        batch["labels"],
        batch["cu_seqlens"],
        len(batch["pixel_values"]),
        IMAGE,
    )


def test_each_image_gets_the_text_of_its_document(batch) -> None:
    pairs = find(batch)
    texts = [
        [token for token in document if token not in (1, IMAGE)]
        for row in batch["documents"][:2]
        for document in row
    ]
    assert pairs.images.tolist() == [0, 1, 2, 3, 4, 5], "the last image has no words"
    assert pairs.texts.tolist() == [0, 1, 2, 3, 3, 3]
    assert pairs.sequences.tolist() == [0, 0, 0, 1, 1, 1]
    assert pairs.input_ids.tolist() == [token for text in texts for token in text]
    assert pairs.position_ids.tolist() == [i for text in texts for i in range(len(text))]
    assert pairs.cu_seqlens.diff().tolist() == [len(text) for text in texts]
    assert objective().count_targets(batch) == 6


def test_a_batch_without_images_has_no_pairs_and_gradients_of_zero(batch, make_document, pack):
    text = make_document(9, 0, torch.Generator().manual_seed(0))
    images = torch.zeros(0, 3, 8, 8)
    packed = {**pack([[text]], images), "images_per_sequence": torch.tensor([0])}
    model = objective()
    assert model.count_targets(packed) == 0
    output = model(packed)
    assert output.losses.tolist() == [0.0]
    output.losses.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_equal_texts_have_equal_keys(make_document, pack) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (make_document(4, 1, generator) for _ in range(2))
    swapped = [*one[:-3], one[-2], one[-3], one[-1]]
    images = torch.zeros(4, 3, 8, 8)
    packed = pack([[one, other], [one, swapped]], images)
    keys = text_keys(find({**packed, "pixel_values": images})).tolist()
    assert keys[0] == keys[2]
    assert len(set(keys)) == 3, "another order of the same words is another text"


def plain_loss(images: Tensor, texts: Tensor, ids: list[int], scale: float) -> list[float]:
    """By its definition, pair by pair, in float64."""
    similarity = (scale * images.double() @ texts.double().T).tolist()
    losses = []
    for own in range(len(ids)):
        rivals = [k for k in range(len(ids)) if k == own or ids[k] != ids[own]]
        to_texts = sum(math.exp(similarity[own][k]) for k in rivals)
        to_images = sum(math.exp(similarity[k][own]) for k in rivals)
        losses.append(0.5 * (math.log(to_texts) + math.log(to_images)) - similarity[own][own])
    return losses


def features(count: int, seed: int) -> Tensor:
    drawn = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def test_the_loss_by_its_definition() -> None:
    images, texts = features(6, 0), features(6, 1)
    ids = [10, 11, 12, 11, 13, 10]
    losses, accuracy = contrast(images, texts, torch.tensor(ids), torch.tensor(14.3))
    # float32 against float64: worst measured 1.7e-6, at losses up to 16.
    assert losses.tolist() == pytest.approx(plain_loss(images, texts, ids, 14.3), abs=1e-5)
    similarity = images @ texts.T
    for i, k in ((1, 3), (3, 1), (0, 5), (5, 0)):
        similarity[i, k] = -9
    right = (similarity.argmax(1) == torch.arange(6)).float().mean()
    assert accuracy == right


@pytest.mark.parametrize("class_token", [False, True])
def test_losses_are_summed_by_sequence(batch, class_token: bool) -> None:
    model = objective(class_token)
    with torch.no_grad():
        output = model(batch)
        pairs = find(batch)
        images = model.embed_images(batch["pixel_values"])
        texts = model.embed_texts(pairs)
    keys = text_keys(pairs)[pairs.texts].tolist()
    expected = plain_loss(images[pairs.images], texts[pairs.texts], keys, 1 / 0.07)
    assert output.weights.tolist() == [3, 3, 0, 0]
    assert output.losses.tolist() == pytest.approx(
        [sum(expected[:3]), sum(expected[3:]), 0.0, 0.0], abs=1e-4
    )
    assert output.terms["temperature"].value == pytest.approx(0.07)
    assert 0 <= output.terms["retrieval_accuracy"].value <= 1


def test_a_text_is_read_alone(batch) -> None:
    """What else is in the batch does not change a text's features."""
    model = objective()
    pairs = find(batch)
    with torch.no_grad():
        together = model.embed_texts(pairs)
        for text in range(len(together)):
            begin, end = pairs.cu_seqlens[text : text + 2].tolist()
            alone = pairs._replace(
                input_ids=pairs.input_ids[begin:end],
                position_ids=pairs.position_ids[begin:end],
                cu_seqlens=torch.tensor([0, end - begin]),
            )
            # Sums in another order: worst measured 1.2e-7.
            # Sums in another order: worst measured 1.2e-7.
            torch.testing.assert_close(
                model.embed_texts(alone)[0], together[text], atol=2e-6, rtol=0
            )


def test_the_scale_is_cut_but_can_come_back() -> None:
    model = objective()
    with torch.no_grad():
        model.log_scale.fill_(6.0)
    assert model.scale.item() == pytest.approx(100.0)
    model.scale.backward()
    assert model.log_scale.grad is not None
    assert model.log_scale.grad.item() == pytest.approx(100.0)


def test_it_learns_which_text_belongs_to_an_image(batch, tmp_path: Path) -> None:
    model = objective()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    accuracies = []
    for _ in range(60):
        output = model(batch)
        accuracies.append(output.terms["retrieval_accuracy"].value.item())
        optimizer.zero_grad()
        (output.losses.sum() / output.weights.sum()).backward()
        optimizer.step()
    assert accuracies[0] < 0.9
    assert accuracies[-1] == 1.0
    model.save(tmp_path)
    saved = load_vision_encoder(tmp_path).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in model.vision.state_dict().items())


def test_both_towers_come_back_and_the_encoder_is_stored_as_ever(batch, tmp_path: Path) -> None:
    model = objective(class_token=True)
    model.save(tmp_path / "alone")
    model.inputs = PairInputs(ImageTransform(size=8, resize=Resize.CROP), "ab12")
    for name in ("one", "two"):
        model.save(tmp_path / name)
    assert not (tmp_path / "alone" / HEADS).exists()
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        heads = [tmp_path / copy / HEADS / name for copy in ("one", "two")]
        assert heads[0].read_bytes() == heads[1].read_bytes()
    loaded = load_contrastive(tmp_path / "one")
    assert loaded.inputs == model.inputs
    with torch.no_grad():
        assert torch.equal(loaded(batch).losses, model(batch).losses)
    with pytest.raises(ValueError, match="objective: clip"):
        load_contrastive(tmp_path / "alone")
    (tmp_path / "one" / HEADS / "config.json").write_text(
        '{"format_version": 1, "contrastive": {}}'
    )
    with pytest.raises(ValueError, match="vocab_size"):
        load_contrastive(tmp_path / "one")


def test_it_compares_the_whole_batch_and_has_no_law() -> None:
    model: Objective = objective()
    assert model.compares_batch
    assert model.law_parameters is None
    assert model.needs == (64, 8, None)


def rank_batch(rank: int, num_ranks: int) -> dict[str, Any]:
    """Pairs 0-2 and 3-4, or all five: ranks have different numbers of them."""
    generator = torch.Generator().manual_seed(7)
    lengths = (3, 6, 2, 4, 3)
    texts = [torch.randint(4, 64, (n,), generator=generator).tolist() for n in lengths]
    texts[4] = texts[0]  # an equal text on another rank
    pixels = torch.randn(5, 3, 8, 8, generator=generator)
    mine = range(5) if num_ranks == 1 else (range(3), range(3, 5))[rank]
    documents = [[1, *[IMAGE] * 4, *texts[i], 2] for i in mine]
    ids = [token for document in documents for token in document]
    labels = [
        -100 if token in (1, IMAGE) else token
        for document in documents
        for token in [*document[1:], 1]
    ]
    borders = [0]
    for document in documents:
        borders.append(borders[-1] + len(document))
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "cu_seqlens": torch.tensor(borders, dtype=torch.int32),
        "pixel_values": pixels[list(mine)],
        "images_per_sequence": torch.tensor([len(mine)]),
    }


def train_step(rank: int, num_ranks: int) -> dict[str, Tensor]:
    """Loss and gradients as a data-parallel training makes them: averaged over ranks."""
    torch.set_num_threads(1)
    model = objective()
    output = model(rank_batch(rank, num_ranks))
    count = output.weights.sum().float()
    if num_ranks > 1:
        dist.all_reduce(count)
    loss = output.losses.sum() / count * num_ranks
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad
    if num_ranks > 1:
        for value in found.values():
            dist.all_reduce(value)
            value /= num_ranks
    return found


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = train_step(rank, 2)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    # Forked, not spawned: nothing is imported again, and gloo needs no CUDA.
    start_processes(run_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    expected = train_step(0, 1)
    assert expected["vision.patch_embedding.weight"].abs().max() > 1e-3
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in expected.items():
            # Sums in another order: worst measured 9.5e-7, at gradients up to 2.5.
            torch.testing.assert_close(found[name], value, atol=5e-6, rtol=0, msg=name)
