"""Kedro's settings for this project."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro_rerun.components import Settings
from kedro_rerun.errors import hide_secrets, without_secrets
from kedro_rerun.graph import Graph
from kedro_rerun.preflight import Mistake
from kedro_rerun.session import session_class

from mm1_pipeline import hooks
from mm1_pipeline.environments import EnvironmentLoader
from mm1_pipeline.training.errors import TrainingStoppedError

# Threads that wait must sleep: on a small machine that does anything else besides, spinning
# ones make a training step twenty times slower. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_make_record = logging.getLogRecordFactory()


def _make_redacted_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A record of any library without the passwords of addresses in its text."""
    record = _make_record(*args, **kwargs)
    try:
        text = record.getMessage()
    except (TypeError, ValueError):  # Arguments that do not fit; the handler says so.
        return record
    if without_secrets(text) != text:
        record.msg, record.args = without_secrets(text), None
    if record.exc_info and record.exc_info[1] is not None:
        hide_secrets(record.exc_info[1])
    return record


logging.setLogRecordFactory(_make_redacted_record)

HOOKS = hooks.HOOKS


def _preflight(graph: Graph) -> list[Mistake]:
    from mm1_pipeline.preflight.checks import find_mistakes

    return find_mistakes(graph)


def _headlines(places: Mapping[str, Path]) -> Mapping[str, float]:
    from mm1_pipeline.lab.results import headlines

    return headlines(places)


SESSION_CLASS = session_class(
    Settings(
        packages=("mm1_pipeline",),
        command="kedro mm1",
        preflight=_preflight,
        headlines=_headlines,
        user_errors=(ValueError, TrainingStoppedError),  # Invariants are asserted.
        # Scorer and captioner reach the models, whose edits would rerun `ingest` and `synthesize`
        # of everybody who has neither; corpus.caption_scores.SCORES_VERSION and
        # evaluation.captioning.caption_writer.LOCAL_VERSION stand for them.
        excluded=(
            "mm1_pipeline.evaluation.captioning.caption_scores",
            "mm1_pipeline.evaluation.captioning.local_models",
        ),
        # Libraries that decide what a stage's outputs are; a new version makes them stale.
        libraries={
            "torch": "torch",
            "tokenizers": "tokenizers",
            "PIL": "pillow",
            "selectolax": "selectolax",
            "rapidocr": "rapidocr",
            "onnxruntime": "onnxruntime",
            "pycocoevalcap": "pycocoevalcap",
        },
        library_effects={
            "torch": "weights, losses and answers, from the last bits on",
            "tokenizers": "token ids, and so what is packed",
            "PIL": "pixels of decoded and resized images (11.3 and 13 resize some one grey level "
            "apart), and which damaged files open",
            "selectolax": "the text that web pages leave",
            "rapidocr": "the text that is read in images",
            "onnxruntime": "the text that is read in images",
            "pycocoevalcap": "scores of captions",
            "python": "the order and text of what the standard library computes",
        },
    )
)

CONFIG_LOADER_CLASS = EnvironmentLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment overrides single parameters; the default merge drops their siblings.
    "merge_strategy": {"parameters": "soft"},
}
