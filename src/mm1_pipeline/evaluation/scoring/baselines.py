"""What a score is worth: the same questions answered without looking at the image.

Two baselines stand beside every model. `frequent` gives one answer to all questions, the one that
scores best of the task's common answers; whoever beats it has learnt more than the distribution of
answers. `<model>:blind` is the same model with every image blanked (`ImageFeatures`); whoever beats
it uses its images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from mm1_pipeline.config.evaluation import CaptionWords, Metric
from mm1_pipeline.evaluation.formats.base import letter
from mm1_pipeline.evaluation.scoring.scoring import constant_value
from mm1_pipeline.evaluation.tasks import Task

FREQUENT = "frequent"
"""Name of the baseline in evaluation.json."""
BLIND_SUFFIX = ":blind"
"""Ends the name of a model whose images are blanked."""


_MAX_SCORED = 160_000
_MAX_SCORED_CAPTIONS = 2_000
"""Items times answers that are tried; of captions fewer, because CIDEr counts all of them anew."""
_MIN_TRIED = 16
_MIN_TRIED_CAPTIONS = 4
_ENOUGH_PEOPLE = 3
"""Of ten people, as many as make an answer right."""


def most_frequent_answer(task: Task) -> str:
    """Of the commonest answers, the one that scores best if it is given to every question.

    How often an answer occurs does not tell its score everywhere: F1 of `yes` is 0 for `no`, an
    answer that is near many others gains by ANLS, and one that some of ten people give to many
    questions by VQA accuracy. One answer for the whole task, which counts each query as well:
    leaving the query out would turn the baseline against itself where two answers are equally
    frequent. Our choice.

    Args:
        task: Gives the answers to its questions; the shown ones where none can be asked.

    Returns:
        The answer; on a tie the more frequent one, then the first in the alphabet. Where a judge
        marks, or answers are hidden, the most frequent one. All that occur are tried where items
        are few, else the commonest: 32 of 5,000 questions, 4 captions of 5,000 images.
    """
    metric = task.config.metric
    counts: Counter[str] = Counter()
    for item in task.items:
        if item.failure is None:
            given = Counter(item.references)
            counts.update({text: min(number, _ENOUGH_PEOPLE) for text, number in given.items()})
            # An option may be named by its letter where its text is the reference.
            places = [item.options.index(text) for text in given if text in item.options]
            counts.update(map(letter, places))
    counts = counts or Counter(task.shown_answers())
    is_caption = metric == Metric.CIDER
    if is_caption and task.config.caption_words != CaptionWords.REGEX:
        # Candidates are told apart by our own words: Java would start anew for each.
        task = replace(task, config=replace(task.config, caption_words=CaptionWords.REGEX))
    weights = caption_centrality(counts) if is_caption else {}
    ranked = sorted(counts, key=lambda text: (-counts[text], -weights.get(text, 0.0), text))
    if metric.needs_judge or task.config.hidden_answers:
        return ranked[0]
    most, least = (
        (_MAX_SCORED_CAPTIONS, _MIN_TRIED_CAPTIONS) if is_caption else (_MAX_SCORED, _MIN_TRIED)
    )
    tried = ranked[: max(most // len(task.items), least)]
    return tried[0] if len(tried) == 1 else max(tried, key=lambda text: constant_value(task, text))


def caption_centrality(captions: Collection[str]) -> dict[str, float]:
    """How much a caption has in common with the others: words weighted as CIDEr weighs them."""
    words = {caption: frozenset(caption.lower().split()) for caption in captions}
    occurrences = Counter(word for found in words.values() for word in found)
    rarity = {word: math.log(len(captions) / count) for word, count in occurrences.items()}
    # fsum: a set's order changes from process to process, and rounding with it would break ties.
    return {
        caption: math.fsum(occurrences[word] * rarity[word] ** 2 for word in found)
        / max(math.sqrt(math.fsum(rarity[word] ** 2 for word in found)), 1e-9)
        for caption, found in words.items()
    }
