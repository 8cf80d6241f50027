from __future__ import annotations

import pytest

from mm1_pipeline.config.training import (
    CheckpointConfig,
    MixtureConfig,
    ScheduleConfig,
    StreamMixture,
    TrainingConfig,
)
from mm1_pipeline.training.identity import check_identity, result_parameters

MIXTURE = MixtureConfig(streams={"text": StreamMixture(share=1.0, sources={"books": 1.0})})


def test_identity_of_a_training_is_checked(tmp_path):
    identity = {"schedule": {"num_steps": 10, "betas": (0.9, 0.95)}, "seed": 1}
    check_identity(tmp_path, identity)
    check_identity(tmp_path, identity)
    changed = {"schedule": {"num_steps": 20, "betas": (0.9, 0.95)}, "seed": 1, "new": True}
    with pytest.raises(ValueError, match=r"new: None -> True; schedule\.num_steps: 10 -> 20"):
        check_identity(tmp_path, changed)


def test_operational_parameters_do_not_count():
    one = TrainingConfig(mixture=MIXTURE)
    other = TrainingConfig(
        mixture=MIXTURE, num_workers=3, device="cpu", checkpoint=CheckpointConfig(keep=9)
    )
    assert result_parameters(one) == result_parameters(other)
    longer = TrainingConfig(mixture=MIXTURE, schedule=ScheduleConfig(num_steps=300_000))
    assert result_parameters(one) != result_parameters(longer)
