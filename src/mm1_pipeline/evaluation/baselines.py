"""What a score is worth: the same questions answered without looking at the image.

Two baselines stand beside every model. `frequent` always gives the task's most frequent answer;
whoever beats it has learnt more than the distribution of answers. `<model>:blind` is the same
model with every image blanked (`ImageFeatures`); whoever beats it uses its images.
"""

from __future__ import annotations

from collections import Counter

from mm1_pipeline.evaluation.tasks import Task

FREQUENT = "frequent"
"""Name of the baseline in evaluation.json."""
BLIND_SUFFIX = ":blind"
"""Ends the name of a model whose images are blanked."""


def most_frequent_answer(task: Task) -> str:
    """The answer that most items of a task's pool show; the first in the alphabet on a tie.

    One answer for the whole task, which counts each query as well: leaving the query out would
    turn the baseline against itself where two answers are equally frequent. Our choice.
    """
    counts = Counter(task.shown_answers())
    return min(counts, key=lambda answer: (-counts[answer], answer))
