"""Writes text_tasks.json: what lm-evaluation-harness asks and scores on the rows of text_files.

Run outside the project, in an environment with lm-eval 0.4.13:

    python make_text_goldens.py

lm-eval's own task files (arc_easy, arc_challenge, piqa, lambada_openai, winogrande, hellaswag,
sciq, triviaqa, webqs) are included with `dataset_path: json`, and get the rows in the columns of
the Hugging Face data sets. What stands between the official files and those columns was read in
the data sets' scripts (huggingface/datasets): TriviaQA's texts lose their outer spaces, WebQS's
names are found by one expression. The model's answers are `toy_likelihood` and `toy_answer`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import lm_eval  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
from text_files import ROWS, Rows, nasty_rows, toy_answer, toy_likelihood

OUT = Path(__file__).with_name("text_tasks.json")
OFFICIAL = {name: name for name in ROWS} | {"lambada": "lambada_openai"}
FOLDERS = {"arc_easy": "arc", "arc_challenge": "arc"}
FILES = {"winogrande": "default", "triviaqa": "default"}
DIGITS = 8


class ToyModel(LM):
    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [toy_likelihood(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Any) -> Any:
        raise NotImplementedError

    def generate_until(self, requests: Any) -> list[str]:
        answers = [toy_answer(request.args[0]) for request in requests]
        return [re.split("[\n.,]", answer)[0] for answer in answers]


def columns(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row as the Hugging Face data set has it."""
    match task:
        case "arc_easy" | "arc_challenge":
            choices = row["question"]["choices"]
            return {
                "question": row["question"]["stem"],
                "choices": {
                    "text": [choice["text"] for choice in choices],
                    "label": [choice["label"] for choice in choices],
                },
                "answerKey": row["answerKey"],
            }
        case "hellaswag":
            return {**row, "label": str(row["label"])}
        case "triviaqa":
            aliases = [alias.strip() for alias in row["Answer"]["Aliases"]]
            return {"question": row["Question"].strip(), "answer": {"aliases": aliases}}
        case "webqs":
            target = re.sub(r"^\(list |\)$", "", row["targetValue"])
            found = re.findall(r"\(description (?:\"([^\"]+?)\"|([^)]+?))\)\w*", target)
            return {"question": row["utterance"], "answers": ["".join(pair) for pair in found]}
    return row


def ask(task: str, rows: Rows, shot: Rows, num_shots: int) -> dict[str, Any]:
    """What lm-eval asks, a digest a row, and its metrics."""
    name = OFFICIAL[task]
    package = Path(str(lm_eval.__file__)).parent / "tasks" / FOLDERS.get(task, task)
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for split, content in (("train", shot), ("test", rows)):
            path = Path(folder) / f"{split}.jsonl"
            path.write_text("".join(json.dumps(columns(task, row)) + "\n" for row in content))
            files[split] = str(path)
        config = [
            f"include: {package / FILES.get(task, name)}.yaml",
            f"task: toy_{task}",
            "tag: null",
            "dataset_path: json",
            "dataset_name: null",
            f"dataset_kwargs: {{data_files: {json.dumps(files)}}}",
            "training_split: train",
            "validation_split: null",
            "test_split: test",
            "fewshot_split: train",
            "fewshot_config: {sampler: first_n}",
        ]
        (Path(folder) / f"toy_{task}.yaml").write_text("\n".join(config) + "\n")
        found = lm_eval.simple_evaluate(
            ToyModel(),
            tasks=[f"toy_{task}"],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            num_fewshot=num_shots,
            bootstrap_iters=0,
            log_samples=True,
        )
    assert found is not None
    samples = sorted(found["samples"][f"toy_{task}"], key=lambda sample: sample["doc_id"])
    is_written = task == "triviaqa"
    asked = [
        [args[:1] if is_written else list(args) for args in sample["arguments"]]
        for sample in samples
    ]
    metrics = {
        key.partition(",")[0]: value
        for key, value in found["results"][f"toy_{task}"].items()
        if isinstance(value, float) and "stderr" not in key
    }
    return {
        "digests": "".join(digest(pairs) for pairs in asked),
        "first": asked[0],
        "metrics": metrics,
    }


def digest(pairs: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps([list(pair) for pair in pairs]).encode()).hexdigest()[:DIGITS]


def main() -> None:
    golden: dict[str, Any] = {}
    for task in ROWS:
        plain, nasty = ROWS[task](), nasty_rows(task)
        golden[task] = {
            "plain": ask(task, plain, nasty[-1:], 0),
            "nasty": ask(task, nasty[:-1], nasty[-1:], 0),
        }
        if task != "webqs":  # whose solved examples lm-eval cannot show: its target is no text
            golden[task]["one_shot"] = ask(task, nasty[:-1], nasty[-1:], 1)
    # Made once with lm-eval's `_encode_pair` over `toy_encode`, which needs torch; it is kept.
    golden["encode_pair"] = json.loads(OUT.read_text())["encode_pair"]
    lines = (f"{json.dumps(task)}: {json.dumps(content)}" for task, content in golden.items())
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
