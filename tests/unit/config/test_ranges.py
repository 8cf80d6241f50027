"""Every number of every parameter has both ends, and what is outside is refused in house words."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import pytest
from parameter_groups import groups
from pydantic import TypeAdapter, ValidationError

from mm1_pipeline.config._base import MOST, bounds
from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.config.shard import SubImageConfig
from mm1_pipeline.config.training import TrainingConfig
from mm1_pipeline.config.validation import ParameterError, check_parameters

UNBOUNDED: dict[str, str] = {}
"""`Class.field`: why a number of it may be anything. None may at present; `Any` is no number:
overrides of the lab are checked as the parameters that they override."""


def numbers(hint: Any, limits: tuple[bounds, ...] = ()) -> Iterator[tuple[type, tuple]]:
    """Every number in a type, with what is said of it."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        own = tuple(item for item in metadata if isinstance(item, bounds))
        yield from numbers(inner, limits + own)
    elif hint in (int, float):
        yield hint, limits
    elif get_origin(hint) is not Literal:
        for argument in get_args(hint):
            yield from numbers(argument)


FIELDS = {
    f"{group.__name__}.{field.name}": get_type_hints(group, include_extras=True)[field.name]
    for group in groups()
    for field in dataclasses.fields(group)
}


def test_every_number_has_both_ends():
    without = set()
    for name, hint in FIELDS.items():
        for _, limits in numbers(hint):
            ends = [(each.ge, each.gt, each.le, each.lt) for each in limits]
            is_whole = len(ends) == 1 and (ends[0][0] is None) != (ends[0][1] is None)
            is_whole = is_whole and (ends[0][2] is None) != (ends[0][3] is None)
            if not is_whole:
                without.add(name)
    assert without == set(UNBOUNDED)
    counted = sum(1 for hint in FIELDS.values() for _ in numbers(hint))
    assert counted > 190  # else nothing was walked


@pytest.mark.parametrize("name", [n for n, hint in FIELDS.items() if any(numbers(hint))])
def test_what_is_outside_is_refused(name):
    """Just inside is taken and just outside refused, whatever the field's type is made of."""
    for kind, (limits,) in numbers(FIELDS[name]):
        adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", Annotated[kind, limits]))
        step = 1 if kind is int else 1e-6
        low = limits.ge if limits.ge is not None else limits.gt
        high = limits.le if limits.le is not None else limits.lt
        good = [low if limits.ge is not None else low + step]
        good += [high if limits.le is not None else high - step]
        for value in good:
            assert adapter.validate_python(value) == value
        bad = [low - max(step, abs(low) * 1e-9) if limits.ge is not None else low]
        bad += [high + max(step, abs(high) * 1e-9) if limits.le is not None else high]
        for value in [*bad, math.nan, math.inf, -math.inf, True, False, "", None]:
            with pytest.raises(ValidationError):
                adapter.validate_python(value)


@pytest.mark.parametrize("group", sorted(groups(), key=str))
def test_no_group_takes_what_is_not_finite(group):
    assert group.__pydantic_config__["allow_inf_nan"] is False


MIXTURE = {"streams": {"a": {"share": 1.0, "sources": {"s": 1.0}}}}


def said(cls: type, **values: Any) -> list[str]:
    with pytest.raises(ParameterError) as caught:
        check_parameters({"group": values}, {"group": cls})
    return [line.removeprefix("  - group.") for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize("value", [-1, 0, 1.5, math.nan, math.inf, True])
def test_a_learning_rate_is_more_than_0_and_at_most_1(value):
    assert said(TrainingConfig, mixture=MIXTURE, optimizer={"learning_rate": value}) == [
        f"optimizer.learning_rate: found {value!r}, expected a number of more than 0 and at most "
        "1, or null."
    ]


@pytest.mark.parametrize("value", [0, 9, 1.5, True, "x"])
def test_a_group_that_is_built_in_code_says_the_same(value):
    said = f"grid: found {value!r}, expected at least 1 and at most 8."
    with pytest.raises(ValueError, match=re.escape(said)):
        SubImageConfig(grid=value)


def test_all_that_is_out_of_range_is_said_at_once():
    streams = {"a": {"share": 1, "sources": {"s": -1, "t": math.nan}}}
    assert said(
        TrainingConfig,
        mixture={"streams": streams},
        optimizer={"betas": [0.9, 1]},
        schedule={"num_steps": 0, "warmup_steps": "many"},
        seed=2**32,
        num_workers=2.5,
        microbatch_size=MOST + 1,
    ) == [
        "mixture.streams.a.sources.s: found -1, expected a number of more than 0.",
        "mixture.streams.a.sources.t: found nan, expected a number of more than 0.",
        "optimizer.betas.1: found 1, expected a number of at least 0 and less than 1.",
        "schedule.num_steps: found 0, expected a whole number of at least 1.",
        "schedule.warmup_steps: found 'many', expected a whole number of at least 0.",
        f"seed: found {2**32}, expected a whole number of at least 0 and at most {2**32 - 1}.",
        f"microbatch_size: found {MOST + 1}, expected a whole number of at least 1 and at most "
        f"{MOST}, or null.",
        "num_workers: found 2.5, expected a whole number of at least 0 and at most 1024.",
    ]


def test_keys_that_are_numbers_and_rules_that_leave_nothing():
    source = {"kind": "text", "format": "jsonl", "path": "x"}
    rules = {"max_top_ngram_characters": {0: 0.1, 2: 7}, "min_words": 9, "max_words": 8}
    assert said(IngestConfig, sources={"s": {**source, "text": rules}}) == [
        "sources.s.text.max_top_ngram_characters: found 0, expected a whole number of at least 1 "
        "and at most 1000.",
        "sources.s.text.max_top_ngram_characters.2: found 7, expected a number of at least 0 and "
        "at most 1.",
    ]
    for rules, found in (
        ({"text": {"min_words": 9, "max_words": 8}}, "text.min_words: found 9"),
        ({"documents": {"min_images": 3, "max_images": 2}}, "documents.min_images: found 3"),
        ({"images": {"min_side": 200, "max_side": 100}}, "images.min_side: found 200"),
        ({"captions": {"min_characters": 5, "max_characters": 4}}, "captions.min_characters: fou"),
    ):
        (line,) = said(IngestConfig, sources={"s": {**source, **rules}})
        assert line.startswith(f"sources.s.{found}")
        assert line.endswith("nothing would pass both.")


def test_shots_and_seeds_of_lists_are_checked_one_by_one():
    task = {"task": "vqav2", "files": dict.fromkeys(("questions", "annotations", "images"), "x")}
    assert said(EvaluateConfig, tasks={"t": {**task, "shots": [0, -4]}}) == [
        "tasks.t.shots.1: found -4, expected a whole number of at least 0 and at most 1000."
    ]
