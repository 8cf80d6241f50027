"""Judged benchmarks against a fake OpenAI-compatible server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from benchmark_files import COUNT, WORDS, WRITERS

from mm1_pipeline.config.evaluation import EvaluateConfig, JudgeConfig, TaskConfig
from mm1_pipeline.evaluation.generation.answer_log import Answer
from mm1_pipeline.evaluation.prompts.prompts import build_prompts
from mm1_pipeline.evaluation.scoring.judge import (
    Judge,
    JudgeError,
    fill_judge_prompt,
    parse_grade,
    parse_two_marks,
)
from mm1_pipeline.evaluation.scoring.scoring import score_outputs
from mm1_pipeline.evaluation.tasks import load_task
from typed_values import entry


class FakeServer:
    """Replies as told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.reply: Callable[[str], str] = lambda prompt: "1.0"
        self.statuses: list[int] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.requests.append(body)
                owner.headers.append(dict(self.headers))
                status = owner.statuses.pop(0) if owner.statuses else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                content = owner.reply(body["messages"][0]["content"])
                data = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.config = JudgeConfig(
            endpoint=f"http://127.0.0.1:{self._server.server_port}/v1",
            model="fake-judge",
            timeout_seconds=10,
            max_retries=1,
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


def load(task: str, folder):
    config = entry(TaskConfig, task=task, files=WRITERS[task](folder))
    return load_task(task, config, folder, 0)


def score(task, tokenizer, judge, text: str = "a fine answer"):
    prompts = build_prompts(task, 0, 0, tokenizer, 2)
    return score_outputs(task, 0, prompts, [Answer(f" {text} {p.key}") for p in prompts], judge)


def number_in(prompt: str) -> int:
    return next(n for n, word in enumerate(WORDS) if f"of {word}?" in prompt or word in prompt)


def test_llava_w_is_the_ratio_of_the_sums_of_marks(server, tmp_path, tokenizer):
    task = load("llava_w", tmp_path)
    assert task.failures == {}
    # 15 answers get 6, 5 get 2; every reference 8: (15 x 6 + 5 x 2) / (20 x 8).
    server.reply = lambda prompt: f"8 {2 if question(prompt) % 4 == 3 else 6}\nBecause ..."

    def question(prompt: str) -> int:
        return next(n for n, word in enumerate(WORDS) if f"What of {word}?" in prompt)

    scored = score(task, tokenizer, Judge(server.config))
    assert scored.value == pytest.approx(62.5)
    assert scored.summary(200, 0)["stderr"] > 0
    assert [row["score"] for row in scored.rows[:4]] == [75.0, 75.0, 75.0, 25.0]
    parts = scored.details["by_category"]
    assert sum(part["n"] for part in parts.values()) == COUNT
    assert {part["reference"] for part in parts.values()} == {80.0}
    for part in parts.values():  # the official summary rounds means to three digits
        assert part["ratio"] == pytest.approx(part["answer"] / 0.8, abs=0.01)
    record = scored.rows[0]["judge"]
    assert record["model"] == "fake-judge"
    assert len(record["prompt_sha256"]) == 64
    assert record["reply"].startswith("8 6")
    first = server.requests[0]
    assert first["model"] == "fake-judge"
    assert first["temperature"] == 0
    asked = first["messages"][0]["content"]
    for part in (
        "Scene of anvil.",
        "What of anvil?",
        "The right answer on anvil.",
        "a fine answer",
    ):
        assert part in asked


def test_mm_vet_is_the_mean_grade(server, tmp_path, tokenizer):
    task = load("mm_vet", tmp_path)
    # (15 x 1.0 + 5 x 0.2) / 20
    server.reply = lambda prompt: "0.2" if number_in(prompt) % 4 == 3 else "Grade: 1.0"
    scored = score(task, tokenizer, Judge(server.config))
    assert scored.value == pytest.approx(80.0)
    # The odd questions need "math+rec": 5 x 1.0 and 5 x 0.2 of ten.
    assert scored.details["by_category"]["math+rec"] == {"mean": 60.0, "n": 10}
    capabilities = scored.details["by_capability"]
    assert capabilities["math"] == {"mean": 60.0, "n": 10}
    assert capabilities["rec"] == capabilities["math"]
    assert capabilities["ocr"] == {"mean": 100.0, "n": 10}


def test_an_unreadable_reply_fails_its_item_and_counts_as_wrong(server, tmp_path, tokenizer):
    task = load("mm_vet", tmp_path)
    server.reply = lambda prompt: "well, well" if number_in(prompt) == 5 else "1.0"
    scored = score(task, tokenizer, Judge(server.config))
    assert scored.value == pytest.approx(95.0)
    failed = [row for row in scored.rows if row["failure"]]
    assert [row["key"] for row in failed] == ["v1_5"]
    assert failed[0]["failure"] == "judge: found no grade in 'well, well'"


def test_mathvista_can_be_extracted_by_the_judge(server, tmp_path, tokenizer):
    task = load("mathvista", tmp_path)
    answers = {item.question: item.references[0] for item in task.items}
    server.reply = lambda prompt: next(a for q, a in answers.items() if q and q in prompt)
    scored = score(task, tokenizer, Judge(server.config))
    assert scored.value == 100.0
    assert {row["judge"]["extraction"] for row in scored.rows} == {"judge"}


def test_replies_are_kept_so_that_nothing_is_asked_twice(server, tmp_path, tokenizer):
    task = load("mm_vet", tmp_path)
    log = tmp_path / "judge.jsonl"
    whole = score(task, tokenizer, Judge(server.config, log))
    assert len(server.requests) == COUNT
    content = log.read_bytes()
    log.write_bytes(content[: len(content) * 2 // 3])  # killed in the middle of a line
    again = score(task, tokenizer, Judge(server.config, log))
    assert again.rows == whole.rows
    assert COUNT < len(server.requests) < 2 * COUNT
    assert log.read_bytes().count(b"\n") == COUNT


def test_a_busy_server_is_asked_again_and_a_refusing_one_stops(server):
    server.statuses = [503]
    assert Judge(server.config).ask("hello").reply == "1.0"
    assert len(server.requests) == 2
    server.statuses = [401]
    with pytest.raises(JudgeError, match=r"gave HTTP 401.*takes the key"):
        Judge(server.config).ask("other")
    server.statuses = [302]
    with pytest.raises(JudgeError, match=r"gave HTTP 302"):
        Judge(server.config).ask("another")


def test_a_server_that_is_not_there_stops(server):
    config = JudgeConfig(endpoint="http://127.0.0.1:9/v1", model="m", max_retries=0)
    with pytest.raises(JudgeError, match=r"127.0.0.1:9/v1 gave .*check that the server runs"):
        Judge(config).ask("hello")


def test_a_reply_of_another_format_stops(server, monkeypatch):
    monkeypatch.setattr(Judge, "_post", lambda self, body: b'{"error": "no"}')
    with pytest.raises(JudgeError, match=r"expected choices\[0\].message.content"):
        Judge(server.config).ask("hello")


def test_the_key_comes_from_the_environment_only(server, monkeypatch):
    import dataclasses

    config = dataclasses.replace(server.config, api_key_env="TEST_JUDGE_KEY")
    with pytest.raises(JudgeError, match="found no environment variable TEST_JUDGE_KEY"):
        Judge(config)
    monkeypatch.setenv("TEST_JUDGE_KEY", "secret")
    Judge(config).ask("hello")
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_judged_tasks_are_refused_without_a_judge(tmp_path):
    tasks = {"w": entry(TaskConfig, task="llava_w", files=WRITERS["llava_w"](tmp_path))}
    with pytest.raises(ValueError, match=r"tasks.w.metric: found judge_ratio.*evaluate.judge.endp"):
        EvaluateConfig(tasks=tasks)
    EvaluateConfig(tasks=tasks, judge=JudgeConfig(endpoint="http://localhost/v1", model="m"))
    with pytest.raises(ValueError, match="endpoint: found 'ftp://x'"):
        JudgeConfig(endpoint="ftp://x", model="m")


def test_an_answer_cannot_fill_another_slot():
    prompt = fill_judge_prompt(
        "{question}|{answer}|{reference}",
        question="what {answer}?",
        reference="r",
        answer="{reference}",
        context="",
    )
    assert prompt == "what {answer}?|{reference}|r"


@pytest.mark.parametrize(
    ("reply", "marks"),
    [
        ("8 6", (8.0, 6.0)),
        ("8.5, 10\nThe second ...", (8.5, 10.0)),
        ("7", None),
        ("8 6 4", None),
        ("11 3", None),
        ("0 3", None),
        ("", None),
        ("\n", None),
    ],
)
def test_two_marks_are_read_or_refused(reply, marks):
    assert parse_two_marks(reply) == marks


@pytest.mark.parametrize(
    ("reply", "grade"),
    [("0.5", 0.5), ("Grade: 1", 1.0), ("0", 0.0), ("1.5", None), ("0.5 or 0.6", None), ("", None)],
)
def test_a_grade_is_read_or_refused(reply, grade):
    assert parse_grade(reply) == grade
