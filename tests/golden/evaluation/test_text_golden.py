"""Text tasks against what lm-evaluation-harness 0.4.13 asks and scores on the same rows.

How text_tasks.json was made: lm-eval 0.4.13 (in an environment of its own) ran its own task files
(arc_easy, arc_challenge, piqa, lambada_openai, winogrande, hellaswag, sciq, triviaqa, webqs),
with `include:` and `dataset_path: json`, on the rows of text_files.py in the columns of the
Hugging Face data sets, zero-shot, with a model whose answers are `toy_likelihood` and
`toy_answer`. Kept are the hash of all its sorted requests, the first of them, and its metrics;
and the tokens that its `_encode_pair` gives over `toy_encode`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from text_files import COUNT, ROWS, toy_answer, toy_encode, toy_likelihood, write_text_files

from mm1_pipeline.config.task_files import TEXT_FOLDER, task_names
from mm1_pipeline.config.text_tasks import TextTaskConfig
from mm1_pipeline.evaluation.likelihood import Likelihood, encode_pair
from mm1_pipeline.evaluation.text_tasks import (
    TextTask,
    load_text_task,
    score_likelihoods,
    score_written,
    text_pairs,
    written_prompts,
)
from mm1_pipeline.streams.tokenizer import Tokenizer

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


def load(task: str, folder: Path, **changes) -> TextTask:
    config = TextTaskConfig(task=task, files=write_text_files(task, folder), **changes)
    return load_text_task(task, config, seed=0)


def digest(requests: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps(sorted(requests)).encode()).hexdigest()


def test_every_text_task_file_is_compared():
    assert set(task_names(TEXT_FOLDER)) == set(ROWS) == set(GOLDEN) - {"encode_pair"}


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"triviaqa"}))
def test_requests_and_metrics_are_lm_evals(name, tmp_path):
    task = load(name, tmp_path)
    golden = GOLDEN[name]
    asked = text_pairs(task, 0, 0)
    pairs = [pair for _, group in asked.values() for pair in group]
    requests = [list(pair) for pair in pairs]
    assert sorted(requests)[0] == golden["first"]
    assert len(requests) == golden["num_requests"]
    assert digest(requests) == golden["requests_sha256"]
    scored = score_likelihoods(task, 0, asked, [Likelihood(*toy_likelihood(*p)) for p in pairs])
    assert len(scored.rows) == COUNT
    # lm-eval calls it `acc` for LAMBADA and `exact_match` for WebQS.
    names = {"perplexity": "perplexity", "acc": "acc", "acc_norm": "acc_norm"}
    if name == "lambada":
        names["acc"] = "greedy_match"
    names["exact_match"] = "greedy_match"
    for metric, value in golden["metrics"].items():
        scale = 1 if metric == "perplexity" else 100
        # Worst difference measured: 2e-8: ours are rounded to 6 digits.
        assert scored.details[names[metric]] == pytest.approx(scale * value, abs=1e-6)
    assert scored.value == pytest.approx(scored.details[task.config.metric.value], abs=1e-6)


def test_triviaqa_is_written_and_matched_as_lm_eval_does(tmp_path):
    task = load("triviaqa", tmp_path)
    asked = text_pairs(task, 0, 0)
    contexts = [pairs[0][0] for _, pairs in asked.values()]
    assert digest([[context] for context in contexts]) == GOLDEN["triviaqa"]["requests_sha256"]
    prompts = written_prompts(task, 0, 0, ToyTokenizer())
    scored = score_written(task, 0, prompts, [toy_answer(context) for context in contexts])
    assert scored.value == pytest.approx(100 * GOLDEN["triviaqa"]["metrics"]["exact_match"])
    assert 0 < scored.value < 100


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
    task = load_text_task("h", TextTaskConfig(task="hellaswag", files=files), 0)
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
    with pytest.raises(ValueError, match=r"consists of \['labels', 'questions'\]"):
        TextTaskConfig(task="piqa", files={"questions": "x"})
    files = write_text_files("piqa", tmp_path)
    Path(files["labels"]).write_text("0\n1\n")
    with pytest.raises(ValueError, match=r"Found 20 questions .* but 2 labels"):
        load_text_task("p", TextTaskConfig(task="piqa", files=files), 0)
