"""Text tasks against what lm-evaluation-harness 0.4.13 asks and scores on the same rows.

How text_tasks.json was made: make_text_goldens.py, which runs lm-eval. `encode_pair` holds the
tokens that its `_encode_pair` gives over `toy_encode`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from text_files import (
    COUNT,
    NASTY_COUNT,
    ROWS,
    Rows,
    nasty_rows,
    toy_answer,
    toy_encode,
    toy_likelihood,
    write_text_files,
)

from mm1_pipeline.config.task_files import TEXT_FOLDER, task_names
from mm1_pipeline.config.text_tasks import TextTaskConfig
from mm1_pipeline.evaluation.generation.likelihood import Likelihood, encode_pair
from mm1_pipeline.evaluation.text.text_tasks import (
    SEPARATOR,
    TextTask,
    load_text_task,
    score_likelihoods,
    score_written,
    text_pairs,
    written_prompts,
)
from mm1_pipeline.streams.tokenizer import Tokenizer
from typed_values import entry

GOLDEN = json.loads(Path(__file__).with_name("text_tasks.json").read_text())


class ToyEncoder:
    def encode(self, text: str) -> list[int]:
        return toy_encode(text)


class ToyTokenizer(Tokenizer):
    """Characters as tokens: all that written prompts need."""

    def __init__(self) -> None:
        self.bos_id = 1

    def encode(self, text: str) -> list[int]:
        return toy_encode(text)


DIGITS = 8
CASES = [
    (task, kind) for task in ROWS for kind in ("plain", "nasty", "one_shot") if kind in GOLDEN[task]
]


def load(task: str, folder: Path, rows: Rows | None = None, **changes) -> TextTask:
    files = write_text_files(task, folder, rows)
    config = TextTaskConfig(task=task, files=files, **changes)
    return load_text_task(task, config, seed=0)


def asked_of(task: TextTask, shot: str) -> dict[str, tuple[tuple[str, ...], list]]:
    """As `text_pairs`, after one solved example that is the same for all."""
    return {item.key: (("shot",), item.pairs(shot)) for item in task.items}


def digest(pairs: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:DIGITS]


def test_every_text_task_file_is_compared():
    assert set(task_names(TEXT_FOLDER)) == set(ROWS) == set(GOLDEN) - {"encode_pair"}
    assert len(CASES) == 26


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_request_and_metric_is_lm_evals(name, kind, tmp_path):
    *nasty, example = nasty_rows(name)
    task = load(name, tmp_path / "items", None if kind == "plain" else nasty)
    golden = GOLDEN[name][kind]
    count = COUNT if kind == "plain" else NASTY_COUNT
    asked = text_pairs(task, 0, 0)
    if kind == "one_shot":
        shot = load(name, tmp_path / "shots", [example, nasty[0]]).items[0]
        asked = asked_of(task, shot.solved() + SEPARATOR)
    assert len(task.items) == len(asked) == count
    requests = [
        [[pairs[0][0]]] if task.is_written else [list(pair) for pair in pairs]
        for _, pairs in asked.values()
    ]
    assert requests[0] == golden["first"]
    expected = [
        golden["digests"][place : place + DIGITS]
        for place in range(0, len(golden["digests"]), DIGITS)
    ]
    assert len(expected) == count
    different = [
        request
        for request, wanted in zip(requests, expected, strict=True)
        if digest(request) != wanted
    ]
    assert not different, f"{len(different)} of {count}, such as {different[0]}"
    if task.is_written:
        prompts = written_prompts(task, 0, 0, ToyTokenizer())
        answers = [toy_answer(request[0][0]) for request in requests]
        scored = score_written(task, 0, prompts, answers)
        assert scored.value == pytest.approx(100 * golden["metrics"]["exact_match"], abs=1e-9)
        assert 0 < scored.value < 100
        return
    likelihoods = [Likelihood(*toy_likelihood(*pair)) for pairs in requests for pair in pairs]
    scored = score_likelihoods(task, 0, asked, likelihoods)
    assert len(scored.rows) == count
    # lm-eval calls it `acc` for LAMBADA and `exact_match` for WebQS.
    names = {"perplexity": "perplexity", "acc": "acc", "acc_norm": "acc_norm"}
    if name == "lambada":
        names["acc"] = "greedy_match"
    names["exact_match"] = "greedy_match"
    for metric, value in golden["metrics"].items():
        scale = 1 if metric == "perplexity" else 100
        # Worst difference measured: 5e-7 of a percent: ours are rounded to 6 digits.
        assert scored.details[names[metric]] == pytest.approx(scale * value, rel=1e-9, abs=1e-6)
    assert scored.value == pytest.approx(scored.details[task.config.metric.value], abs=1e-6)


def test_continuations_get_the_tokens_that_lm_eval_gives_them():
    assert len(GOLDEN["encode_pair"]) == 48
    for context, continuation, before, after in GOLDEN["encode_pair"]:
        assert encode_pair(context, continuation, ToyEncoder()) == (before, after)
    # Some continuations begin inside a token of context and continuation together.
    alone = sum(after != toy_encode(c) for _, c, _, after in GOLDEN["encode_pair"])
    assert alone > 5


def test_shots_are_solved_examples_and_never_the_item(tmp_path):
    task = load("arc_easy", tmp_path, shots=(2,))
    for key, (shots, pairs) in text_pairs(task, 2, 0).items():
        assert len(set(shots)) == 2
        assert key not in shots
        solved = [task.pool[shot].solved() for shot in shots]
        item = next(item for item in task.items if item.key == key)
        assert pairs[0][0] == f"{solved[0]}\n\n{solved[1]}\n\n{item.contexts[0]}"
    first = task.items[0]
    assert first.solved() == "Question: Which one lifts the anvil?\nAnswer: anvil"


def test_malformed_items_count_as_wrong(tmp_path):
    files = write_text_files("hellaswag", tmp_path)
    path = Path(files["questions"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["label"] = 9
    del rows[4]["endings"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
    task = load_text_task("h", entry(TextTaskConfig, task="hellaswag", files=files), 0)
    asked = text_pairs(task, 0, 0)
    likelihoods = [
        Likelihood(0.0 if place in item.right else -9.0, False)
        for item in task.items
        for place in range(len(item.options))
    ]
    scored = score_likelihoods(task, 0, asked, likelihoods)
    summary = scored.summary(50, 0)
    assert (summary["n"], summary["failed"]) == (21, 3)
    assert summary["value"] == pytest.approx(100 * 18 / 21)
    failures = [row["failure"] for row in scored.rows if row["failure"]]
    assert "found no field 'endings'" in failures[1]


def test_files_and_roles_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"expected \['labels', 'questions'\]"):
        entry(TextTaskConfig, task="piqa", files={"questions": "x"})
    files = write_text_files("piqa", tmp_path)
    Path(files["labels"]).write_text("0\n1\n")
    with pytest.raises(ValueError, match=r"Found 20 questions .* but 2 labels"):
        load_text_task("p", entry(TextTaskConfig, task="piqa", files=files), 0)
