"""The laboratory: the synthetic world, the arms, the learning-rate law, the verdicts."""
