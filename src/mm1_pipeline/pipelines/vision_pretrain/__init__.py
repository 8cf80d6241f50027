"""Stage `vision_pretrain`."""
