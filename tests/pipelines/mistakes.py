"""Mistakes that users make in parameters, each with what must be said of it before any node.

All are made to the environment `smoke`; `{tmp}` in a value is a folder of the test with what
`make_places` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Mistake(NamedTuple):
    """What a user writes, and what must be said."""

    path: str
    """The parameter that must be named."""
    found: str
    """What of the parameter's value must be repeated."""
    changes: Mapping[str, Any]
    """Values by dotted path."""
    pipeline: str = "__default__"


def _(path: str, found: str, pipeline: str = "__default__", **changes: Any) -> Mistake:
    """A mistake in one parameter; `value` is what it is set to, and further paths go under `also`.

    The parameter that is set is the one that must be named, unless `sets` says another.
    """
    also = changes.get("also", {})
    if "value" not in changes:
        return Mistake(path, found, also, pipeline)
    return Mistake(path, found, {changes.get("sets", path): changes["value"], **also}, pipeline)


_SOURCES, _TASKS = "ingest.sources", "evaluate.tasks"
_STREAMS = "mixture.streams"
_NOWHERE = "no/such/place"
_VQA_FILES = {
    "questions": "data/sample/eval_vqa_v2/questions.json",
    "annotations": "data/sample/eval_vqa_v2/annotations.json",
    "images": "data/sample/eval_vqa_v2/images",
}
_JUDGE = {"endpoint": "http://127.0.0.1:9/v1", "model": "judge"}
_OWN_TASK = {
    "format": "vqa",
    "metric": "vqa_accuracy",
    "prompt": "{image} Question: {question} Short answer:",
    "files": _VQA_FILES,
}

MISTAKES = [
    # Raw data
    _(f"{_SOURCES}.text.path", _NOWHERE, value=_NOWHERE),
    _(f"{_SOURCES}.instructions.path", _NOWHERE, value=_NOWHERE),
    _(f"{_SOURCES}.text.path", "empty", value="{tmp}/empty"),
    _(f"{_SOURCES}.text.path", "sft_llava", value="data/sample/sft_llava/images"),
    _(f"{_SOURCES}.text.text_column", "txt", value="txt"),
    _(f"{_SOURCES}.captions_tuxpaint.image_column", "picture", value="picture"),
    _(f"{_SOURCES}.text.format", "jsonnl", value="jsonnl"),
    _(f"{_SOURCES}.captions_tuxpaint.kind", "text", value="text"),
    _(f"{_SOURCES}.text.pth", "did you mean", value="x"),
    _(f"{_SOURCES}.eval_captions.image_path", _NOWHERE, value=_NOWHERE),
    _(f"{_SOURCES}.text.text.profanity_list", _NOWHERE, value=_NOWHERE),
    _(
        f"{_SOURCES}.captions_tuxpaint.clip_score",
        _NOWHERE,
        value={"checkpoint": _NOWHERE, "tokenizer": _NOWHERE, "threshold": 0.2},
    ),
    _("ingest.num_workers", "many", value="many"),
    _("ingest.engine", "ray", value="ray"),
    # A second caption
    _("synthesis.sources", "captions_openclipat", value=["captions_openclipat"]),
    _("synthesis.name", "captions_tuxpaint", value="captions_tuxpaint"),
    _("synthesis.concepts", "text", value=["colours", "text"]),
    _(
        "synthesis.local.checkpoint",
        _NOWHERE,
        value=_NOWHERE,
        also={"synthesis.local.tokenizer": _NOWHERE, "synthesis.writer": "local"},
    ),
    # Tokenizer and shards
    _("tokenizer.file", _NOWHERE, value=_NOWHERE),
    _("tokenizer.file", "README.md", value="README.md"),
    _("tokenizer.vocab_size", "100", value=100),
    _("model.decoder.vocab_size", "1024", sets="tokenizer.vocab_size", value=4096),
    _("model.connector.num_tokens", "4", sets="shard.packing.image_tokens", value=8),
    _("model.vision.image_size", "32", sets="shard.image.size", value=64),
    _("sft_shard.image.size", "60", value=60),
    _("model.connector.num_tokens", "4", sets="sft_shard.packing.image_tokens", value=8),
    _("sft_shard.sub_images.grid", "5", value=5),
    _("shard.compression", "gzip", value="gzip"),
    # The model and its parts
    _("model.vision.image_size", "patch size 7", sets="model.vision.patch_size", value=7),
    _("model.decoder.num_heads", "3", value=3),
    _("model.connector.num_tokens", "100", value=100),
    _(
        "vision_pretrain.path",
        _NOWHERE,
        value=_NOWHERE,
        also={"vision_pretrain.source": "file"},
    ),
    _(
        "vision_pretrain.path",
        "README.md",
        value="README.md",
        also={"vision_pretrain.source": "file"},
    ),
    _("text_pretrain.path", _NOWHERE, value=_NOWHERE, also={"text_pretrain.source": "file"}),
    _("vision_pretrain.path", "null", sets="vision_pretrain.source", value="file"),
    _(
        "vision_pretrain.training.microbatch_size",
        "4",
        value=4,
    ),
    _(
        "model.vision.class_token",
        "true",
        value=True,
        also={"vision_pretrain.objective": "aim"},
    ),
    # Trainings
    _(f"pretrain.{_STREAMS}.text.sources.txt", "text", value=1.0),
    _(f"sft.{_STREAMS}.reading.sources.eval_vqa", "no such source", value=1.0),
    _(f"pretrain.{_STREAMS}.captoin.sources", "missing", also={
        f"pretrain.{_STREAMS}.captoin.share": 0.45}),
    _(f"pretrain.{_STREAMS}", "0.6", sets=f"pretrain.{_STREAMS}.text.share", value=0.6),
    _(f"pretrain.{_STREAMS}.text.sources.web_documents", "two streams", value=1.0),
    _(f"text_pretrain.training.{_STREAMS}.text.sources.web_documents", "interleaved", value=1.0),
    _(f"vision_pretrain.training.{_STREAMS}.caption.sources.text", "text", value=1.0),
    _("pretrain.global_batch_size", "0", value=0),
    _("sft.global_batch_size", "2.5", value=2.5),
    _("pretrain.num_processes", "2", value=2, also={"pretrain.global_batch_size": 21}),
    _("pretrain.device", "cuda", value="cuda"),
    _("pretrain.num_processes", "3", value=3),
    _("vision_pretrain.training.num_processes", "7", value=7),
    _("pretrain.optimizer.learning_rate", "-1", value=-1),
    _("pretrain.optimiser", "optimizer", also={"pretrain.optimiser.learning_rate": 0.1}),
    _("pretrain.schedule.warmup_steps", "9", value=9),
    _("upcycle.moe.top_k", "9", value=9),
    _("upcycle.moe.every_n_layers", "5", value=5),
    _("upcycle.moe.shared_d_ff", "8", value=8),
    _("sft.init_from", "pretrian", value="pretrian"),
    # Evaluation
    _(f"{_TASKS}.sample_vqa.source", "eval_vqq", value="eval_vqq"),
    _(f"{_TASKS}.sample_vqa.source", "text", value="text"),
    _(f"{_TASKS}.sample_vqa.source", "eval_captions", value="eval_captions"),
    _(f"{_TASKS}.sample_vqa.models", "pretran", value=["sft", "pretran"]),
    _(f"{_TASKS}.sample_vqa.shots", "40", value=[0, 40]),
    _(
        f"{_TASKS}.sample_vqa.shots",
        "1000",
        value=[0, 1000],
        also={
            f"{_SOURCES}.eval_vqa.max_records": None,
            f"{_TASKS}.sample_vqa.source": "eval_digits",
            f"{_SOURCES}.eval_digits.max_records": None,
        },
    ),
    _(
        f"{_TASKS}.own.files.annotations",
        _NOWHERE,
        also={
            f"{_TASKS}.own": {**_OWN_TASK, "files": {**_VQA_FILES, "annotations": _NOWHERE}},
        },
    ),
    _(
        f"{_TASKS}.own.shot_files.questions",
        _NOWHERE,
        also={
            f"{_TASKS}.own": {
                **_OWN_TASK,
                "shot_files": {**_VQA_FILES, "questions": _NOWHERE},
            },
        },
    ),
    _(
        f"{_TASKS}.own.files",
        "damaged.json",
        also={
            f"{_TASKS}.own": {
                **_OWN_TASK,
                "files": {**_VQA_FILES, "questions": "{tmp}/damaged.json"},
            },
        },
    ),
    _(
        f"{_TASKS}.own.shots",
        "4",
        also={
            f"{_TASKS}.own": {
                **_OWN_TASK,
                "shots": [4],
                "shot_files": {
                    "questions": "{tmp}/questions.json",
                    "annotations": "{tmp}/annotations.json",
                    "images": "data/sample/eval_vqa_v2/images",
                },
            },
        },
    ),
    _(f"{_TASKS}.own.task", "cocoo", also={f"{_TASKS}.own": {"task": "cocoo"}}),
    _(f"{_TASKS}.sample_vqa.metric", "judge_grade", value="judge_grade", also={
        f"{_TASKS}.sample_vqa.judge_prompt": "{answer}"}),
    _("evaluate.judge.api_key_env", "NO_SUCH_KEY", also={
        "evaluate.judge": {**_JUDGE, "api_key_env": "NO_SUCH_KEY"}}),
    _("evaluate.max_positions", "16", value=16),
    _(f"{_TASKS}.sample_vqa.resolution.max_positions", "10", also={
        f"{_TASKS}.sample_vqa.resolution": {"max_positions": 10}}),
    _("evaluate.device", "cuda", value="cuda"),
    _("evaluate.text_tasks.arc.files.questions", _NOWHERE, also={
        "evaluate.text_tasks.arc": {"task": "arc_easy", "files": {"questions": _NOWHERE}}}),
    _("evaluate.text_tasks.arc.files", "questions", also={
        "evaluate.text_tasks.arc": {"format": "lambada", "metric": "greedy_match"}}),
    _(f"{_TASKS}.sample_vqa.stop", "", value=[""]),
    _("evaluate.tasks", "none", also={
        f"{_TASKS}.{name}": None for name in ("sample_vqa", "sample_captions", "sample_digits")}),
    # Outside of the default run
    _("export.layout", "llava", "export", value="llava"),
    _("export.chat_template", "{% if", "export", value="{% if"),
    _("export.dtype", "float8", "export", value="float8"),
    _("download.lists", "found none", "download", value=None),
    _("download.lists", _NOWHERE, "download", value=_NOWHERE),
    # The lab
    _("ablate.grid.arms.bad", "sedule", "ablate", also={
        "ablate.grid.arms.bad": {"pretrain.sedule.num_steps": 3}}),
    _("ablate.grid.arms.bad", "-3", "ablate", also={
        "ablate.grid.arms.bad": {"pretrain.schedule.num_steps": -3}}),
    _("ablate.grid.arms.bad", "0", "ablate", also={
        "ablate.grid.arms.bad": {"pretrain.global_batch_size": 0}}),
    _("ablate.grid.only", "mxi", "ablate", value="mix mxi"),
    _("ablate.lessons.L8_text.first", "mixx", "ablate", value="mixx"),
    _("ablate.lessons.L7_few_shot.scores", "sample_vqaa", "ablate", value={"sample_vqaa": [4]}),
    _("ablate.lessons.L7_few_shot.scores", "8", "ablate", value={"sample_vqa": [8]}),
    _("ablate.lessons.L8_text.held_out", "txt", "ablate", value="txt"),
    _("ablate.lessons.L8_text.model", "sft", "ablate", value="sft"),
    _("ablate.grid.seed_paths", "sedd", "ablate", value=["pretrain.sedd.x"]),
    _("lr_law.rate_path", "optimiser", "lr_law", value="pretrain.optimiser.learning_rate"),
    _("lr_law.scores", "sample_vqaa", "lr_law", value={"sample_vqaa": [4]}, also={
        "lr_law.fit.higher_is_better": True}),
]  # fmt: skip


def make_places(folder: Path) -> None:
    """What `{tmp}` stands for."""
    (folder / "empty").mkdir()
    (folder / "damaged.json").write_text('{"questions": [', encoding="utf-8")
    for name in ("questions", "annotations"):
        content = json.loads(Path(_VQA_FILES[name]).read_text(encoding="utf-8"))
        few = {**content, name: content[name][:3]}
        (folder / f"{name}.json").write_text(json.dumps(few), encoding="utf-8")


def changed(raw: Mapping[str, Any], changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Parameters with a mistake in them."""
    result = json.loads(json.dumps(raw))
    for path, value in json.loads(json.dumps(changes).replace("{tmp}", str(folder))).items():
        *parents, last = path.split(".")
        place = result
        for part in parents:
            place = place.setdefault(part, {})
            assert isinstance(place, dict), path
        place[last] = value
    return result
