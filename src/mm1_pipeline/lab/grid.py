"""Arms of a grid: the environment's parameters with some changed, checked and written out.

An arm's configuration is written out whole, so it can be run by hand as well. `lab.execution`
runs them.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from mm1_pipeline.config.lab import Goal, GridConfig, LrLawConfig, Overrides
from mm1_pipeline.config.validation import parameter_problems

ENVIRONMENT = "arm"


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed.

    Attributes:
        arm: Its name.
        seed: Its seed.
        goal: The pipeline that it runs.
        parameters: Everything the run is given, by group, as JSON values.
        groups: The same, typed.
    """

    arm: str
    seed: int
    goal: Goal
    parameters: dict[str, Any]
    groups: dict[str, Any] = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        """Folder of the run's results."""
        return f"{self.arm}/seed{self.seed}"


def resolve_arms(config: GridConfig, parameters: Mapping[str, Any]) -> list[ArmRun]:
    """Applies each arm's overrides and each seed, and checks what comes out.

    Args:
        config: Arms and seeds.
        parameters: The environment's, by group; what an arm changes is checked again.

    Returns:
        Seed by seed, so that every arm has a first result soon.

    Raises:
        ValueError: An override's path does not exist, or a value is not allowed.
    """
    groups = {name: value for name, value in parameters.items() if dataclasses.is_dataclass(value)}
    adapters = {name: TypeAdapter(type(value)) for name, value in groups.items()}
    raw = {name: adapters[name].dump_python(value, mode="json") for name, value in groups.items()}
    runs = []
    for seed in config.chosen_seeds:
        for arm, overrides in config.chosen_arms.items():
            if seed not in config.seeds_of(arm):
                continue
            changed = apply_overrides(raw, {**overrides, **dict.fromkeys(config.seed_paths, seed)})
            typed = {
                name: group
                if changed[name] == raw[name]
                else _build_group(arm, name, adapters[name], type(group), changed[name])
                for name, group in groups.items()
            }
            runs.append(ArmRun(arm, seed, config.goal_of(arm), changed, typed))
    return runs


def learning_rate_grid(config: LrLawConfig) -> GridConfig:
    """Every size with every rate, as the arms of a grid."""
    arms = {
        f"{size}-lr{rate:.1e}".replace(".", "_").replace("+", ""): {
            **config.overrides,
            **overrides,
            config.rate_path: rate,
        }
        for size, overrides in config.sizes.items()
        for rate in config.learning_rates
    }
    return GridConfig(
        arms=arms,
        seeds=config.seeds,
        goal=config.goal,
        model=config.model,
        store=config.store,
        any_code=config.any_code,
        num_workers=config.num_workers,
    )


def apply_overrides(parameters: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Parameters with some values replaced.

    Args:
        parameters: JSON values, nested.
        overrides: By dotted path. Only the last part of a path may be new.

    Raises:
        ValueError: A path leads nowhere.
    """
    result = copy.deepcopy(dict(parameters))
    for path, value in overrides.items():
        *parents, last = path.split(".")
        place: Any = result
        for depth, part in enumerate(parents):
            if not isinstance(place, dict) or not isinstance(place.get(part), dict):
                known = ", ".join(place) if isinstance(place, dict) else "no further parameters"
                raise ValueError(
                    f"overrides: found {path!r}, but {'.'.join(parents[: depth + 1])!r} is no "
                    f"group of parameters; there are: {known}."
                )
            place = place[part]
        if not parents:
            raise ValueError(f"overrides: found {path!r}, expected a path such as `pretrain.seed`.")
        place[last] = copy.deepcopy(value)
    return result


def write_conf(run: ArmRun, project: Path, data_root: Path, conf: Path) -> None:
    """Writes a run's whole configuration: the project's, with the arm's groups in place of base's.

    Args:
        run: Gives the groups.
        project: Root of the Kedro project, with `conf`.
        data_root: Where the run's data goes.
        conf: The folder, which is replaced.
    """
    shutil.rmtree(conf, ignore_errors=True)
    base, environment = conf / "base", conf / ENVIRONMENT
    base.mkdir(parents=True)
    environment.mkdir()
    source = project / "conf"
    for path in sorted((source / "base").glob("*.yml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if path.name.startswith("parameters"):
            content = {name: group for name, group in content.items() if name not in run.parameters}
        _write_yaml(base / path.name, content)
    for path in sorted(source.glob("*.yml")):
        shutil.copyfile(path, conf / path.name)
    _write_yaml(base / "parameters_arm.yml", run.parameters)
    _write_yaml(environment / "globals.yml", {"data_root": str(data_root.resolve())})


def _build_group(arm: str, name: str, adapter: TypeAdapter[Any], cls: type, value: Any) -> Any:
    for problem in parameter_problems(name, cls, value):
        raise ValueError(f"arms.{arm}: {problem}")
    return adapter.validate_python(value)


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
