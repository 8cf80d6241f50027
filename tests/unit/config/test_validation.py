from __future__ import annotations

import pytest

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.shard import ShardConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.config.validation import ParameterError, check_parameters

MIXTURE = {"streams": {"text": {"share": 1.0, "sources": {"text": 1.0}}}}
MODEL = {
    "vision": dict(image_size=64, patch_size=8, d_model=8, num_layers=1, num_heads=2, d_ff=8),
    "connector": dict(num_tokens=16),
    "decoder": dict(vocab_size=9, d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=8),
}


def message(raw, types, free=()) -> str:
    with pytest.raises(ParameterError) as error:
        check_parameters(raw, types, free)
    return str(error.value)


def test_accepts_good_groups_and_switches():
    raw = {"pretrain": {"mixture": MIXTURE}, "model": MODEL, "allow_expensive": True}
    check_parameters(raw, {"pretrain": TrainingConfig, "model": MM1Config}, ["allow_expensive"])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            {"mixture": MIXTURE, "schedule": {"num_stps": 3}},
            "pretrain.schedule.num_stps: unknown parameter; did you mean `num_steps`?",
        ),
        (
            {"mixture": MIXTURE, "global_batch_size": "many"},
            "pretrain.global_batch_size: found 'many', expected a whole number of at least 1.",
        ),
        (
            {"mixture": MIXTURE, "schedule": {"num_steps": 5, "warmup_steps": 9}},
            "pretrain.schedule.warmup_steps: found 9, expected 0..5 (num_steps).",
        ),
        (
            {"mixture": {"streams": {"text": {"share": 0.4, "sources": {"text": 1.0}}}}},
            "pretrain.mixture.streams: found shares {'text': 0.4}, expected some that sum to 1.",
        ),
        (
            {"mixture": {"streams": {"text": {"share": 1.0, "sorces": {}, "sources": {"a": 1}}}}},
            "pretrain.mixture.streams.text.sorces: unknown parameter; did you mean `sources`?",
        ),
        ({}, "pretrain.mixture: missing, and it has no default."),
    ],
)
def test_names_path_finding_and_mend(raw, expected):
    assert expected in message({"pretrain": raw}, {"pretrain": TrainingConfig})


def test_reports_every_problem_at_once_and_misspelt_groups():
    raw = {
        "evalute": {},
        "model": {**MODEL, "connector": {"num_tokens": 15}},
        "evaluate": {
            "tasks": {"vqa": dict(source="a", metric="accuracy", prompt="{image} {image}")}
        },
    }
    text = message(raw, {"evaluate": EvaluateConfig, "model": MM1Config})
    assert "evalute: unknown parameter; did you mean `evaluate`?" in text
    assert (
        "model.connector.num_tokens: found 15, expected a square number; nearest: 9 or 16." in text
    )
    assert "evaluate.tasks.vqa.metric: found 'accuracy', expected 'cider', " in text


def test_missing_group_is_named():
    text = message({}, {"shard": ShardConfig})
    assert "shard: missing" in text


def test_a_source_that_is_called_as_a_field_is_no_field():
    """`text` is a source of the sample and a group of every source."""
    source = {"kind": "text", "format": "jsonl", "path": "x", "pth": "y"}
    with pytest.raises(ParameterError, match=r"sources\.text\.pth: .*did you mean `path`"):
        check_parameters({"ingest": {"sources": {"text": source}}}, {"ingest": IngestConfig})
    source = {**source, "max_records": 0}
    with pytest.raises(ParameterError, match="max_records: found 0, expected a whole number of at"):
        check_parameters({"ingest": {"sources": {"text": source}}}, {"ingest": IngestConfig})
