"""From records to batches: tokenizer, packing, shards, mixture, loading."""
