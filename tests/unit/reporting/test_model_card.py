"""The card of a model says what its run recorded, and nothing else."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from mm1_pipeline.config.export import Layout
from mm1_pipeline.reporting import model_card
from mm1_pipeline.reporting.model_card import read_card, readme, write_readme

PARAMETERS = {
    "sft.mixture.streams.(order)": '["a","b"]',
    "sft.mixture.streams.a.share": "0.75",
    "sft.mixture.streams.a.sources.pets": "1.0",
    "sft.mixture.streams.a.sources.cars": "2.0",
    "sft.mixture.streams.b.share": "0.25",
    "sft.mixture.streams.b.sources.signs": "1.0",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    folder = tmp_path / "06_models" / "sft" / "abc"
    folder.mkdir(parents=True)
    save_file({"decoder.w": torch.zeros(30, 50)}, folder / "model.safetensors")
    config = {"model": {"vision": {"image_size": 64}, "connector": {}, "decoder": {}}}
    (folder / "config.json").write_text(json.dumps(config))
    origin = {
        "node": "fine_tune", "environment": "mine", "commit_sha": "abc123", "dirty": True,
        "parameters": PARAMETERS,
    }  # fmt: skip
    manifest = {"digest": "d1", "counts": {"steps": 7}, "provenance": origin}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    reports = tmp_path / "08_reporting"
    reports.mkdir()
    (reports / "ingest_report.json").write_text(json.dumps({"sources": {"cars": {"kept": 1234}}}))
    task = {"metric": "cider", "shots": {"0": {"value": 12.34, "stderr": 1.26, "n": 9}}}
    blind = {"metric": "cider", "shots": {"0": {"value": 3.0, "stderr": 0.5, "n": 9}}}
    models = {"sft": {"tasks": {"pets": task}}, "sft:blind": {"tasks": {"pets": blind}}}
    (reports / "evaluation.json").write_text(json.dumps({"models": models}))

    def evaluated(digest):
        made_of = {"provenance": {"inputs": {"sft_model": digest}}}
        predictions = type("Artifact", (), {"manifest": made_of})()
        is_predictions = lambda root: predictions if root.name == "predictions" else None  # noqa: E731
        monkeypatch.setattr(model_card, "current", is_predictions)

    evaluated("d1")
    return folder, tmp_path, evaluated


def test_facts_are_those_of_the_run(run):
    folder, root, _ = run
    card = read_card(folder, None, root, {"cars": "CC0", "pets": None})
    assert (card.stage, card.num_parameters, card.steps, card.image_size) == ("sft", 1500, 7, 64)
    shares = {source.name: (round(source.share, 6), source.records) for source in card.sources}
    assert shares == {"cars": (0.5, 1234), "pets": (0.25, None), "signs": (0.25, None)}
    text = readme(card, Layout.OWN)
    assert "cars: 50.0% of the sequences, 1,234 records, CC0" in text
    assert "not stated (`ingest.sources.<name>.licence`): pets, signs" in text
    assert "| pets | cider | 0 | 12.3 ± 1.3 (9 items) | 3.0 |" in text
    assert "commit: abc123 with changes" in text
    assert "trust_remote_code=True" in text
    assert "LlavaForConditionalGeneration" in readme(card, Layout.LLAVA)


def test_scores_of_another_model_are_left_out(run):
    folder, root, evaluated = run
    evaluated("another")
    card = read_card(folder, None, root)
    assert card.scores == ()
    assert "No evaluation of this model" in readme(card, Layout.OWN)


def test_what_no_stage_made_has_no_card(run, tmp_path):
    assert read_card(tmp_path, None, tmp_path) is None


def test_the_card_of_an_export_is_a_readme(run, tmp_path):
    folder, root, _ = run
    card = dataclasses.replace(read_card(folder, None, root), sources=())
    write_readme(card, Layout.OWN, tmp_path)
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: transformers\n")
