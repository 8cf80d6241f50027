"""What a report is made of, and the questions that several sections ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm1_pipeline.config.report import ReportConfig

BLIND_SUFFIX = ":blind"
"""Ends the name of a model whose images were blanked."""
FREQUENT = "frequent"
"""Name of the baseline that always gives the most frequent answer."""
NORMAL_95 = 1.96
"""Half the width of a 95 % interval, in standard errors."""

METRIC_NAMES = {
    "cider": "CIDEr",
    "vqa_accuracy": "VQA accuracy",
    "textvqa_accuracy": "VQA accuracy",
    "vizwiz_accuracy": "VQA accuracy",
    "exact_match": "exact match",
    "anls": "ANLS",
    "relaxed_accuracy": "relaxed accuracy",
    "choice": "accuracy",
    "circular": "circular accuracy",
    "pope_f1": "F1, mean of three splits",
    "mme_score": "score",
    "mathvista": "accuracy",
    "judge_ratio": "ratio of a judge's marks",
    "judge_grade": "a judge's grade",
    "acc": "accuracy",
    "acc_norm": "accuracy per character",
    "greedy_match": "greedy match",
    "alias_match": "match of a name",
}
"""How metrics are written."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ReportInputs:
    """All reports of a run; a part that is not there yet is None or empty.

    Attributes:
        config: parameters of the stage `report`.
        ingest_report: content of ingest_report.json.
        shard_report: content of shard_report.json.
        mixture: summary of the mixture snapshot (mixture.json).
        training: rows of training_<stage>.jsonl, by stage.
        evaluation: content of evaluation.json.
        held_out_loss: content of held_out_loss.json.
        vision_held_out: content of vision_held_out.json.
        predictions_dir: folder with `<model>/<task>_<shots>shot.jsonl`.
        records_dir: the artifact that holds `records/`.
        shards: folders of packed sequences, by what they are.
        models: folder of each stage's model.
        versions: versions of libraries that run now, by name; which made an artifact, its manifest
            says.
    """

    config: ReportConfig
    ingest_report: Mapping[str, Any] | None = None
    shard_report: Mapping[str, Any] | None = None
    mixture: Mapping[str, Any] | None = None
    training: Mapping[str, Rows] = field(default_factory=dict)
    evaluation: Mapping[str, Any] | None = None
    held_out_loss: Mapping[str, Any] | None = None
    vision_held_out: Mapping[str, Any] | None = None
    predictions_dir: Path | None = None
    records_dir: Path | None = None
    shards: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, Path] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def scored_models(self) -> list[str]:
        """Names of all models in evaluation.json, baselines too."""
        return list(self.evaluation["models"]) if self.evaluation else []

    @property
    def main_model(self) -> str | None:
        """The last trained model that was scored: the one that a reader asks about."""
        trained = [name for name in self.scored_models if is_trained(name)]
        return trained[-1] if trained else None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of their first appearance."""
        if not self.evaluation:
            return []
        models = self.evaluation["models"].values()
        return list(dict.fromkeys(task for model in models for task in model["tasks"]))

    def metric(self, task: str) -> str:
        """The metric of a task, as evaluation.json calls it."""
        assert self.evaluation
        models = self.evaluation["models"].values()
        return next(model["tasks"][task]["metric"] for model in models if task in model["tasks"])

    def entry(self, task: str) -> Mapping[str, Any]:
        """What evaluation.json says of a task, out of the first model that has it."""
        assert self.evaluation
        models = self.evaluation["models"].values()
        return next(model["tasks"][task] for model in models if task in model["tasks"])

    def shots(self, task: str) -> list[int]:
        """Numbers of shots at which a task was scored, rising."""
        assert self.evaluation
        models = self.evaluation["models"].values()
        return sorted(
            {
                int(shots)
                for model in models
                if task in model["tasks"]
                for shots in model["tasks"][task]["shots"]
            }
        )

    def score(self, model: str, task: str, shots: int) -> Mapping[str, Any] | None:
        """The score {"value", "stderr", "n"} of a model, or None where there is none."""
        assert self.evaluation
        entry = self.evaluation["models"].get(model, {"tasks": {}})["tasks"].get(task)
        return entry["shots"].get(str(shots)) if entry else None


def is_trained(model: str) -> bool:
    """Whether a name of evaluation.json is a model that saw its images, not a baseline."""
    return model != FREQUENT and not model.endswith(BLIND_SUFFIX)


def metric_name(metric: str) -> str:
    """A metric as a reader knows it."""
    return METRIC_NAMES.get(metric, metric)
