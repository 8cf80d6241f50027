"""Scorers of captions by their parameters, without what they need before one is asked for."""

from __future__ import annotations

from mm1_pipeline.config.corpus_rules import ClipScoreConfig
from mm1_pipeline.corpus.caption_scores import CaptionScorer


def load_scorer(config: ClipScoreConfig) -> CaptionScorer:
    """What scores captions; torch is imported here, only where some are scored.

    Args:
        config: model and tokenizer.

    Raises:
        ValueError: as `ContrastiveScorer`.
    """
    from mm1_pipeline.evaluation.captioning.caption_scores import ContrastiveScorer

    return ContrastiveScorer(config)
