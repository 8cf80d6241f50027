"""Items that a judge marks: LLaVA-Bench by ratio, MM-Vet by grade, MathVista by extraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mm1_pipeline.config.evaluation import Metric, TaskConfig
from mm1_pipeline.evaluation.judge import Judge, fill_judge_prompt, parse_grade, parse_two_marks
from mm1_pipeline.evaluation.mathvista import EXTRACTION_PROMPT, RULES, extract_by_rules
from mm1_pipeline.evaluation.tasks import TaskItem

_TOP_MARK = 10.0


class Judged(NamedTuple):
    """What a judge made of one answer.

    Attributes:
        text: The answer as it is scored.
        value: Its score; None if it is scored from the text, or the reply was unreadable.
        failure: Why it has no score.
        record: Judge, prompt hash and reply, for the row.
        marks: The judge's marks for the reference answer and the answer.
    """

    text: str
    value: float | None
    failure: str | None
    record: Mapping[str, Any]
    marks: tuple[float, float] | None = None


def judge_items(
    config: TaskConfig, items: Sequence[TaskItem], texts: Mapping[str, str], judge: Judge | None
) -> dict[str, Judged]:
    """Marks the answers to items by key; nothing where the metric needs no judge.

    Args:
        config: Metric and the judge's prompt.
        items: Those that were answered.
        texts: The answers, cut at their stop strings, by key.
        judge: None extracts MathVista's answers by rules, labelled so in every row.

    Raises:
        ValueError: If the metric needs a judge and there is none.
        JudgeError: The judge cannot be asked.
    """
    match config.metric:
        case Metric.JUDGE_RATIO:
            mark = _mark_ratio
        case Metric.JUDGE_GRADE:
            mark = _mark_grade
        case Metric.MATHVISTA:
            mark = _extract
        case _:
            return {}
    if judge is None and config.metric.needs_judge:
        raise ValueError(
            f"evaluate.judge: found none, but {config.metric} needs one; see EvaluateConfig."
        )
    return {item.key: mark(config, item, texts[item.key], judge) for item in items}


def judge_marks(items: Sequence[TaskItem], judged: Mapping[str, Judged]) -> np.ndarray:
    """The marks of the answers and of the reference answers: float64[n, 2].

    An item without marks counts as an answer of no worth beside a reference of average worth.
    (The official script counts an unreadable reply as -1 for both.)
    """
    marks = {key: found.marks for key, found in judged.items() if found.marks is not None}
    usual = float(np.mean([mark[0] for mark in marks.values()])) if marks else _TOP_MARK
    pairs = [marks.get(item.key, (usual, 0.0))[::-1] for item in items]
    return np.array(pairs, dtype=np.float64).reshape(len(items), 2)


def _mark_ratio(config: TaskConfig, item: TaskItem, text: str, judge: Judge | None) -> Judged:
    reply, record = _ask(config.judge_prompt, item, text, judge)
    marks = parse_two_marks(reply)
    if marks is None:
        return Judged(text, None, f"judge: found no two marks in {reply[:80]!r}", record)
    return Judged(text, marks[1] / marks[0], None, record, marks)


def _mark_grade(config: TaskConfig, item: TaskItem, text: str, judge: Judge | None) -> Judged:
    reply, record = _ask(config.judge_prompt, item, text, judge)
    grade = parse_grade(reply)
    failure = None if grade is not None else f"judge: found no grade in {reply[:80]!r}"
    return Judged(text, grade, failure, record)


def _extract(_config: TaskConfig, item: TaskItem, text: str, judge: Judge | None) -> Judged:
    if judge is None:
        extracted = extract_by_rules(text, item)
        record: dict[str, Any] = {"extraction": RULES}
    else:
        reply, record = _ask(EXTRACTION_PROMPT, item, text, judge)
        record = {**record, "extraction": "judge"}
        extracted = reply.strip().splitlines()[0] if reply.strip() else None
        if extracted is not None and extracted.casefold().rstrip(".") == "none":
            extracted = None
    if extracted is None:
        # Not left to the comparison, for which no text is nearest to the shortest option.
        return Judged("", 0.0, None, record)
    return Judged(extracted, None, None, record)


def _ask(
    template: str, item: TaskItem, text: str, judge: Judge | None
) -> tuple[str, dict[str, Any]]:
    assert judge is not None
    judgement = judge.ask(
        fill_judge_prompt(
            template,
            question=item.question or "",
            reference=item.references[0],
            answer=text,
            context=item.facts.get("context", ""),
        )
    )
    return judgement.reply, {"model": judge.model, **judgement._asdict()}
