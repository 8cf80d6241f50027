"""Parts of parameter groups, for nodes that read no more."""

from __future__ import annotations

import dataclasses

import pytest

from mm1_pipeline.config._base import only
from mm1_pipeline.config.training import ScheduleConfig


@dataclasses.dataclass(frozen=True)
class Group:
    schedule: ScheduleConfig
    seed: int = 3
    name: str = "x"


def make_group() -> Group:
    return Group(ScheduleConfig(num_steps=7, warmup_steps=2))


def test_what_is_not_named_is_none_at_every_depth_and_the_group_stays() -> None:
    group = make_group()
    part = only(group, "seed", "schedule.num_steps")
    assert (part.seed, part.name) == (3, None)
    assert (part.schedule.num_steps, part.schedule.warmup_steps) == (7, None)
    assert only(group, "schedule").schedule == group.schedule
    assert group == make_group()


def test_a_field_that_is_not_there_is_named() -> None:
    with pytest.raises(AssertionError, match="sede"):
        only(make_group(), "sede")
