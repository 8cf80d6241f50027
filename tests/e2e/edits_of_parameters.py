"""What somebody edits, and the nodes that then have to run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

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
EVERYTHING = ("ingest_evaluation", "index_evaluation", "ingest_conversations", *FROM_RECORDS)

EDITS: dict[str, tuple[str, ...]] = {
    "pretrain.log_interval_steps=2": (),
    "pretrain.num_workers=2": (),
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
    "model.decoder.num_layers=4": ("pretrain_text", *FROM_PRETRAIN),
    "model.connector.kind=average_pooling": FROM_PRETRAIN,
    "pretrain.optimizer.max_grad_norm=0.5": FROM_PRETRAIN,
    "pretrain.schedule.warmup_steps=0": FROM_PRETRAIN,
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

LOGS = {"pretrain.log_interval_steps=2"}
"""What they alter is how many steps a log tells of, which makes nothing stale."""


@dataclass(frozen=True)
class FileEdit:
    """A text that is replaced in a file of the project.

    Attributes:
        file: Relative to the project.
        before: What stands there, once or more; its first place is edited.
        after: What stands there then. In archives it is as long.
        stale: Nodes that have to run.
    """

    file: str
    before: str
    after: str
    stale: tuple[str, ...]


INGESTS = ("ingest_evaluation", "ingest_pretraining", "ingest_conversations")
SRC = "src/mm1_pipeline"
CODE_EDITS: dict[str, FileEdit] = {
    "a comment in the decoder": FileEdit(
        f"{SRC}/models/decoder.py",
        "        gate = self.gate(hidden)",
        "        # Gated.\n        gate = self.gate(hidden)",
        (),
    ),
    "a docstring in the packer": FileEdit(
        f"{SRC}/streams/packing.py", "Lays pieces side by side", "Puts pieces side by side", ()
    ),
    "a function that nobody calls, in the packer": FileEdit(
        f"{SRC}/streams/packing.py",
        "class BestFitPacker:",
        "def unused() -> int:\n    return 1\n\n\nclass BestFitPacker:",
        (),
    ),
    "the rule for captions": FileEdit(
        f"{SRC}/corpus/caption_rules.py",
        '    text = " ".join(caption.split())\n',
        '    text = " ".join(caption.split())\n'
        "    if len(text) % 7 == 3:\n"
        '        raise Rejected(Reason.TOO_FEW_WORDS, "tried")\n',
        EVERYTHING,
    ),
    "the sentences of synthetic captions": FileEdit(
        f"{SRC}/corpus/synthesis/writers.py",
        '        text = request.alt_text.strip().rstrip(".")',
        '        text = request.alt_text.strip().rstrip(".").lower()',
        ("synthesize_captions", *FROM_SHARDS),
    ),
    "how the tokenizer is trained": FileEdit(
        f"{SRC}/streams/tokenizer.py",
        "        min_frequency=config.min_frequency,",
        "        min_frequency=config.min_frequency + 1,",
        FROM_TOKENIZER,
    ),
    "the packer of captions and documents": FileEdit(
        f"{SRC}/streams/packing.py",
        "            if len(self._window) >= self._packing.window:",
        "            if len(self._window) >= 2:",
        ("pack_conversations", *FROM_SHARDS),
    ),
    "the template of conversations": FileEdit(
        f"{SRC}/streams/conversations.py", '"Assistant:"', '"Helper:"', FROM_CONVERSATIONS
    ),
    "the loss between images and texts": FileEdit(
        f"{SRC}/models/clip.py",
        "        return ObjectiveOutput(losses @ in_sequence,",
        "        return ObjectiveOutput(losses * 0.5 @ in_sequence,",
        ("pretrain_text", *VISION, *FROM_PRETRAIN),
    ),
    "the decoder's feed-forward layer": FileEdit(
        f"{SRC}/models/decoder.py",
        "return self.down(gate * self.up(hidden))",
        "return self.down(gate * self.up(hidden) * 1.5)",
        (*VISION, "pretrain_text", *FROM_PRETRAIN),
    ),
    "the connector": FileEdit(
        f"{SRC}/models/connectors.py",
        "return F.silu(hidden + self.shortcut(x))",
        "return F.silu(hidden * 0.5 + self.shortcut(x))",
        ("pretrain_text", *VISION, *FROM_PRETRAIN),
    ),
    "the loss that balances experts": FileEdit(
        f"{SRC}/models/moe.py",
        "return routing.chosen.shape[-1] * (share * mean).sum(dim=-1)",
        "return 2.0 * routing.chosen.shape[-1] * (share * mean).sum(dim=-1)",
        (*VISION, "pretrain_text", *FROM_PRETRAIN),
    ),
    "the score of VQA answers": FileEdit(
        f"{SRC}/evaluation/scoring/metrics.py",
        "min((matches - 1) / 3, 1.0)",
        "min((matches - 1) / 4, 1.0)",
        AT_LAST,
    ),
    "a section of the report": FileEdit(
        f"{SRC}/reporting/sections/headline.py",
        '"At a glance"',
        '"In short"',
        AT_LAST[1:],
    ),
}
"""By what is edited; in a copy of the project."""

DATA_EDITS: dict[str, FileEdit] = {
    "a caption of one pre-training source": FileEdit(
        "data/sample/captions_openclipart_wds/00000.tar",
        "LED Rounded V (Blue)",
        "LED Rounded W (Reds)",
        FROM_RECORDS,
    ),
    "an answer in a file of one SFT and one evaluation source": FileEdit(
        "data/sample/sft_llava/llava_instruct.json",
        '"value": "rectangle"',
        '"value": "an oblong"',
        EVERYTHING,
    ),
    "answers of one evaluation file": FileEdit(
        "data/sample/eval_vqa_v2/annotations.json",
        '"answer": "triangle"',
        '"answer": "tetragon"',
        EVERYTHING,
    ),
    "a question of one evaluation file": FileEdit(
        "data/sample/eval_vqa_v2/questions.json",
        "what is the red shape?",
        "what is the red thing?",
        EVERYTHING,
    ),
    "a README beside the data": FileEdit("data/sample/README.md", "#", "##", ()),
}
"""By what is edited; in a copy of the data."""

LIBRARY_EDITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Pillow 13.0 to 12.0": ("pillow==12.0.0", EVERYTHING),
    "selectolax 1.0.2 to 1.0.1": ("selectolax==1.0.1", EVERYTHING),
    "tokenizers 0.23.3 to 0.23.2": ("tokenizers==0.23.2", FROM_TOKENIZER),
}
"""Requirement of another version, and the nodes that have to look again."""


FORETOLD: dict[str, tuple[str, ...]] = {
    **EDITS,
    **{name: edit.stale for name, edit in (CODE_EDITS | DATA_EDITS).items()},
    **{name: stale for name, (_, stale) in LIBRARY_EDITS.items()},
}
"""Nodes that `status` names, by edit."""

RECORD = Path(__file__).parents[2] / "docs" / "benchmarks" / "edits.json"
"""What `campaigns/edits.py` and `campaigns/edits_dvc.py` found, by edit."""


def table(nodes: list[str]) -> str:
    """The edits as the documents hold them.

    Args:
        nodes: Of the whole pipeline, in their order.
    """
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    lines = [
        "| edit | nodes that `status` names | of 21 | rerun | changed | dvc repro |",
        "|---|---|---|---|---|---|",
    ]
    for edit, stale in FORETOLD.items():
        listed = [node for node in nodes if node in stale]
        others = [node for node in nodes if node not in stale]
        few = len(listed) <= len(others)
        told = ", ".join(listed) if few else f"all but {', '.join(others) or 'none'}"
        found = record.get(edit, {})
        counts = [len(found[key]) if key in found else "" for key in ("ran", "changed", "dvc")]
        name = f"`{edit}`" if edit in EDITS else edit
        cells = (name, told or "none", len(listed), *counts)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |") + "\n"
