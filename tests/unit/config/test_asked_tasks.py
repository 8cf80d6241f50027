"""Which tasks are left where only some models are scored."""

from __future__ import annotations

from mm1_pipeline.config.evaluation import EvaluateConfig, TaskConfig
from typed_values import entry

TASK = {"metric": "vqa_accuracy", "prompt": "{image} {question}", "source": "s"}


def test_tasks_of_other_stages_are_left_out_and_unknown_models_are_not():
    tasks = {
        "all": entry(TaskConfig, **TASK),
        "pretrain": entry(TaskConfig, **TASK, models=("pretrain", "upcycle")),
        "sft": entry(TaskConfig, **TASK, models=("sft",)),
        "misspelt": entry(TaskConfig, **TASK, models=("stf",)),  # refused where it is asked
    }
    config = EvaluateConfig(tasks=tasks, seed=3)
    assert list(config.asked_of("pretrain").tasks) == ["all", "pretrain", "misspelt"]
    assert list(config.asked_of("sft").tasks) == ["all", "sft", "misspelt"]
    assert config.asked_of("sft").seed == 3
