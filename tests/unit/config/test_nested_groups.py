"""YAML that names some fields of a nested group leaves the others as the outer class has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from parameter_groups import groups
from pydantic import TypeAdapter

from mm1_pipeline.config.download import DownloadConfig
from mm1_pipeline.config.stages import SFTConfig
from mm1_pipeline.config.training import AdafactorConfig, OptimizerKind
from mm1_pipeline.config.validation import parameter_problems

MIXTURE = {"streams": {"a": {"share": 1.0, "sources": {"b": 1}}}}
NESTED = [
    pytest.param(group, field, id=f"{group.__name__}.{field.name}")
    for group in groups()
    for field in dataclasses.fields(group)  # pyright: ignore[reportArgumentType]
    if dataclasses.is_dataclass(field.default)
]


@pytest.mark.parametrize(("group", "field"), NESTED)
def test_one_field_of_a_nested_group_leaves_the_others_as_they_are(
    group: type, field: dataclasses.Field[Any]
):
    adapter = TypeAdapter(type(field.default))
    for inner in dataclasses.fields(field.default):
        given = {field.name: {inner.name: getattr(field.default, inner.name)}}
        filled = group._keep_defaults(given, SimpleNamespace(mode="python"))  # pyright: ignore[reportAttributeAccessIssue]
        assert adapter.validate_python(filled[field.name]) == field.default, inner.name


def test_there_are_some():
    assert len(NESTED) > 20


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(TypeAdapter(SFTConfig).validate_python, id="checked"),
        pytest.param(lambda values: SFTConfig(**values), id="as Kedro builds it"),
    ],
)
def test_fine_tuning_keeps_its_optimizer_whatever_is_named(build: Callable[[Any], SFTConfig]):
    made = build(
        {
            "mixture": MIXTURE,
            "optimizer": {"learning_rate": 1e-4, "adafactor": {"decay_exponent": 0.5}},
            "schedule": {"num_steps": 400},
        }
    )
    assert made.optimizer.kind is OptimizerKind.ADAFACTOR
    assert (made.optimizer.weight_decay, made.optimizer.learning_rate) == (0.0, 1e-4)
    assert made.optimizer.adafactor == AdafactorConfig(decay_exponent=0.5)
    assert (made.schedule.warmup_steps, made.schedule.final_fraction) == (300, 0.0)


def test_what_is_named_stands_below_what_is_kept():
    made = TypeAdapter(DownloadConfig).validate_python(
        {"output": "raw", "images": {"min_side": 10}}
    )
    assert (made.images.min_side, made.images.max_pixels) == (10, 50_000_000)


def test_a_wrong_name_inside_is_still_refused():
    given = {"mixture": MIXTURE, "optimizer": {"learnin_rate": 1e-4}}
    problems = parameter_problems("sft", SFTConfig, given)
    assert problems == [
        "sft.optimizer.learnin_rate: unknown parameter; did you mean `learning_rate`?"
    ]


def test_what_is_dumped_as_json_is_read_back_strictly():
    adapter = TypeAdapter(SFTConfig)
    made = adapter.validate_python({"mixture": MIXTURE, "optimizer": {"betas": [0.5, 0.6]}})
    assert adapter.validate_json(adapter.dump_json(made), strict=True) == made
