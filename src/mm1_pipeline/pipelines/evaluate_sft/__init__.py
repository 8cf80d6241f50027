"""Pipeline `evaluate_sft`."""
