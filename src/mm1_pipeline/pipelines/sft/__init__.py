"""Stage `sft`."""
