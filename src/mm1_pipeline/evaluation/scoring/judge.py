"""A language model that marks answers, behind an OpenAI-compatible address.

Judged scores change with the judge: its name and the prompt's hash stand in every row. Replies
are kept in a file, so an interrupted evaluation asks nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from kedro_rerun.errors import without_secrets

from mm1_pipeline.config.evaluation import JudgeConfig, Metric, TaskConfig
from mm1_pipeline.corpus.api_keys import ApiKey
from mm1_pipeline.evaluation.answers.mathvista import EXTRACTION_PROMPT, RULES, extract_by_rules
from mm1_pipeline.evaluation.generation.answer_log import RowLog
from mm1_pipeline.evaluation.tasks import TaskItem

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 1_000_000
_RETRIED = (408, 409, 429, 500, 502, 503, 504)
_MARK = re.compile(r"(?<![\d.])\d+(?:\.\d+)?(?![\d.]*\d)")
_SLOT = re.compile(r"\{(question|reference|answer|context)\}")


class JudgeError(ValueError):
    """A judge that cannot be asked; nothing is scored without it."""


class Judgement(NamedTuple):
    """One reply."""

    reply: str
    prompt_sha256: str


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key must not travel to an address that no one wrote down."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Follows none."""


class Judge:
    """Asks a language model, at temperature 0.

    Args:
        config: Address, model, limits.
        log: File of earlier replies; new ones are added. None keeps none.
    """

    def __init__(self, config: JudgeConfig, log: Path | None = None) -> None:
        self.model = config.model
        self._config = config
        self._log = None if log is None else RowLog(log)
        rows = [] if self._log is None else self._log.rows
        self._replies = {row["sha256"]: row["reply"] for row in rows}
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._key = _api_key(config)
        self.num_asked = 0
        """Requests that went out so far."""

    def ask(self, prompt: str) -> Judgement:
        """The judge's reply to a prompt.

        Raises:
            JudgeError: The endpoint cannot be reached, refuses, or replies in another format.
        """
        digest = hashlib.sha256(json.dumps([self.model, prompt]).encode()).hexdigest()
        if digest not in self._replies:
            reply = self._key.hide(self._request(prompt))
            self._replies[digest] = reply
            if self._log is not None:
                self._log.append([{"sha256": digest, "reply": reply}])
        return Judgement(self._replies[digest], hashlib.sha256(prompt.encode()).hexdigest())

    def _request(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._config.max_tokens,
        }
        problem = "nothing"
        for attempt in range(self._config.max_retries + 1):
            try:
                self.num_asked += 1
                return self._content(self._post(json.dumps(body).encode()))
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} {error.reason}"
                if error.code not in _RETRIED:
                    break
            except (OSError, HTTPException) as error:
                problem = str(error)
            problem = self._key.hide(without_secrets(problem))
            if attempt < self._config.max_retries:
                logger.warning("judge: %s; trying again.", problem)
                time.sleep(min(2**attempt, 30) * 0.5)
        problem = self._key.hide(without_secrets(problem))
        raise JudgeError(
            f"evaluate.judge.endpoint: {self._config.endpoint} gave {problem}; check that the "
            "server runs, knows the model, and takes the key. Answers and replies so far are kept."
        )

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", **self._key.headers()}
        request = urllib.request.Request(  # noqa: S310 (the parameters allow http and https only)
            f"{self._config.endpoint.rstrip('/')}/chat/completions", body, headers
        )
        with self._opener.open(request, timeout=self._config.timeout_seconds) as response:
            return response.read(MAX_REPLY_BYTES)

    def _content(self, data: bytes) -> str:
        try:
            content = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            content = None
        if not isinstance(content, str):
            start = self._key.hide(data.decode("utf-8", "replace"))[:80]
            raise JudgeError(
                f"evaluate.judge.endpoint: found a reply that starts with {start!r}, expected "
                "choices[0].message.content as OpenAI's chat completions have it."
            )
        return content


def fill_judge_prompt(
    template: str, *, question: str, reference: str, answer: str, context: str
) -> str:
    """The template with its slots filled; what fills a slot is never a slot itself."""
    values = {"question": question, "reference": reference, "answer": answer, "context": context}
    return _SLOT.sub(lambda match: values[match[1]], template)


def parse_two_marks(reply: str) -> tuple[float, float] | None:
    """Marks of 0 to 10 on the first line: the reference answer's, the answer's; None if not so."""
    lines = reply.strip().splitlines()
    marks = [float(found) for found in _MARK.findall(lines[0])] if lines else []
    if len(marks) != 2 or not all(0 <= mark <= 10 for mark in marks) or marks[0] == 0:
        return None
    return marks[0], marks[1]


def parse_grade(reply: str) -> float | None:
    """The one number of 0 to 1 in a reply; None if there is no such number, or several."""
    grades = [float(found) for found in _MARK.findall(reply)]
    return grades[0] if len(grades) == 1 and 0 <= grades[0] <= 1 else None


def _api_key(config: JudgeConfig) -> ApiKey:
    try:
        key = ApiKey(config.api_key_env)
    except ValueError as error:
        raise JudgeError(f"evaluate.judge.api_key_env: {error}") from None
    if config.api_key_env is not None and not key:
        raise JudgeError(
            f"evaluate.judge.api_key_env: found no environment variable {config.api_key_env}; set "
            "it to the endpoint's key, or leave the parameter out for a server without keys."
        )
    return key


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
