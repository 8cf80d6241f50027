"""Pipeline `evaluate_pretrain`."""
