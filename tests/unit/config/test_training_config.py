from __future__ import annotations

import pytest

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.config.training import LearningRateLaw


@pytest.mark.parametrize(
    ("num_parameters", "learning_rate"),
    [
        # The law itself; MM1 rounds 6e-5 (3B), 4e-5 (7B) and 2e-5 (30B) to one digit.
        (2.96e9, 5.9e-5),
        (6.89e9, 4.1e-5),
        (30.2e9, 2.2e-5),
    ],
)
def test_law_gives_the_papers_rates(num_parameters, learning_rate):
    law = LearningRateLaw()
    assert law.peak_learning_rate(int(num_parameters)) == pytest.approx(learning_rate, rel=0.03)


def test_non_embedding_parameters_follow_12_l_d_squared():
    # 24 x 2048 with a feed-forward of 8/3 d: MM1's 1.2B size (the norms add 0.01 %).
    decoder = DecoderConfig(
        vocab_size=100_352, d_model=2048, num_layers=24, num_heads=16, num_kv_heads=16, d_ff=5461
    )
    assert decoder.non_embedding_parameters == pytest.approx(12 * 24 * 2048**2, rel=2e-4)
