"""Arms: their parameters, and the verdicts that come of their results."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from mm1_pipeline.config.lab import AblateConfig, Expectation, GridConfig, LessonConfig, LrLawConfig
from mm1_pipeline.config.training import MixtureConfig, StreamMixture, TrainingConfig
from mm1_pipeline.ground.files import read_json, write_json
from mm1_pipeline.lab import grid
from mm1_pipeline.lab.grid import apply_overrides, learning_rate_grid, resolve_arms
from mm1_pipeline.lab.lessons import judge_lessons, read_runs
from mm1_pipeline.lab.lr_law import fit_law
from typed_values import entry

ROOT = Path(__file__).parents[3]
STREAMS = {
    "caption": StreamMixture(share=0.5, sources={"a": 1.0}),
    "text": StreamMixture(share=0.5, sources={"t": 1.0}),
}
PARAMETERS = {"pretrain": TrainingConfig(mixture=MixtureConfig(streams=STREAMS))}
CAPTIONS = {
    "pretrain.mixture.streams.text": None,
    "pretrain.mixture.streams.caption.share": 1.0,
}
GRID = GridConfig(arms={"mix": {}, "captions": CAPTIONS}, seeds=(3, 4, 5))


class TestOverrides:
    def test_the_last_part_of_a_path_may_be_new_and_nothing_else_is_touched(self):
        before = {"a": {"b": {"c": 1}, "d": 2}}
        assert apply_overrides(before, {"a.b.c": 5, "a.b.e": {"f": 1}}) == {
            "a": {"b": {"c": 5, "e": {"f": 1}}, "d": 2}
        }
        assert before == {"a": {"b": {"c": 1}, "d": 2}}

    @pytest.mark.parametrize("path", ["b.c", "a.x.y", "a.d.e", "a"])
    def test_a_path_that_leads_nowhere_is_refused(self, path):
        with pytest.raises(ValueError, match=f"overrides: found '{path}'"):
            apply_overrides({"a": {"b": {"c": 1}, "d": 2}}, {path: 1})


class TestArms:
    def test_every_arm_has_every_seed(self):
        runs = resolve_arms(GRID, PARAMETERS)
        assert [run.name for run in runs] == [
            f"{arm}/seed{seed}" for seed in (3, 4, 5) for arm in ("mix", "captions")
        ]
        assert [run.parameters["pretrain"]["seed"] for run in runs] == [3, 3, 4, 4, 5, 5]
        assert runs[1].parameters["pretrain"]["mixture"]["streams"]["text"] is None
        assert runs[0].parameters["pretrain"]["mixture"]["streams"]["text"]["share"] == 0.5

    def test_an_arm_with_a_bad_value_is_refused_before_anything_runs(self):
        bad = GridConfig(arms={"mix": {}, "bad": {"pretrain.mixture.streams.text": None}})
        with pytest.raises(ValueError, match=r"arms\.bad: pretrain\.mixture.*that sum to 1"):
            resolve_arms(bad, PARAMETERS)

    def test_a_part_of_a_grid_can_be_chosen(self):
        some = entry(GridConfig, arms=GRID.arms, seeds=GRID.seeds, only="captions", max_seeds=1)
        assert [run.name for run in resolve_arms(some, PARAMETERS)] == ["captions/seed3"]
        with pytest.raises(ValueError, match="only: found other"):
            GridConfig(arms=GRID.arms, only="mix other")

    def test_an_arm_may_have_a_goal_of_its_own(self):
        some = entry(GridConfig, arms=GRID.arms, seeds=(3,), goals={"captions": "evaluate_sft"})
        goals = {run.arm: run.goal.value for run in resolve_arms(some, PARAMETERS)}
        assert goals == {"mix": "evaluate_pretrain", "captions": "evaluate_sft"}
        with pytest.raises(ValueError, match="goals: found other"):
            entry(GridConfig, arms=GRID.arms, goals={"other": "evaluate"})

    def test_the_written_configuration_is_the_arm_s(self, tmp_path):
        (run,) = resolve_arms(GridConfig(arms={"c": CAPTIONS}, seeds=(3,)), PARAMETERS)
        grid.write_conf(run, ROOT, tmp_path / "data", tmp_path / "conf")
        groups: dict = {}
        for path in (tmp_path / "conf" / "base").glob("parameters*.yml"):
            found = yaml.safe_load(path.read_text()) or {}
            assert not groups.keys() & found.keys()
            groups |= found
        assert groups["pretrain"] == run.parameters["pretrain"]
        assert {"ingest", "model", "evaluate", "ablate"} <= groups.keys()
        content = yaml.safe_load((tmp_path / "conf" / "arm" / "globals.yml").read_text())
        assert content == {"data_root": str(tmp_path / "data")}


def config(**changes) -> AblateConfig:
    lessons = {
        "few_shot": LessonConfig(title="", first="mix", second="captions", scores={"vqa": (4,)}),
        "text": LessonConfig(title="", first="mix", second="captions", held_out="text"),
        "zero_shot": LessonConfig(
            title="", first="mix", second="captions", scores={"vqa": (0,)},
            expected=Expectation.EQUAL, margin=5.0,
        ),
        "wrong": LessonConfig(
            title="", first="captions", second="mix", scores={"vqa": (4,)}, paper="+3"
        ),
    }  # fmt: skip
    return AblateConfig(**{"grid": GRID, "lessons": lessons, **changes})


def write_results(folder: Path, name: str) -> None:
    """Scores of 30 items, 10 points higher for the mix with shots; its text loss is lower."""
    arm, seed = name.split("/seed")
    rng = np.random.default_rng(int(seed) + 100 * len(arm))
    folder.mkdir(parents=True)
    keys, scores = [f"item {number}" for number in range(30)], {}
    for shots in (0, 4):
        gain = 10 if arm == "mix" and shots else 0
        values = [50 + gain + number + rng.normal(0, 2) for number in range(30)]
        scores[f"vqa_{shots}shot"] = {"keys": keys, "scores": values}
    write_json(folder / "scores.json.gz", {"pretrain": scores})
    loss = (1.0 if arm == "mix" else 2.0) + rng.normal(0, 0.01)
    losses = {"models": {"pretrain": {"streams": {"text": {"loss": loss}}}}}
    write_json(folder / "held_out_loss.json", losses)
    tasks = {"vqa": {"shots": {"0": {"value": 1.0}, "4": {"value": 2.0}}}}
    stage = {"schedule": {"num_steps": 10}, "global_batch_size": 4}
    parameters = {"pretrain": stage, "shard": {"packing": {"sequence_length": 64}}}
    write_json(folder / "parameters.json.gz", parameters)
    write_json(folder / "evaluation.json", {"models": {"pretrain": {"tasks": tasks}}})


@pytest.fixture
def results(tmp_path):
    """Of every run of the grid."""
    for run in resolve_arms(GRID, PARAMETERS):
        write_results(tmp_path / run.name, run.name)
    return tmp_path


class TestLessons:
    def test_verdicts(self, results):
        found = judge_lessons(config(), results)
        verdicts = {name: lesson["verdict"] for name, lesson in found["lessons"].items()}
        assert verdicts == {
            "few_shot": "shown",
            "text": "shown",
            "zero_shot": "shown",
            "wrong": "contradicted",
        }
        few_shot = found["lessons"]["few_shot"]
        assert few_shot["delta"] == pytest.approx(10, abs=1)
        assert few_shot["interval"][0] < 10 < few_shot["interval"][1]
        assert (few_shot["seeds"], few_shot["items"]) == (3, 30)
        assert list(few_shot["per_seed"]) == ["3", "4", "5"]
        assert np.mean(list(few_shot["per_seed"].values())) == pytest.approx(few_shot["delta"])
        assert found["arms"]["mix"]["positions"] == 10 * 4 * 64
        assert found["lessons"]["wrong"]["paper"] == "+3"
        assert found["arms"]["mix"]["scores"] == {"pretrain": {"vqa": {"0": 1.0, "4": 2.0}}}
        json.dumps(found, allow_nan=False)

    def test_an_arm_may_have_fewer_seeds(self, results):
        part = dataclasses.replace(GRID, num_seeds={"captions": 2})
        names = [run.name for run in resolve_arms(part, PARAMETERS)]
        assert "mix/seed5" in names
        assert "captions/seed5" not in names
        shutil.rmtree(results / "captions" / "seed5")
        found = judge_lessons(config(grid=part), results)
        assert list(found["lessons"]["few_shot"]["per_seed"]) == ["3", "4"]
        assert found["lessons"]["few_shot"]["seeds"] == 2
        assert found["arms"]["mix"]["seeds"] == [3, 4, 5]
        assert found["arms"]["captions"]["seeds"] == [3, 4]

    def test_the_usual_number_of_seeds_is_for_all_arms_without_one_of_their_own(self):
        part = dataclasses.replace(GRID, usual_num_seeds=1, num_seeds={"captions": 2})
        assert part.seeds_of("mix") == (3,)
        assert part.seeds_of("captions") == (3, 4)
        assert part.seeds_of("mix", "captions") == (3,)
        assert dataclasses.replace(part, max_seeds=1).seeds_of("captions") == (3,)
        with pytest.raises(ValueError, match="usual_num_seeds: found 0"):
            dataclasses.replace(GRID, usual_num_seeds=0)

    @pytest.mark.parametrize(
        ("number", "says"),
        [
            ({"other": 2}, "num_seeds: found other"),
            ({"mix": 0}, r"num_seeds\.mix\n.*found 0, expected at least 1"),
        ],
    )
    def test_seeds_of_an_arm_are_checked(self, number, says):
        with pytest.raises(ValueError, match=says):
            dataclasses.replace(GRID, num_seeds=number)

    def test_lessons_of_arms_that_are_not_run_are_left_out(self):
        part = GridConfig(arms={**GRID.arms, "other": {}}, only="mix captions")
        lessons = {
            **config().lessons,
            "third": LessonConfig(title="", first="other", second="mix", held_out="text"),
        }
        assert list(config(grid=part, lessons=lessons).chosen_lessons) == list(config().lessons)

    def test_what_was_not_asked_is_named(self, results):
        lesson = LessonConfig(title="", first="mix", second="captions", scores={"vqa": (8,)})
        with pytest.raises(ValueError, match=r"no scores of 'vqa' with 8 shots"):
            judge_lessons(config(lessons={"x": lesson}), results)
        lesson = LessonConfig(title="", first="mix", second="captions", held_out="caption")
        with pytest.raises(ValueError, match=r"held_out: found 'caption'.*text"):
            judge_lessons(config(lessons={"x": lesson}), results)

    def test_one_arm_may_be_compared_with_itself_asked_otherwise(self, results):
        shots = LessonConfig(
            title="", first="mix", second="mix", scores={"vqa": (4,)}, second_scores={"vqa": (0,)}
        )
        lesson = judge_lessons(config(lessons={"x": shots}), results)["lessons"]["x"]
        assert lesson["delta"] == pytest.approx(10, abs=1)
        assert lesson["measure"] == "vqa 4-shot beside vqa 0-shot"
        assert (lesson["verdict"], lesson["items"]) == ("shown", 30)
        with pytest.raises(ValueError, match="second: found 'mix', which is also the first arm"):
            LessonConfig(title="", first="mix", second="mix", scores={"vqa": (4,)})
        with pytest.raises(ValueError, match="second_scores: found"):
            LessonConfig(
                title="", first="mix", second="captions", scores={"vqa": (4,)},
                second_scores={"vqa": (0, 4)},
            )  # fmt: skip

    def test_a_lesson_may_count_another_model(self, results):
        lesson = LessonConfig(
            title="", first="mix", second="captions", scores={"vqa": (4,)}, model="sft"
        )
        with pytest.raises(ValueError, match=r"no scores of 'sft', only of pretrain"):
            judge_lessons(config(lessons={"x": lesson}), results)
        for folder in results.glob("*/seed*"):
            scores = read_json(folder / "scores.json.gz")
            write_json(folder / "scores.json.gz", {"sft": scores["pretrain"]})
        found = judge_lessons(config(lessons={"x": lesson}), results)["lessons"]["x"]
        assert (found["verdict"], found["model"]) == ("shown", "sft")

    def test_a_lesson_of_an_unknown_arm_is_refused(self):
        lesson = LessonConfig(title="", first="mix", second="other", held_out="text")
        with pytest.raises(ValueError, match=r"lessons\.x\.second: found 'other'"):
            config(lessons={"x": lesson})


def test_a_learning_rate_grid_gives_the_law_its_runs(tmp_path):
    sizes = {
        name: {"model.decoder.d_model": width}
        for name, width in (("s", 64), ("m", 128), ("l", 256))
    }
    law = LrLawConfig(sizes=sizes, learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2), seeds=(0, 1))
    arms = learning_rate_grid(law)
    assert len(arms.arms) == 15
    for name, overrides in arms.arms.items():
        width = overrides["model.decoder.d_model"]
        rate = overrides["pretrain.optimizer.learning_rate"]
        decoder = {
            "vocab_size": 300, "d_model": width, "num_layers": 2, "num_heads": 2,
            "num_kv_heads": 2, "d_ff": 2 * width,
        }  # fmt: skip
        for seed in (0, 1):
            folder = tmp_path / name / f"seed{seed}"
            folder.mkdir(parents=True)
            parameters = {
                "model": {"decoder": decoder},
                "pretrain": {"optimizer": {"learning_rate": rate}},
            }
            write_json(folder / "parameters.json.gz", parameters)
            loss = 2 + 0.1 * np.log(4 * width * rate) ** 2  # best at 1 / 4 width
            streams = {"text": {"loss": loss + 0.5}, "caption": {"loss": loss - 0.5}}
            held_out = {"models": {"pretrain": {"streams": streams}}}
            (folder / "held_out_loss.json").write_text(json.dumps(held_out))
    runs = read_runs(law, arms, tmp_path)
    assert len(runs) == 30
    fit = fit_law(law.fit, runs)
    for size, width in zip(fit.sizes, (64, 128, 256), strict=True):
        assert size.best == pytest.approx(1 / (4 * width))
    assert fit.slope == pytest.approx(-0.5, abs=0.01)  # N grows with the square of the width
