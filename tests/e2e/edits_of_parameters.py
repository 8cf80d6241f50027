"""Parameters that somebody changes, and the nodes that then have to run."""

from __future__ import annotations

AT_LAST = ("evaluate_models", "write_report")
UPCYCLED = ("train_dense_control", "train_experts")
FROM_PRETRAIN = ("pretrain_model", "fine_tune", *UPCYCLED, *AT_LAST)
VISION = ("pretrain_vision", "evaluate_vision")
FROM_SHARDS = (
    "pack_shards",
    "plan_mixture",
    "plan_text_mixture",
    "plan_vision_mixture",
    "pretrain_text",
    *VISION,
    *FROM_PRETRAIN,
)
FROM_TOKENIZER = ("prepare_tokenizer", "pack_conversations", *FROM_SHARDS)
FROM_CONVERSATIONS = ("pack_conversations", "fine_tune", *AT_LAST)
FROM_RECORDS = ("ingest_pretraining", "report_sources", "synthesize_captions", *FROM_TOKENIZER)
EVERYTHING = ("ingest_evaluation", "ingest_conversations", *FROM_RECORDS)

EDITS: dict[str, tuple[str, ...]] = {
    "pretrain.log_interval_steps=2": (),
    "pretrain.num_workers=1": (),
    "evaluate.batch_size=2": (),
    "ingest.num_workers=2": (),
    "ingest.sources.text.max_records=100": FROM_RECORDS,
    "ingest.deduplication.exact=false": (
        *FROM_RECORDS,
        "ingest_conversations",
    ),
    "ingest.sources.digit_strips.prompt=Read it.": (
        "ingest_conversations",
        "report_sources",
        *FROM_CONVERSATIONS,
    ),
    "ingest.sources.eval_vqa.max_records=30": EVERYTHING,
    "synthesis.max_records=3": ("synthesize_captions", *FROM_SHARDS),
    "tokenizer.min_frequency=3": FROM_TOKENIZER,
    "shard.packing.overflow=truncate": FROM_SHARDS,
    "sft_shard.sub_images.grid=1": FROM_CONVERSATIONS,
    "vision_pretrain.objective=aim": (*VISION, *FROM_PRETRAIN),
    "vision_pretrain.training.optimizer.learning_rate=0.002": (*VISION, *FROM_PRETRAIN),
    "text_pretrain.source=scratch": ("plan_text_mixture", "pretrain_text", *FROM_PRETRAIN),
    "model.vision.num_heads=1": (*VISION, *FROM_PRETRAIN),
    "model.decoder.num_layers=1": ("pretrain_text", *FROM_PRETRAIN),
    "model.connector.kind=average_pooling": FROM_PRETRAIN,
    "pretrain.optimizer.max_grad_norm=0.5": FROM_PRETRAIN,
    "pretrain.schedule.warmup_steps=1": FROM_PRETRAIN,
    "pretrain.seed=3": ("plan_mixture", *FROM_PRETRAIN),
    "upcycle.expert_noise=0.1": ("train_experts", *AT_LAST),
    "upcycle.moe.num_experts=3": ("train_experts", *AT_LAST),
    "upcycle.seed=5": (*UPCYCLED, *AT_LAST),
    "sft.schedule.num_steps=7": ("fine_tune", *AT_LAST),
    "sft.seed=5": ("fine_tune", *AT_LAST),
    "evaluate.bootstrap_samples=50": AT_LAST,
    "evaluate.tasks.sample_digits.max_new_tokens=5": AT_LAST,
    "report.title=Another": AT_LAST[1:],
}
"""By `path=value`; a table of the documents, which `campaigns/edits.py` tries."""


def table(nodes: list[str]) -> str:
    """The edits as the documents hold them.

    Args:
        nodes: Of the whole pipeline, in their order.
    """
    lines = ["| edit | nodes that rerun | of 20 |", "|---|---|---|"]
    for edit, stale in EDITS.items():
        listed = [node for node in nodes if node in stale]
        others = [node for node in nodes if node not in stale]
        few = len(listed) <= len(others)
        told = ", ".join(listed) if few else f"all but {', '.join(others) or 'none'}"
        lines.append(f"| `{edit}` | {told or 'none'} | {len(listed)} |")
    return "\n".join(lines) + "\n"
