"""A small made-up run: every report that the page can show, with known numbers."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from mm1_pipeline.config.ingest import RecordKind, SourceConfig, SourceFormat, SourceSplit
from mm1_pipeline.config.report import ReportConfig
from mm1_pipeline.corpus.records import (
    RECORDS,
    Record,
    RecordImage,
    RecordWriter,
    Role,
    Segment,
    write_sources,
)
from mm1_pipeline.reporting.html import render_report

HOSTILE = '<script>alert("pwned")</script><img src=x onerror=alert(1)> & \u202e\x00\ud800'
"""What a model, a web page or a person may have put into any string."""

NUM_ITEMS = 12


def _part(
    read: int, rejected: dict[str, int], images: dict[str, Any] | None = None
) -> dict[str, Any]:
    part: dict[str, Any] = {
        "read": read,
        "kept": read - sum(rejected.values()),
        "rejected": rejected,
    }
    return part | ({"images": images} if images else {})


def ingest_report() -> dict[str, Any]:
    sources = {
        "captions": {"kind": "caption", "format": "img2dataset", "split": "train"}
        | _part(
            4_321,
            {"duplicate": 300, "image_too_small": 21},
            _part(4_321, {"record_rejected": 321}),
        ),
        "text": {"kind": "text", "format": "jsonl", "split": "train"}
        | _part(1_000, {}, _part(0, {})),
    }
    asked = {"records": 4321, "images": 1234, "texts": 77, "failed": 2}
    shots = {"records": 8765, "images": 4444, "texts": 0, "failed": 0}
    decontamination = {"benchmarks": {"vqa": {**asked, "shots": shots}}}
    return {"sources": sources, "totals": {}, "decontamination": decontamination}


def _split(sequences: int, text: int, image: int, fill: float) -> dict[str, Any]:
    return {
        "records": 10 * sequences,
        "sequences": sequences,
        "positions": 320 * sequences,
        "real_positions": text + image,
        "text_tokens": text,
        "image_tokens": image,
        "images": image // 16,
        "truncated_positions": 0,
        "fill": fill,
    }


def shard_report() -> dict[str, Any]:
    captions, text = _split(131, 17_011, 22_016, 0.9312), _split(57, 18_003, 0, 0.987)
    return {
        "sources": {
            "captions": {
                "kind": "caption",
                "train": captions,
                "validation": _split(3, 333, 448, 0.814),
            },
            "text": {"kind": "text", "train": text, "validation": _split(0, 0, 0, 0.0)},
        },
        "streams": {"caption": captions, "text": text},
        "tokenizer": {"vocab_size": 4_096, "sha256": "7e57" * 16},
        "packing": {"sequence_length": 320, "max_images": 16, "image_tokens": 16},
    }


def mixture() -> dict[str, Any]:
    def stream(name: str, share: float, drawn: int, epochs: float) -> dict[str, Any]:
        source = {"weight": 1.0, "sequences": 100, "drawn": drawn, "epochs": epochs}
        return {
            "share": share,
            "sequences_per_batch": 2,
            "drawn": drawn,
            "sources": {name: source},
        }

    return {
        "num_steps": 40,
        "window_batches": 1,
        "global_batch_size": 20,
        "seed": 17,
        "streams": {
            "caption": stream("captions", 0.9, 720, 7.25),
            "text": stream("text", 0.1, 80, 0.75),
        },
        "sha256": "317c" * 16,
    }


def training_rows() -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "loss": 8.0 - 0.1 * step,
            "losses": {"caption": 7.5 - 0.1 * step, "text": 8.5 - 0.1 * step},
            "lr": 2.5e-3 * min(1.0, step / 10),
            "grad_norm": 1.0,
            "shares": {"caption": 0.9, "text": 0.1},
            "positions": {"text": 3_000, "image": 2_500, "padding": 100},
            "timing": {
                "seconds": 0.5,
                "data_seconds": 0.1,
                "tokens_per_second": {"text": 6_000.0, "image": 5_000.0},
                "time": 1_764_000_000.0 + step,
            },
        }
        for step in range(1, 41)
    ]


def _score(value: float, stderr: float, gain: float | None = None) -> dict[str, Any]:
    score: dict[str, Any] = {"value": value, "stderr": stderr, "n": NUM_ITEMS, "failed": 0}
    if gain is not None:
        score["gain_over_blind"] = {"mean": gain, "low": gain - 4.2, "high": gain + 4.7}
    return score


def evaluation() -> dict[str, Any]:
    def entry(captions: dict[str, Any], vqa: dict[str, Any]) -> dict[str, Any]:
        return {
            "tasks": {
                "sample_captions": {"metric": "cider", "shots": captions},
                "sample_vqa": {"metric": "vqa_accuracy", "shots": vqa},
            }
        }

    return {
        "models": {
            "pretrain": entry(
                {"0": _score(74.21, 4.83, 52.8), "4": _score(81.94, 5.13, -60.1)},
                {"0": _score(58.31, 1.95, 10.5), "4": _score(61.22, 1.93, 2.3)},
            ),
            "pretrain:blind": entry(
                {"0": _score(21.44, 2.12), "4": _score(142.0, 2.41)},
                {"0": _score(47.83, 1.97), "4": _score(58.94, 1.98)},
            ),
            "frequent": entry(
                {"0": _score(12.35, 1.11), "4": _score(12.35, 1.11)},
                {"0": _score(43.16, 1.96), "4": _score(43.16, 1.96)},
            ),
        },
        "harness": {
            "prompts_sha256": "9c3d" * 16,
            "postprocess": "stop-strings-1",
            "tokenizer": "words-1",
        },
    }


def held_out_loss() -> dict[str, Any]:
    captions = {
        "n": 88,
        "right": 2.213,
        "blank": 2.731,
        "shuffled": 2.934,
        "blank_minus_right": {"mean": 0.518, "low": 0.358, "high": 0.678},
        "shuffled_minus_right": {"mean": 0.721, "low": -0.029, "high": 1.413},
    }
    losses = {
        "streams": {
            "caption": {"loss": 2.345, "n_tokens": 1_056},
            "text": {"loss": 5.012, "n_tokens": 30_500},
        },
        "sources": {
            "captions": {"loss": 2.345, "n_tokens": 1_056},
            "text": {"loss": 6.543, "n_tokens": 30_501},
        },
        "captions": {"validation": captions},
    }
    return {"models": {"pretrain": losses}}


def vision_held_out() -> dict[str, Any]:
    def direction(n: int, candidates: int, first: float, fifth: float) -> dict[str, Any]:
        recall = {"1": first, "5": fifth}
        chance = {"1": round(1 / candidates, 6), "5": round(5 / candidates, 6)}
        return {"n": n, "candidates": candidates, "recall": recall, "chance": chance}

    pairs = {
        "image_to_text": direction(64, 40, 0.314, 0.718),
        "text_to_image": direction(40, 64, 0.275, 0.65),
    }
    return {"objective": "clip", "sets": {"validation": pairs, "validation: captions": pairs}}


def encoded_image(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (color, 255 - color, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def _references(kind: RecordKind, index: int, suffix: str) -> list[str]:
    if kind == RecordKind.CONVERSATION:
        return [f"a cat{suffix}"] * 7 + ["cat"] * 3
    return [f"a picture of cat {index}{suffix}"]


def _record(source: str, kind: RecordKind, index: int, suffix: str) -> Record:
    data = encoded_image(20 * index)
    image = RecordImage(data, None, hashlib.sha256(data).hexdigest(), 40, 30)
    is_question = kind == RecordKind.CONVERSATION
    role = Role.HUMAN if is_question else None
    question = Segment.of_text(f"what is shown in picture {index}?{suffix}", role)
    return Record(
        source=source,
        key=str(index),
        kind=kind,
        segments=(Segment.of_image(0, role), *([question] if is_question else [])),
        images=(image,),
        references=tuple(_references(kind, index, suffix)),
    )


def write_records(directory: Path, suffix: str = "") -> Path:
    """Both evaluation sources use the same keys, as COCO and VQAv2 do."""
    sources = {
        "eval_captions": (RecordKind.CAPTION, SourceFormat.COCO_CAPTIONS),
        "eval_vqa": (RecordKind.CONVERSATION, SourceFormat.VQA_V2),
    }
    for name, (kind, _) in sources.items():
        with RecordWriter(directory / RECORDS / name, 100) as writer:
            for index in range(NUM_ITEMS):
                writer.write(_record(name, kind, index, suffix))
    configs = {
        name: SourceConfig(kind=kind, format=format_, path="x", split=SourceSplit.EVALUATION)
        for name, (kind, format_) in sources.items()
    }
    write_sources(directory, configs)
    return directory


def prediction(
    task: str, index: int, output: str, score: float, suffix: str = ""
) -> dict[str, Any]:
    kind = RecordKind.CONVERSATION if task == "sample_vqa" else RecordKind.CAPTION
    return {
        "id": f"{task}/0shot/{index}",
        "key": str(index),
        "prompt_sha256": "0" * 64,
        "shots": [],
        "raw_output": output,
        "processed_output": output,
        "references": _references(kind, index, suffix),
        "score": score,
        "failure": None,
    }


def write_predictions(directory: Path, answer: str = "a dog", suffix: str = "") -> Path:
    """The model is right where the index is even; its twin never is."""
    for model, is_right in (
        ("pretrain", lambda i: i % 2 == 0),
        ("pretrain:blind", lambda _: False),
    ):
        for task in ("sample_captions", "sample_vqa"):
            rows = [
                prediction(task, i, "a cat", 100.0, suffix)
                if is_right(i)
                else prediction(task, i, f"{answer} {i}", 0.0, suffix)
                for i in range(NUM_ITEMS)
            ]
            path = directory / model / f"{task}_0shot.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def write_model(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        "vision.weight": np.zeros((100, 123), np.float32),
        "connector.weight": np.zeros((10, 10), np.float32),
        "decoder.weight": np.zeros((300, 100), np.float32),
    }
    save_file(tensors, directory / "model.safetensors")
    shape = {
        "vision": {"image_size": 64, "patch_size": 8},
        "connector": {"kind": "c_abstractor", "num_tokens": 16},
        "decoder": {"d_model": 192},
    }
    config = {"format_version": 1, "image_token_id": 3, "model": shape}
    (directory / "config.json").write_text(json.dumps(config))
    manifest = {
        "kind": "model",
        "fingerprint": "0123456789abcdef" * 2,
        "digest": "fedcba98" * 4,
        "provenance": {"libraries": {"PIL": "11.3.0", "torch": "2.7.0"}},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@dataclass
class Run:
    """Arguments of `render_report`, to be changed by a test before it renders."""

    config: ReportConfig = field(default_factory=lambda: ReportConfig(num_examples=6))
    parts: dict[str, Any] = field(default_factory=dict)

    def render(self) -> str:
        return render_report(self.config, **self.parts)

    def without(self, *names: str) -> Run:
        return Run(self.config, {k: v for k, v in self.parts.items() if k not in names})


def sample_run(directory: Path) -> Run:
    return Run(
        parts={
            "ingest_report": ingest_report(),
            "shard_report": shard_report(),
            "mixture": mixture(),
            "training": {"pretrain": training_rows()},
            "evaluation": evaluation(),
            "held_out_loss": held_out_loss(),
            "vision_held_out": vision_held_out(),
            "predictions_dir": write_predictions(directory / "predictions"),
            "records_dir": write_records(directory / "records_artifact"),
            "models": {"pretrain": write_model(directory / "model")},
            "versions": {"PIL": "13.0.0", "torch": "2.7.0"},
        }
    )
