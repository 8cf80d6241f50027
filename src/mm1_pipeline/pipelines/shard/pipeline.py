"""Pipeline `shard`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.shard.nodes import (
    pack_conversations,
    pack_shards,
    prepare_tokenizer,
)


def create_pipeline() -> Pipeline:
    """Records -> tokenizer, and shards with a report each for pre-training and SFT."""
    return Pipeline(
        [
            node(
                prepare_tokenizer,
                inputs=["params:tokenizer", "records"],
                outputs="tokenizer",
                name="prepare_tokenizer",
            ),
            node(
                pack_shards,
                inputs=["params:shard", "records", "synthetic_records", "tokenizer"],
                outputs=["shards", "shard_report"],
                name="pack_shards",
            ),
            node(
                pack_conversations,
                inputs=["params:sft_shard", "sft_records", "tokenizer"],
                outputs=["sft_shards", "sft_shard_report"],
                name="pack_conversations",
            ),
        ],
        tags="shard",
    )
