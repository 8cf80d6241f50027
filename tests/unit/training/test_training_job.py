"""Orders as they travel to ranks, and objects as ranks exchange them: data, nothing that runs."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import distributed_c10d
from torch.distributed._state_dict_utils import _TensorInfo

from mm1_pipeline.config.model import (
    ConnectorConfig,
    DecoderConfig,
    MM1Config,
    MoEConfig,
    VisionConfig,
)
from mm1_pipeline.config.pretraining import AimConfig, ClipConfig
from mm1_pipeline.config.training import MixtureConfig, StreamMixture, TrainingConfig
from mm1_pipeline.models.aim import PatchPrediction
from mm1_pipeline.models.clip import Contrastive
from mm1_pipeline.models.initialization import build_decoder, build_model, build_vision_encoder
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.next_token import NextTextToken, NextToken
from mm1_pipeline.models.objective import Objective
from mm1_pipeline.training.job import (
    FileMeeting,
    Job,
    NetworkMeeting,
    Order,
    build_without_weights,
    describe,
    frozen_weights,
    order_as_json,
    order_of_json,
)
from mm1_pipeline.training.plain_objects import send_plain_objects_only
from mm1_pipeline.training.sharding import state_tensors

TRAINING = TrainingConfig(
    mixture=MixtureConfig(
        streams={
            "b": StreamMixture(share=0.1 + 0.2, sources={"x": 1 / 3}),
            "a": StreamMixture(share=0.7, sources={"y": 1e-300}),
        }
    ),
    seed=7,
)
VISION = VisionConfig(image_size=16, patch_size=8, d_model=32, num_layers=1, num_heads=2, d_ff=64)
DECODER = DecoderConfig(
    vocab_size=320,
    d_model=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    d_ff=64,
    moe=MoEConfig(num_experts=2, every_n_layers=2),
)
MODEL = MM1Config(
    vision=VISION,
    connector=ConnectorConfig(num_tokens=4, num_blocks=1),
    decoder=DECODER,
    gradient_checkpointing=True,
)
CLIP = ClipConfig(d_embedding=16, d_model=32, num_layers=1, num_heads=2, d_ff=32)
AIM = AimConfig(head_layers=1, head_width=32)


def encoder():
    return build_vision_encoder(VISION, seed=1)


OBJECTIVES = {
    "next_token": lambda: NextToken(build_model(MODEL, 3, seed=1), num_streams=2),
    "next_text_token": lambda: NextTextToken(build_decoder(DECODER, seed=1)),
    "contrastive": lambda: Contrastive(encoder(), CLIP, vocab_size=320, image_token_id=3, seed=1),
    "patch_prediction": lambda: PatchPrediction(encoder(), AIM, seed=1),
}


def order_of(objective: Objective, **changes) -> Order:
    job = {
        "config": TRAINING,
        "objective": describe(objective),
        "frozen": frozen_weights(objective),
        "weights_file": Path("/data/start.safetensors"),
        "shards_dir": Path("/data/shards"),
        "stage": "pretrain",
        "work_dir": Path("/data/work"),
        "device": "cpu",
    }
    return Order(job=Job(**{**job, **changes}), meeting=FileMeeting(file=Path("/run/ranks")))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_rank_builds_the_same_objective_from_an_order(kind):
    objective = OBJECTIVES[kind]()
    first = next(iter(dict(objective.named_parameters())))
    objective.get_parameter(first).requires_grad_(False)
    order = order_of(objective)
    again = order_of_json(order_as_json(order))
    assert again == order
    assert list(again.job.config.mixture.streams) == ["b", "a"]
    assert again.job.objective.kind == kind
    built = build_without_weights(again.job)
    assert type(built) is type(objective)
    assert built.config == objective.config
    found = {name: (t.shape, t.dtype, t.requires_grad) for name, t in state_tensors(built)}
    expected = {name: (t.shape, t.dtype, t.requires_grad) for name, t in state_tensors(objective)}
    assert list(found.items()) == list(expected.items())
    assert not found[first][2]
    assert all(tensor.is_meta for _, tensor in state_tensors(built))
    modules = [(name, type(module)) for name, module in objective.named_modules()]
    assert [(name, type(module)) for name, module in built.named_modules()] == modules
    for name, module in objective.named_modules():
        if hasattr(module, "recompute"):
            assert built.get_submodule(name).recompute == module.recompute
    order_of_json(order_as_json(Order(job=order.job, meeting=NetworkMeeting(address="a", port=1))))


class Other(MM1):
    pass


def test_what_no_rank_could_build_is_refused_before_ranks_start():
    class Own(NextTextToken):
        pass

    with pytest.raises(ValueError, match="Found the objective Own, which is not one of those"):
        describe(Own(build_decoder(DECODER, seed=1)))
    with pytest.raises(ValueError, match="whose model is a Other"):
        describe(NextToken(Other(MODEL, 3)))
    objective = OBJECTIVES["next_token"]()
    objective.model.decoder.final_norm = torch.nn.LayerNorm(32)
    with pytest.raises(ValueError, match=r"give others: model\.decoder.final_norm\.bias"):
        describe(objective)
    with pytest.raises(ValueError, match="whose parameters give others"):
        describe(OBJECTIVES["next_token"]().double())


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def changed(order: bytes, path: str, value) -> bytes:
    content = json.loads(order)
    *parents, last = path.split(".")
    place = content
    for name in parents:
        place = place[name]
    place[last] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("job.command", "id"),
        ("extra", 1),
        ("job.config.seed", "7"),
        ("job.config.optimizer.momentum", 0.9),
        ("job.config.global_batch_size", 0),
        ("job.objective.kind", "os.system"),
        ("job.objective.model.decoder.d_model", [32]),
        ("job.device", "tpu"),
        ("job.frozen", [1]),
        ("job", None),
        ("meeting.kind", "network"),
        ("meeting.file", 3),
    ],
)
def test_an_order_with_a_wrong_field_is_refused(path, value):
    order = order_as_json(order_of(OBJECTIVES["next_token"]()))
    with pytest.raises(ValueError, match="does not understand"):
        order_of_json(changed(order, path, value))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_order_is_refused(data):
    with pytest.raises(ValueError, match="does not understand"):
        order_of_json(data)


def test_a_pickle_is_no_order(tmp_path):
    with pytest.raises(ValueError, match="does not understand"):
        order_of_json(pickle.dumps(Hostile(tmp_path / "ran")))
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Hostile(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "the attack works on what unpickles"


@pytest.fixture
def plain_only(monkeypatch):
    for name in ("_pickler", "_unpickler"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    send_plain_objects_only()


def sent(value) -> Any:
    tensor, size = distributed_c10d._object_to_tensor(value, torch.device("cpu"), None)
    return distributed_c10d._tensor_to_object(tensor, size, None)


def test_ranks_exchange_plain_objects(plain_only):
    value = {
        "a": (1, 2.5, None, True, "x", [1, (2,)]),
        ("b", 1): _TensorInfo(torch.Size([2, 3]), torch.bfloat16),
        "is": {"of": []},
        "shape": torch.Size([]),
    }
    again = sent(value)
    assert again == value
    assert type(again["a"]) is tuple
    assert type(again[("b", 1)]) is _TensorInfo
    assert type(again["shape"]) is torch.Size


@pytest.mark.parametrize("value", [b"x", {1, 2}, torch.zeros(1), Path("x"), object(), print])
def test_other_objects_are_not_sent(plain_only, value):
    with pytest.raises(TypeError, match="to send to other ranks as an object"):
        sent([value])


@pytest.mark.parametrize(
    "data",
    [
        b'{"is": "dtype", "of": "load"}',
        b'{"is": "dtype", "of": "__class__"}',
        b'{"is": "builtins.exec", "of": ["1"]}',
        b"{}",
        b"\x80\x04N.",
        b"",
    ],
)
def test_what_another_rank_sends_beside_them_is_refused(plain_only, data):
    with pytest.raises(ValueError, match=r"Found an object|Expecting|decode"):
        distributed_c10d._unpickler(io.BytesIO(data)).load()


def test_a_pickle_of_another_rank_does_not_run(plain_only, tmp_path):
    data = torch.frombuffer(bytearray(pickle.dumps(Hostile(tmp_path / "ran"))), dtype=torch.uint8)
    with pytest.raises(ValueError, match="decode"):
        distributed_c10d._tensor_to_object(data, len(data), None)
    assert not (tmp_path / "ran").exists()
