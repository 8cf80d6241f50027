"""The whole stage on a tiny random model."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections import Counter

import pytest
from evaluation_samples import (
    encoded_image,
    question_record,
    sample_captions,
    sample_questions,
    write_source,
)

from mm1_pipeline.config.evaluation import Precision, ShotDraw
from mm1_pipeline.config.shard import TokenizerConfig
from mm1_pipeline.evaluation.evaluate import evaluate
from mm1_pipeline.evaluation.generation import generation
from mm1_pipeline.evaluation.generation.answer_log import AnswerLog
from mm1_pipeline.evaluation.scoring.caption_words import CAPTION_TOKENIZER
from mm1_pipeline.evaluation.scoring.metrics import cider_scores, vqa_accuracy
from mm1_pipeline.models.checkpoint import save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.streams.tokenizer import train_tokenizer

MODELS = ("pretrain", "pretrain:blind", "frequent")


def run(world, output_dir, work_dir=None, **changes):
    config = dataclasses.replace(world.config, **changes)
    models = {"pretrain": world.model}
    part = None if work_dir is None else work_dir.joinpath
    return evaluate(config, models, **world.inputs(), output_dir=output_dir, part=part)


def files_of(directory) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def rows_of(directory, model, task, shots) -> list[dict]:
    text = (directory / model / f"{task}_{shots}shot.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def first(world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("first")
    return directory, run(world, directory)


def test_every_model_is_scored_on_every_task(first):
    _, (evaluation, held_out) = first
    assert tuple(evaluation["models"]) == MODELS
    for entry in evaluation["models"].values():
        assert {name: task["metric"] for name, task in entry["tasks"].items()} == {
            "captions": "cider",
            "questions": "vqa_accuracy",
        }
        for name, size in (("captions", 8), ("questions", 12)):
            shots = entry["tasks"][name]["shots"]
            assert list(shots) == ["0", "2"]
            assert all(score["n"] == size and score["failed"] == 0 for score in shots.values())
    assert held_out["models"].keys() == {"pretrain"}
    harness = evaluation["harness"]
    assert re.fullmatch("[0-9a-f]{64}", harness["prompts_sha256"])
    assert harness["tokenizer"] == CAPTION_TOKENIZER
    json.dumps(evaluation, allow_nan=False)


def test_the_same_inputs_give_the_same_bytes(world, first, tmp_path):
    directory, expected = first
    # A batch size is operational: it must not show either.
    found = run(world, tmp_path, batch_size=3)
    assert json.dumps(found) == json.dumps(expected)
    assert files_of(tmp_path) == files_of(directory)
    assert len(files_of(directory)) == 3 * 2 * 2


def test_values_are_means_of_the_rows(first):
    directory, (evaluation, _) = first
    for model in MODELS:
        for task in ("captions", "questions"):
            for shots in (0, 2):
                scores = [row["score"] for row in rows_of(directory, model, task, shots)]
                entry = evaluation["models"][model]["tasks"][task]["shots"][str(shots)]
                assert entry["value"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)


def test_rows_can_be_scored_again_from_what_they_hold(first):
    directory, _ = first
    for model in MODELS:
        for row in rows_of(directory, model, "questions", 2):
            score = 100 * vqa_accuracy(row["processed_output"], row["references"])
            assert row["score"] == pytest.approx(score, abs=1e-5)
        rows = rows_of(directory, model, "captions", 2)
        scores = cider_scores(
            {row["key"]: row["processed_output"] for row in rows},
            {row["key"]: row["references"] for row in rows},
        )
        assert [row["score"] for row in rows] == pytest.approx(100 * scores, abs=1e-5)


def test_rows_name_the_shots_and_no_row_shows_itself(first):
    directory, _ = first
    for model in ("pretrain", "pretrain:blind"):
        for row in rows_of(directory, model, "questions", 2):
            assert len(row["shots"]) == 2
            assert row["key"] not in row["shots"]
    blind = [row["prompt_sha256"] for row in rows_of(directory, "pretrain:blind", "questions", 2)]
    seeing = [row["prompt_sha256"] for row in rows_of(directory, "pretrain", "questions", 2)]
    assert blind == seeing  # both are asked the same
    assert len(set(seeing)) == 12


def test_the_blind_twin_answers_without_images(first):
    directory, _ = first
    seeing, blind = (
        [row["raw_output"] for row in rows_of(directory, model, "questions", 0)]
        for model in ("pretrain", "pretrain:blind")
    )
    assert sum(a != b for a, b in zip(seeing, blind, strict=True)) > 6
    # Four different questions, and nothing else, tell its prompts apart.
    assert len(set(blind)) <= 4 < len(set(seeing))


def test_the_frequent_answer_is_the_same_for_all(first):
    directory, _ = first
    for shots in (0, 2):
        rows = rows_of(directory, "frequent", "questions", shots)
        # Seven people say one of four colours, three say no to every question.
        assert {row["raw_output"] for row in rows} == {"no"}
        assert {row["score"] for row in rows} == {90.0}


def test_gains_are_over_the_blind_twin(first):
    _, (evaluation, _) = first
    for task in ("captions", "questions"):
        for shots in ("0", "2"):
            seeing, blind = (
                evaluation["models"][name]["tasks"][task]["shots"][shots]
                for name in ("pretrain", "pretrain:blind")
            )
            gain = seeing["gain_over_blind"]
            assert gain["mean"] == pytest.approx(seeing["value"] - blind["value"], abs=1e-5)
            assert gain["low"] <= gain["mean"] <= gain["high"]
            assert "gain_over_blind" not in blind


def test_broken_items_count_as_wrong_and_are_listed(world, tmp_path, caplog):
    whole = sample_questions()
    broken = [
        question_record("no picture", b"GIF89a", "what?", ["no"] * 10),
        question_record("one answer", encoded_image(50), "what?", ["no"]),
    ]
    write_source(tmp_path, "eval_questions", [*whole, *broken])
    write_source(tmp_path, "eval_captions", sample_captions())
    inputs = {**world.inputs(), "records_dir": tmp_path}
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        evaluation, _ = evaluate(world.config, {"pretrain": world.model}, **inputs, output_dir=out)
    for model in MODELS:
        entry = evaluation["models"][model]["tasks"]["questions"]["shots"]["2"]
        assert (entry["n"], entry["failed"]) == (14, 2)
        failed = [row for row in rows_of(out, model, "questions", 2) if row["failure"]]
        assert [row["key"] for row in failed] == ["no picture", "one answer"]
        assert [row["score"] for row in failed] == [0.0, 0.0]
    assert "item no picture counts as wrong" in caplog.text


def test_a_prompt_beyond_the_cache_stops_before_any_answer(world, tmp_path):
    with pytest.raises(ValueError, match=r"max_positions: found 20, but the prompt of item"):
        run(world, tmp_path, max_positions=20)
    assert not list(tmp_path.iterdir())


def test_a_prompt_longer_than_training_sequences_is_warned_of(world, tmp_path, caplog):
    tasks = {"questions": dataclasses.replace(world.config.tasks["questions"], shots=(8,))}
    with caplog.at_level(logging.WARNING):
        run(world, tmp_path, tasks=tasks)
    assert re.search(r"questions, 8 shots: .* training sequences have 64", caplog.text)


def test_a_task_may_be_asked_of_some_models_only(world, first, tmp_path):
    only = dataclasses.replace(world.config.tasks["captions"], models=("pretrain",))
    other = dataclasses.replace(only, models=("later",))
    tasks = {**world.config.tasks, "captions": only}
    assert json.dumps(run(world, tmp_path / "a", tasks=tasks)) == json.dumps(first[1])
    config = dataclasses.replace(world.config, tasks=tasks)
    models = {"pretrain": world.model, "later": world.model}
    found = evaluate(config, models, **world.inputs(), output_dir=tmp_path / "b").evaluation
    assert {name: list(entry["tasks"]) for name, entry in found["models"].items()} == {
        "pretrain": ["captions", "questions"],
        "pretrain:blind": ["captions", "questions"],
        "later": ["questions"],
        "later:blind": ["questions"],
        "frequent": ["captions", "questions"],
    }
    with pytest.raises(ValueError, match=r"tasks.captions.models: found \['later'\]"):
        run(world, tmp_path / "c", tasks={"captions": other})
    with pytest.raises(ValueError, match="tasks: found none that asks"):
        run(world, tmp_path / "d", tasks={}, text_tasks={})


def test_models_of_another_kind_are_refused(world, tmp_path, model, tokenizer):
    other = dataclasses.replace(
        model.config, connector=dataclasses.replace(model.config.connector, num_tokens=1)
    )
    save_model(build_model(other, tokenizer.image_id, seed=0), tmp_path / "model")
    with pytest.raises(ValueError, match=r"models.sft: found connector.num_tokens 1, .* have 4"):
        evaluate(
            world.config,
            {"pretrain": world.model, "sft": tmp_path / "model"},
            **world.inputs(),
            output_dir=tmp_path / "out",
        )
    with pytest.raises(ValueError, match="found the name 'frequent'"):
        evaluate(
            world.config, {"frequent": world.model}, **world.inputs(), output_dir=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_other_shards_is_refused(world, tmp_path):
    train_tokenizer(TokenizerConfig(vocab_size=290, min_frequency=1), ["other text"], tmp_path)
    inputs = {**world.inputs(), "tokenizer_dir": tmp_path}
    with pytest.raises(ValueError, match="shards were written with"):
        evaluate(world.config, {"pretrain": world.model}, **inputs, output_dir=tmp_path)


class _Killed(BaseException):
    """Stands for a process that ends, whatever it was doing."""


def test_a_killed_evaluation_goes_on_and_equals_the_whole(world, first, tmp_path, monkeypatch):
    directory, expected = first
    work, computed = tmp_path / "work", []
    append = AnswerLog.append

    def dies_after(groups):
        def append_or_die(self, answers):
            append(self, answers)
            computed.append(self)
            if len(computed) == groups:
                raise _Killed

        return append_or_die

    tries = 0
    monkeypatch.setattr(generation, "GROUP_BATCHES", 1)
    while True:
        tries += 1
        computed.clear()
        monkeypatch.setattr(AnswerLog, "append", dies_after(3))
        try:
            found = run(world, tmp_path / "out", work_dir=work)
            break
        except _Killed:
            continue
    # 2 groups of captions and 3 of questions, twice with shots, twice blind: some are equal.
    assert tries >= 5
    assert json.dumps(found) == json.dumps(expected)
    assert files_of(tmp_path / "out") == files_of(directory)

    computed.clear()
    run(world, tmp_path / "again", work_dir=work)
    assert not computed  # everything was in the log


def test_answers_of_another_precision_are_not_taken(world, tmp_path, monkeypatch):
    computed = []
    append = AnswerLog.append
    monkeypatch.setattr(
        AnswerLog, "append", lambda self, answers: computed.append(1) or append(self, answers)
    )
    run(world, tmp_path / "a", work_dir=tmp_path / "work")
    in_float32 = len(computed)
    run(world, tmp_path / "b", work_dir=tmp_path / "work", precision=Precision.BFLOAT16)
    assert len(computed) == 2 * in_float32


def test_shots_of_a_task_are_the_same_for_all_but_the_shown(world, tmp_path):
    tasks = {
        name: dataclasses.replace(task, shot_draw=ShotDraw.PER_TASK)
        for name, task in world.config.tasks.items()
    }
    run(world, tmp_path, tasks=tasks)
    rows = rows_of(tmp_path, "pretrain", "captions", 2)
    common = Counter(tuple(row["shots"]) for row in rows).most_common(1)[0][0]
    for row in rows:
        assert row["key"] not in row["shots"]
        assert tuple(row["shots"]) == common or row["key"] in common
