"""Stage `shard`."""
