"""Stage `text_pretrain`."""
