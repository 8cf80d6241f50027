"""Few-shot evaluation: tasks, prompts, generation, scores and honest baselines."""
