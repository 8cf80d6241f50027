"""Whether work may go on: parameters count, but for those whose fields are marked."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path

import pytest
from kedro_rerun.parameters import ORDER, flatten_parameters

import mm1_pipeline.config
from mm1_pipeline.config.download import DownloadConfig, FetchLimits
from mm1_pipeline.config.ingest import SourceConfig
from mm1_pipeline.config.shard import ImageTransform, PackingConfig, ShardConfig
from mm1_pipeline.config.training import (
    CheckpointConfig,
    MixtureConfig,
    ScheduleConfig,
    StreamMixture,
    TrainingConfig,
)
from mm1_pipeline.ground.identity import EXTENT, differences, identity, result_values
from mm1_pipeline.training.train import _check_identity
from typed_values import entry

MIXTURE = MixtureConfig(streams={"text": StreamMixture(share=1.0, sources={"books": 1.0})})
TRAINING = TrainingConfig(mixture=MIXTURE)
DOWNLOAD = DownloadConfig(lists="here", output="there")
SHARD = ShardConfig(
    packing=PackingConfig(sequence_length=64, max_images=4, image_tokens=4),
    image=ImageTransform(size=16),
)
SOURCE = entry(SourceConfig, kind="text", format="jsonl", path="here")


def parameter_groups() -> dict[str, object]:
    """One of every group that has defaults throughout, and of some that have not."""
    found: dict[str, object] = {
        type(group).__name__: group for group in (TRAINING, DOWNLOAD, SHARD, SOURCE, MIXTURE)
    }
    for module in pkgutil.iter_modules(mm1_pipeline.config.__path__, "mm1_pipeline.config."):
        for name, value in vars(importlib.import_module(module.name)).items():
            is_ours = getattr(value, "__module__", "").startswith(mm1_pipeline.config.__name__)
            if is_ours and isinstance(value, type) and dataclasses.is_dataclass(value):
                try:
                    found.setdefault(name, value())
                except (TypeError, ValueError):  # Not without what has no default.
                    continue
    return found


GROUPS = parameter_groups()


def test_of_all_groups_there_are_many():
    assert len(GROUPS) > 30


@pytest.mark.parametrize("name", GROUPS)
def test_what_counts_here_counts_for_reruns(name):
    """But for what says how much is made: that makes a stage run again, and go on."""
    group = GROUPS[name]
    flat = flatten_parameters(group, "")
    counted = {path.removeprefix(".") for path in flat.values if ORDER not in path}
    assert set(leaves(result_values(group))) | set(of_extent(group)) == counted


def leaves(value: object, path: str = "") -> list[str]:
    """Paths as `flatten_parameters` names them: a sequence of plain values is one."""
    if isinstance(value, dict):
        return [leaf for key, child in value.items() for leaf in leaves(child, f"{path}.{key}")]
    if isinstance(value, list) and any(isinstance(child, dict | list) for child in value):
        return [leaf for key, child in enumerate(value) for leaf in leaves(child, f"{path}[{key}]")]
    return [path.removeprefix(".")]


def of_extent(group: object, path: str = "") -> list[str]:
    if not dataclasses.is_dataclass(group):
        return []
    found = []
    for field in dataclasses.fields(group):
        here = f"{path}.{field.name}".removeprefix(".")
        if field.metadata.get(EXTENT):
            found.append(here)
        found += of_extent(getattr(group, field.name), here)
    return found


@pytest.mark.parametrize(
    ("group", "changes"),
    [
        (TRAINING, {"num_workers": 3, "device": "cpu", "checkpoint": CheckpointConfig(keep=9)}),
        (DOWNLOAD, {"lists": "elsewhere", "output": "x", "concurrency": 1, "max_images": 7}),
        (DOWNLOAD, {"limits": FetchLimits(host_failures=9)}),
        (SOURCE, {"path": "elsewhere"}),
        (SHARD, {"num_workers": 8}),
    ],
)
def test_marked_fields_do_not_count(group, changes):
    for name, value in changes.items():
        other = dataclasses.replace(group, **{name: value})
        assert other != group
        assert identity(of=other) == identity(of=group)


def test_whether_there_is_an_input_counts():
    assert result_values(dataclasses.replace(DOWNLOAD, lists=None))["lists"] is None
    assert "lists" not in result_values(DOWNLOAD)


@pytest.mark.parametrize(
    ("group", "changes"),
    [
        (TRAINING, {"schedule": ScheduleConfig(num_steps=300_000), "seed": 7}),
        (DOWNLOAD, {"images_per_shard": 7, "limits": FetchLimits(num_retries=9)}),
        (SOURCE, {"max_records": 7, "split": "evaluation"}),
        (SHARD, {"seed": 7, "validation_fraction": 0.25}),
    ],
)
def test_all_others_count(group, changes):
    for name, value in changes.items():
        assert identity(of=dataclasses.replace(group, **{name: value})) != identity(of=group)


def test_an_identity_is_the_same_on_every_machine_and_in_every_version():
    found = identity(layout=2, files=[("a", 1), (Path("b"), None)], config=FetchLimits())
    assert found[:12] == "9b959f8ad845"
    assert found == identity(config=FetchLimits(), files=(["a", 1], ["b", None]), layout=2)
    with pytest.raises(TypeError):
        identity(of=object())


def test_identity_of_a_training_is_checked(tmp_path):
    began = result_values({"schedule": {"num_steps": 10, "betas": (0.9, 0.95)}, "seed": 1})
    _check_identity(tmp_path, began)
    _check_identity(tmp_path, began)
    changed = {"schedule": {"num_steps": 20, "betas": [0.9, 0.95]}, "seed": 1, "new": True}
    with pytest.raises(ValueError, match=r"new: None -> True; schedule\.num_steps: 10 -> 20"):
        _check_identity(tmp_path, changed)
    assert list(differences({"a": {"b": 1}}, {"a": 2})) == ["a: {'b': 1} -> 2"]
