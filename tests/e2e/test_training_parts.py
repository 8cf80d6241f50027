"""Encoder and decoder from each source, and trainings of them that are interrupted."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_training_ranks import rows_of, run_ranks, train_rank
from training_toy import CONFIG, MODEL, SEED, write_toy_shards

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.pretraining import (
    AimConfig,
    ClipConfig,
    TextPretrainConfig,
    VisionObjective,
    VisionPretrainConfig,
    WeightSource,
)
from mm1_pipeline.config.training import (
    CheckpointConfig,
    MixtureConfig,
    OptimizerConfig,
    ScheduleConfig,
    StreamMixture,
    TrainingConfig,
)
from mm1_pipeline.evaluation.held_out.vision import held_out_vision
from mm1_pipeline.models.aim import load_patch_prediction
from mm1_pipeline.models.checkpoint import load_decoder, load_vision_encoder
from mm1_pipeline.models.clip import Contrastive
from mm1_pipeline.models.convert.preflight import check_decoder_file
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.streams.loader import build_validation_loader
from mm1_pipeline.streams.mixture import plan_part
from mm1_pipeline.streams.shard_index import ShardIndex, link_sources, verify_shards
from mm1_pipeline.training import parts
from mm1_pipeline.training.metrics import without_timing

NUM_STEPS = 40


def training(source: str, **changes) -> TrainingConfig:
    streams = {"only": StreamMixture(share=1.0, sources={source: 1.0})}
    config = dataclasses.replace(
        CONFIG,
        mixture=MixtureConfig(streams=streams),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        schedule=ScheduleConfig(num_steps=NUM_STEPS, warmup_steps=4),
        checkpoint=CheckpointConfig(interval_steps=7),
        global_batch_size=8,
    )
    return dataclasses.replace(config, **changes)


CLIP = VisionPretrainConfig(
    training=training("pairs"),
    source=WeightSource.TRAIN,
    clip=ClipConfig(d_embedding=16, d_model=32, num_layers=1, num_heads=2, d_ff=32),
)
# Four patches instead of one, so that there is something to predict.
VISION = {
    VisionObjective.CLIP: MODEL.vision,
    VisionObjective.AIM: dataclasses.replace(MODEL.vision, patch_size=4),
}
AIM = dataclasses.replace(
    CLIP,
    objective=VisionObjective.AIM,
    aim=AimConfig(head_layers=1, head_width=32),
    training=training("pages"),
)
TEXT = TextPretrainConfig(training=training("books"), source=WeightSource.TRAIN)


@pytest.fixture(scope="module")
def shards_dir(tmp_path_factory) -> Path:
    return write_toy_shards(tmp_path_factory.mktemp("toy"))


def make_vision(config: VisionPretrainConfig, shards_dir: Path, folder: Path):
    return parts.make_vision_encoder(
        config,
        VISION[config.objective],
        shards_dir,
        work_dir=folder / "work",
        output_dir=folder / "out",
    )


def held_out(config: VisionPretrainConfig, shards_dir: Path, folder: Path, **changes):
    return held_out_vision(EvaluateConfig(tasks={}, **changes), config, folder / "out", shards_dir)


def make_text(config: TextPretrainConfig, shards_dir: Path, folder: Path):
    return parts.make_decoder(
        config,
        MODEL.decoder,
        shards_dir,
        work_dir=folder / "work",
        output_dir=folder / "out",
    )


def test_clip_learns_and_logs_its_terms(shards_dir, tmp_path):
    rows = make_vision(CLIP, shards_dir, tmp_path)
    assert len(rows) == NUM_STEPS
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[0]["terms"]["temperature"] == pytest.approx(0.07)
    assert rows[-1]["terms"]["retrieval_accuracy"] > rows[0]["terms"]["retrieval_accuracy"]
    assert load_vision_encoder(tmp_path / "out").config == MODEL.vision
    found = held_out(CLIP, shards_dir, tmp_path)
    assert found == held_out(CLIP, shards_dir, tmp_path)
    images = found["sets"]["validation: pairs"]["image_to_text"]
    batches = build_validation_loader(shards_dir, "pairs", 1)
    num_images = sum(len(batch["pixel_values"]) for batch in batches)
    assert (images["n"], images["candidates"]) == (num_images, 2), "two colours"
    assert images["chance"]["1"] == 0.5
    assert images["recall"]["1"] > 0.9
    assert found["sets"]["validation"] == found["sets"]["validation: pairs"]


def test_aim_learns(shards_dir, tmp_path):
    rows = make_vision(AIM, shards_dir, tmp_path)
    first, last = rows[0]["loss"], rows[-1]["loss"]
    assert last < 0.8 * first
    assert load_vision_encoder(tmp_path / "out").config == VISION[VisionObjective.AIM]
    found = held_out(AIM, shards_dir, tmp_path, max_validation_items=10)
    assert found["objective"] == "aim"
    assert found["sets"]["validation"]["n"] == 10
    model = load_patch_prediction(tmp_path / "out")
    with torch.no_grad():
        losses = [
            model.image_losses(image.unsqueeze(0), 0)
            for batch in build_validation_loader(shards_dir, "pages", 1)
            for image in batch["pixel_values"]
        ]
    # Alone and together: sums in another order.
    expected = torch.cat(losses[:10]).mean().item()
    assert found["sets"]["validation"]["loss"] == pytest.approx(expected, abs=1e-5)
    assert (
        held_out(dataclasses.replace(AIM, source=WeightSource.SCRATCH), shards_dir, tmp_path) == {}
    )


def test_a_part_is_trained_on_the_mixture_that_was_planned(shards_dir, tmp_path):
    planned = plan_part(TEXT, shards_dir)
    assert planned["streams"]["only"]["sources"]["books"]["drawn"] == 8 * NUM_STEPS
    assert plan_part(dataclasses.replace(TEXT, source=WeightSource.SCRATCH), shards_dir) == {}
    where = {"work_dir": tmp_path / "work", "output_dir": tmp_path / "out"}
    other = plan_part(dataclasses.replace(TEXT, training=training("books", seed=9)), shards_dir)
    with pytest.raises(ValueError, match="expected the planned one"):
        parts.make_decoder(TEXT, MODEL.decoder, shards_dir, **where, expected_mixture=other)
    short = training("books", schedule=ScheduleConfig(num_steps=1, warmup_steps=1))
    config = dataclasses.replace(TEXT, training=short)
    planned = plan_part(config, shards_dir)
    parts.make_decoder(config, MODEL.decoder, shards_dir, **where, expected_mixture=planned)


def test_a_part_trains_on_its_own_sources_alone_as_on_all(shards_dir, tmp_path):
    planned, alone, none = plan_part(TEXT, shards_dir), tmp_path / "alone", tmp_path / "none"
    link_sources(shards_dir, ["books"], alone)
    assert (
        set(ShardIndex.read(alone).sources) == {"books"} < set(ShardIndex.read(shards_dir).sources)
    )
    assert plan_part(TEXT, alone) == planned
    assert verify_shards(alone) > 0
    other, again = tmp_path / "other", tmp_path / "again"
    shutil.copytree(shards_dir, other)
    index = ShardIndex.read(shards_dir)
    packing = dataclasses.replace(index.packing, overflow="truncate", window=7)
    dataclasses.replace(index, packing=packing).write(other)
    link_sources(other, ["books"], again)
    assert (again / "shards.json").read_text() == (alone / "shards.json").read_text()
    link_sources(shards_dir, [], none)
    assert [path.name for path in none.iterdir()] == ["shards.json"]
    scratch = dataclasses.replace(TEXT, source=WeightSource.SCRATCH)
    where = {"work_dir": tmp_path / "work", "output_dir": tmp_path / "out"}
    assert parts.make_decoder(scratch, MODEL.decoder, none, **where) == []


class InterruptError(Exception):
    pass


@pytest.mark.parametrize(("config", "make"), [(CLIP, make_vision), (AIM, make_vision)])
def test_an_interrupted_training_equals_an_uninterrupted_one(
    config, make, shards_dir, tmp_path, monkeypatch
):
    short = dataclasses.replace(
        config,
        training=dataclasses.replace(
            config.training, schedule=ScheduleConfig(num_steps=9, warmup_steps=2)
        ),
    )
    expected = make(short, shards_dir, tmp_path / "whole")
    kind = Contrastive if config is CLIP else parts.PatchPrediction
    forward, calls = kind.forward, []

    def stop_at_8(self, batch):
        calls.append(1)
        if len(calls) == 9:
            raise InterruptError
        return forward(self, batch)

    monkeypatch.setattr(kind, "forward", stop_at_8)
    with pytest.raises(InterruptError):
        make(short, shards_dir, tmp_path / "stopped")
    resumed = make(short, shards_dir, tmp_path / "stopped")
    assert without_timing(resumed) == without_timing(expected)
    weights = [
        (tmp_path / name / "out" / "model.safetensors").read_bytes()
        for name in ("whole", "stopped")
    ]
    assert weights[0] == weights[1]


def test_microbatches_change_nothing_for_aim_and_are_refused_for_clip(shards_dir, tmp_path):
    changes = {"schedule": ScheduleConfig(num_steps=2, warmup_steps=1)}
    rows = []
    for size in (None, 3):
        config = training("pages", microbatch_size=size, **changes)
        folder = tmp_path / str(size)
        rows.append(make_vision(dataclasses.replace(AIM, training=config), shards_dir, folder))
    for whole, split in zip(*rows, strict=True):
        # Sums in another order.
        assert split["loss"] == pytest.approx(whole["loss"], rel=5e-6)
    config = training("pairs", microbatch_size=4)
    with pytest.raises(ValueError, match="microbatch_size: found 4, expected null or at least"):
        make_vision(dataclasses.replace(CLIP, training=config), shards_dir, tmp_path / "clip")


def test_a_decoder_is_trained_on_text_and_refuses_images(shards_dir, tmp_path):
    rows = make_text(TEXT, shards_dir, tmp_path)
    assert rows[0]["losses"]["only"] > 5
    assert rows[-1]["losses"]["only"] < 2.5
    assert all(row["positions"]["image"] == 0 for row in rows)
    assert load_decoder(tmp_path / "out").config == MODEL.decoder
    with_images = dataclasses.replace(TEXT, training=training("pages"))
    with pytest.raises(ValueError, match=r"text_pretrain\.training\.mixture: found \d+ images"):
        make_text(with_images, shards_dir, tmp_path / "images")


def test_random_parts_are_those_of_a_model_built_whole(shards_dir, tmp_path):
    vision = dataclasses.replace(CLIP, source=WeightSource.SCRATCH)
    text = dataclasses.replace(TEXT, source=WeightSource.SCRATCH)
    assert make_vision(vision, shards_dir, tmp_path / "vision") == []
    assert make_text(text, shards_dir, tmp_path / "text") == []
    assert not (tmp_path / "vision" / "work").exists()
    places = {
        "vision_dir": tmp_path / "vision" / "out",
        "decoder_dir": tmp_path / "text" / "out",
    }
    found = parts.initial_model(MODEL, shards_dir, **places, seed=SEED)
    image_id = ShardIndex.read(shards_dir).special_ids["image"]
    expected = build_model(MODEL, image_id, seed=SEED)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_parts_are_taken_from_files_of_this_project(shards_dir, tmp_path):
    make_vision(dataclasses.replace(CLIP, source=WeightSource.SCRATCH), shards_dir, tmp_path / "a")
    make_text(dataclasses.replace(TEXT, source=WeightSource.SCRATCH), shards_dir, tmp_path / "b")
    files = {"source": WeightSource.FILE}
    vision = dataclasses.replace(CLIP, **files, path=str(tmp_path / "a" / "out"))
    text = dataclasses.replace(TEXT, **files, path=str(tmp_path / "b" / "out"))
    make_vision(vision, shards_dir, tmp_path / "c")
    make_text(text, shards_dir, tmp_path / "d")
    for one, other in (("a", "c"), ("b", "d")):
        contents = [
            (tmp_path / name / "out" / "model.safetensors").read_bytes() for name in (one, other)
        ]
        assert contents[0] == contents[1]
    wider = dataclasses.replace(MODEL.vision, d_ff=128)
    with pytest.raises(ValueError, match=r"model\.vision\.d_ff: 128 -> 64"):
        parts.make_vision_encoder(
            vision, wider, shards_dir, work_dir=tmp_path / "w", output_dir=tmp_path / "e"
        )


def test_sources_and_paths_go_together():
    with pytest.raises(ValueError, match="path: found null, expected a file or folder"):
        dataclasses.replace(TEXT, source=WeightSource.FILE)
    with pytest.raises(ValueError, match="path: found 'x', expected null unless source is file"):
        dataclasses.replace(CLIP, path="x")
    law = dataclasses.replace(CLIP.training, optimizer=OptimizerConfig())
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate: found null"):
        dataclasses.replace(CLIP, training=law)


@pytest.mark.parametrize("config", [CLIP, AIM], ids=["clip", "aim"])
def test_two_ranks_equal_one(config, shards_dir, tmp_path):
    """Sharded by FSDP2 over gloo; CLIP's texts of one rank are compared with the other's images."""
    short = dataclasses.replace(
        config.training,
        schedule=ScheduleConfig(num_steps=6, warmup_steps=2),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )
    rows = []
    for size in (1, 2):
        objective = parts.build_vision_objective(
            config, VISION[config.objective], ShardIndex.read(shards_dir)
        )
        folder = tmp_path / str(size)
        results = run_ranks(train_rank, short, objective, shards_dir, folder, size=size)
        assert all("units" in result for result in results), results
        rows.append(rows_of(folder))
    assert len(rows[0]) == len(rows[1]) == 6
    for one, two in zip(*rows, strict=True):
        # Worst measured: 8.4e-7 of losses, 3.0e-7 of norms.
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        assert two["terms"] == pytest.approx(one["terms"], abs=1e-5)


def test_a_file_is_checked_before_a_run(tmp_path):
    from mm1_pipeline.preflight.run import Run
    from mm1_pipeline.preflight.training import check_vision

    def told(path: Path) -> str:
        config = dataclasses.replace(CLIP, source=WeightSource.FILE, path=str(path))
        groups = {"vision_pretrain": config, "model.vision": MODEL.vision}
        return "\n".join(check_vision(Run(frozenset({"pretrain_vision"}), groups)))

    assert "vision_pretrain.path: found nothing at" in told(tmp_path / "missing")
    (tmp_path / "weights.bin").touch()
    assert "Pickled weights are never opened" in told(tmp_path)


def test_a_decoders_file_is_checked_before_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"text_pretrain\.path: found nothing at"):
        check_decoder_file(tmp_path / "missing", MODEL.decoder)
    llama = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(llama))
    layer = {
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (96, 32),
        "mlp.up_proj": (96, 32),
        "mlp.down_proj": (32, 96),
    }
    shapes = {f"layers.{number}.{name}": layer[name] for number in range(2) for name in layer}
    shapes |= {"embed_tokens": (300, 32), "norm": (32,)}
    tensors = {f"model.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.decoder\.d_ff: 64 -> 96"):
        check_decoder_file(tmp_path, MODEL.decoder)
    check_decoder_file(tmp_path, dataclasses.replace(MODEL.decoder, d_ff=96))
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"found no tensor 'model\.norm\.weight'"):
        check_decoder_file(tmp_path, dataclasses.replace(MODEL.decoder, d_ff=96))
