"""Log-likelihoods of many continuations at once equal those computed one by one."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from mm1_pipeline.config.text_tasks import TextTaskConfig
from mm1_pipeline.evaluation.evaluate import evaluate
from mm1_pipeline.evaluation.generation import likelihood
from mm1_pipeline.evaluation.generation.answer_log import AnswerLog
from mm1_pipeline.evaluation.generation.likelihood import encode_pair, log_likelihoods
from typed_values import entry

PAIRS = [
    ("Question: what is the red shape? Short answer:", " red"),
    ("Question: what is the red shape? Short answer:", " blue and green"),
    ("A photo of a  ", "square"),
    ("", "a"),
    ("the green shape", " is yellow."),
    (" Question:" * 9, " what is the blue shape?"),
]


def one_by_one(model, tokenizer, context, continuation) -> tuple[float, bool]:
    """Token by token over the cache, without packing."""
    before, after = encode_pair(context, continuation, tokenizer)
    ids = torch.tensor([[tokenizer.bos_id, *before, *after]])
    cache = model.make_cache(1, ids.shape[1])
    positions = torch.arange(ids.shape[1])[None]
    hidden = model.forward_cached(model.decoder.embedding(ids), positions, cache)
    logits = model.logits(hidden)[0, len(before) : -1].double()
    targets = torch.tensor(after)
    logs = logits.log_softmax(-1)[torch.arange(len(after)), targets]
    return float(logs.sum()), bool((logits.argmax(-1) == targets).all())


@torch.inference_mode()
@pytest.mark.parametrize("max_positions", [1, 60, 8192])
def test_packed_equals_one_by_one(model, tokenizer, max_positions):
    found = log_likelihoods(model, tokenizer, PAIRS, max_positions=max_positions)
    for pair, scored in zip(PAIRS, found, strict=True):
        expected, is_greedy = one_by_one(model, tokenizer, *pair)
        # Worst difference measured: 9.2e-6 of -142.8.
        assert scored.log_likelihood == pytest.approx(expected, abs=1e-4)
        assert scored.is_greedy == is_greedy
    assert len({round(scored.log_likelihood, 3) for scored in found}) == len(PAIRS)


@torch.inference_mode()
def test_what_greedy_decoding_writes_is_greedy(model, tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("A photo")]
    for _ in range(4):
        positions = torch.arange(len(ids))[None]
        cache = model.make_cache(1, len(ids))
        hidden = model.forward_cached(
            model.decoder.embedding(torch.tensor([ids])), positions, cache
        )
        ids.append(int(model.logits(hidden)[0, -1].argmax()))
    written = tokenizer.decode(ids[1 + len(tokenizer.encode("A photo")) :])
    whole = tokenizer.encode("A photo" + written)
    if [tokenizer.bos_id, *whole] == ids:  # only then do text and tokens mean the same
        assert log_likelihoods(model, tokenizer, [("A photo", written)])[0].is_greedy
    assert not all(x.is_greedy for x in log_likelihoods(model, tokenizer, PAIRS))


def test_text_tasks_stand_beside_the_others_and_add_nothing_to_them(world, tmp_path):
    rows = [
        {"qID": str(n), "sentence": f"The red shape {n} is _ here.", "option1": "red"}
        | {"option2": "blue", "answer": "12"[n % 2]}
        for n in range(6)
    ]
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trivia = {
        "Data": [
            {"QuestionId": str(n), "Question": f"what is {n}", "Answer": {"Aliases": ["red"]}}
            for n in range(4)
        ]
    }
    (tmp_path / "trivia.json").write_text(json.dumps(trivia))
    files = {"questions": str(path)}
    text_tasks = {
        "winogrande": entry(TextTaskConfig, task="winogrande", files=files, shots=(0, 2)),
        "triviaqa": entry(
            TextTaskConfig,
            task="triviaqa",
            files={"questions": str(tmp_path / "trivia.json")},
            max_new_tokens=4,
        ),
    }
    config = dataclasses.replace(world.config, text_tasks=text_tasks)
    models = {"pretrain": world.model}
    with_text = evaluate(config, models, **world.inputs(), output_dir=tmp_path / "a").evaluation
    without = evaluate(world.config, models, **world.inputs(), output_dir=tmp_path / "b").evaluation
    tasks = with_text["models"]["pretrain"]["tasks"]
    assert list(tasks["winogrande"]["shots"]) == ["0", "2"]
    assert tasks["winogrande"]["metric"] == "acc"
    assert tasks["triviaqa"]["shots"]["0"]["n"] == 4
    written = (tmp_path / "a" / "pretrain" / "winogrande_2shot.jsonl").read_text().splitlines()
    assert len(json.loads(written[0])["log_likelihoods"]) == 2
    for name in text_tasks:
        del tasks[name]
    assert with_text == without


@torch.inference_mode()
def test_a_killed_run_goes_on_and_equals_the_whole(model, tokenizer, tmp_path, monkeypatch):
    def scored(log_path):
        log = None if log_path is None else AnswerLog(log_path, {"model": "tiny"})
        return log_likelihoods(model, tokenizer, [*PAIRS, *PAIRS], max_positions=60, log=log)

    whole = scored(None)
    path = tmp_path / "log.jsonl"
    assert scored(path) == whole
    lines = path.read_bytes().splitlines(keepends=True)
    computed = []
    compute = likelihood._score
    monkeypatch.setattr(
        likelihood, "_score", lambda m, batch: computed.append(len(batch)) or compute(m, batch)
    )
    assert scored(path) == whole
    assert computed == []
    for kept in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:10])
        computed.clear()
        assert scored(path) == whole
        assert 0 < sum(computed) <= 2 * len(PAIRS)
