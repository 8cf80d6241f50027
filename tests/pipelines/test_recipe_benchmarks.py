"""The benchmarks of MM1's recipe, in their official layouts: what they hold is in no training."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from pydantic import TypeAdapter

from mm1_pipeline.config._base import with_fields
from mm1_pipeline.config.corpus_rules import DecontaminationConfig
from mm1_pipeline.config.evaluation import EvaluateConfig, MixedResolution
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.corpus.decontamination import (
    Decontaminator,
    build_index,
    index_problems,
)
from mm1_pipeline.corpus.images import look_at_image
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.evaluation.benchmarks import read_benchmarks
from mm1_pipeline.ground.rejects import Rejected
from mm1_pipeline.preflight.checks import check
from mm1_pipeline.preflight.run import Run
from recipe_benchmarks import COUNT, picture, sentence, write_benchmarks

ROOT = Path(__file__).parents[2]

TABLE_4 = {
    *("vqav2_sft", "textvqa_sft", "scienceqa_img", "mmmu_val", "mathvista", "mme_perception"),
    *("mme_cognition", "mmbench", "seed_all", "seed_image", "pope", "llava_w", "mm_vet"),
}
"""Source: MM1, Table 4; SEED has two columns."""
FEW_SHOT = {"coco", "nocaps", "textcaps", "vqav2", "textvqa", "vizwiz", "okvqa", "gqa"}
TEXTS = {
    *("arc_easy", "arc_challenge", "piqa", "lambada", "winogrande", "hellaswag", "sciq"),
    *("triviaqa", "webqs"),
}
RULES = DecontaminationConfig()
SAME_FILES = {
    "vqav2_sft": "vqav2",
    "textvqa_sft": "textvqa",
    "seed_image": "seed_all",
}
"""Tasks that ask what another asks."""


class Recipe:
    """The parameters of `mm1_3b` with its raw data below a folder, and the index of its files."""

    def __init__(self, folder: Path) -> None:
        bootstrap_project(ROOT)
        conf = folder / "conf"
        conf.mkdir()
        for name in ("base", "local"):
            (conf / name).symlink_to(ROOT / "conf" / name)
        shutil.copytree(ROOT / "conf" / "mm1_3b", conf / "mm1_3b")
        file = conf / "mm1_3b" / "globals.yml"
        file.write_text(file.read_text().replace("data/mm1_raw", str(folder / "raw")))
        session = KedroSession.create(ROOT, env="mm1_3b", conf_source=str(conf))
        self.params = session.load_context().params
        self.evaluate: EvaluateConfig = self.params["evaluate"]
        self.told_before = self.told(self.evaluate)
        write_benchmarks(self.evaluate)
        self.index = folder / "index"
        self.index.mkdir()
        self.summary = make_index(self.evaluate, self.index)

    def told(
        self, evaluate: EvaluateConfig, rules: DecontaminationConfig = RULES, **more: Any
    ) -> list[str]:
        """What the preflight of the index alone says."""
        nodes = frozenset(more.pop("nodes", {"index_evaluation"}))
        sources = with_fields(self.params["ingest"], decontamination=rules)
        groups = {"ingest": sources, "evaluate": evaluate, **more}
        return [mistake.text for mistake in check(Run(nodes, groups))]


def make_index(evaluate: EvaluateConfig, folder: Path, **rules: Any) -> dict[str, Any]:
    config = dataclasses.replace(RULES, **rules)
    benchmarks = evaluate.benchmarks(config.compares_with)
    return build_index(read_benchmarks(evaluate.benchmark_part(), benchmarks), config, folder)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    return Recipe(tmp_path_factory.mktemp("recipe"))


def is_kept_out(index: Decontaminator, name: str, number: int) -> tuple[bool, bool]:
    """Whether an item's picture is refused, and whether its text in a longer one is."""
    found = []
    for look in (
        lambda: index.check_image(look_at_image(picture(name, number))[2]),
        lambda: index.check_text(f"Once upon a time {sentence(name, number)}, and so on."),
    ):
        try:
            look()
            found.append(False)
        except Rejected:
            found.append(True)
    return found[0], found[1]


def test_the_recipe_asks_what_the_paper_asks(recipe):
    assert recipe.evaluate.tasks.keys() == TABLE_4 | FEW_SHOT
    assert recipe.evaluate.text_tasks.keys() == TEXTS
    for name, task in recipe.evaluate.tasks.items():
        assert task.models == (("sft",) if name in TABLE_4 else ()), name
        assert task.paper_table == ("sft" if name in TABLE_4 else "pretrain") or name == "gqa"


def test_files_have_their_official_names(recipe):
    tasks = {**recipe.evaluate.tasks, **recipe.evaluate.text_tasks}
    for name, task in tasks.items():
        for path in (*(task.files or {}).values(), *(task.shot_files or {}).values()):
            assert path.count("/raw/eval/") == 1, (name, path)
    (file,) = tasks["mmbench"].files.values()
    assert Path(file).name == "MMBench_DEV_EN.tsv"


def test_missing_files_are_told_in_one_list_before_the_run(recipe):
    places = {
        f"{group}.{name}.{field}.{role}"
        for group, tasks in (
            ("evaluate.tasks", recipe.evaluate.tasks),
            ("evaluate.text_tasks", recipe.evaluate.text_tasks),
        )
        for name, task in tasks.items()
        for field in ("files", "shot_files")
        for role in getattr(task, field) or {}
    }
    assert {text.partition(": found nothing at ")[0] for text in recipe.told_before} == places
    assert recipe.told(recipe.evaluate) == []


@pytest.mark.parametrize("name", sorted(TABLE_4 | FEW_SHOT | TEXTS))
def test_every_layout_is_kept_out_of_training(recipe, name: str):
    counts = recipe.summary["benchmarks"][name]
    assert counts["failed"] == 0
    num_items = COUNT - (name == "seed_image")  # one of SEED's is a video
    assert counts["records"] >= num_items
    index, with_shots = Decontaminator(recipe.index, with_shots=False), Decontaminator(recipe.index)
    owner = SAME_FILES.get(name, name)
    for number in range(num_items):
        if name == "pope":
            assert is_kept_out(index, owner, number)[0]
        elif name in TEXTS:
            assert is_kept_out(index, owner, number)[1]
        else:
            assert is_kept_out(index, owner, number) == (True, True)
    if "shots" in counts:
        assert counts["shots"]["images"] == counts["shots"]["records"] == COUNT
        shown = [is_kept_out(with_shots, f"{name}-shots", number) for number in range(COUNT)]
        assert shown == [(True, True)] * COUNT
        asked = [is_kept_out(index, f"{name}-shots", number) for number in range(COUNT)]
        assert asked == [(False, False)] * COUNT
    if name in TABLE_4 | FEW_SHOT:
        assert counts["images"] == num_items
    assert is_kept_out(with_shots, "another", 0) == (False, False)


def test_planted_records_are_removed_and_counted(recipe, tmp_path):
    rows = [
        (picture("mmbench", 1), "a picture of a benchmark"),
        (picture("own", 1), f"they said that {sentence('hellaswag', 2)}, which is long"),
        (picture("vqav2-shots", 0), "a picture that is shown with its answer"),
        (picture("own", 2), "one that is ours"),
    ]
    types = {"image": pa.binary(), "caption": pa.string()}
    columns = dict(zip(types, zip(*rows, strict=True), strict=True))
    arrays = {name: pa.array(columns[name], kind) for name, kind in types.items()}
    pq.write_table(pa.table(arrays), tmp_path / "pairs.parquet")
    source = {
        "format": "image_parquet",
        "path": str(tmp_path / "pairs.parquet"),
        "captions": {"defaults": False},
    }
    sources = {
        "pairs": {**source, "kind": "caption"},
        "chat": {
            **source,
            "kind": "conversation",
            "captions": {},
        },
    }
    config = TypeAdapter(IngestConfig).validate_python({"sources": sources})
    report = ingest(config, tmp_path / "out", evaluation_index=recipe.index)
    assert report["decontamination"]["benchmarks"] == recipe.summary["benchmarks"]
    assert report["decontamination"]["rejected"] == {
        "chat": {"contaminated_image": 1, "contaminated_text": 1},  # it may learn what is shown
        "pairs": {"contaminated_image": 2, "contaminated_text": 1},
    }
    assert {name: found["kept"] for name, found in report["sources"].items()} == {
        "pairs": 1, "chat": 2,
    }  # fmt: skip


def test_a_benchmark_can_be_left_out(recipe, tmp_path):
    summary = make_index(recipe.evaluate, tmp_path, benchmarks={"mmbench": False, "piqa": False})
    assert recipe.summary["benchmarks"].keys() - summary["benchmarks"].keys() == {"mmbench", "piqa"}
    assert is_kept_out(Decontaminator(tmp_path), "mmbench", 0) == (False, False)
    told = recipe.told(recipe.evaluate, dataclasses.replace(RULES, benchmarks={"mmbensh": False}))
    (text,) = told
    assert text.startswith("ingest.decontamination.benchmarks: found 'mmbensh', expected one of")
    assert "Did you mean 'mmbench'?" in text


def test_nothing_to_compare_with_is_an_error(recipe, tmp_path):
    none = dataclasses.replace(recipe.evaluate, tasks={}, text_tasks={})
    summary = make_index(none, tmp_path)
    (text,) = index_problems(summary, RULES, {})
    assert "found nothing to compare training data with (0 images and 0 texts of 0 records)" in text
    assert "set it to false" in text
    assert index_problems(summary, dataclasses.replace(RULES, required=False), {}) == []
    off = dataclasses.replace(RULES, images=False, texts=False)
    assert index_problems(summary, off, {}) == []
    (told,) = recipe.told(none)
    assert told.startswith("ingest.decontamination.required: found true, but neither")
    assert recipe.told(none, dataclasses.replace(RULES, required=False)) == []


def test_a_benchmark_without_its_pictures_is_an_error(recipe, tmp_path):
    """Its questions are read, but nothing is at the place of its images."""
    task = recipe.evaluate.tasks["mathvista"]
    files = {**(task.files or {}), "images": str(tmp_path)}
    tasks = {"mathvista": dataclasses.replace(task, files=files)}
    evaluate = dataclasses.replace(recipe.evaluate, tasks=tasks, text_tasks={})
    folder = tmp_path / "index"
    folder.mkdir()
    summary = make_index(evaluate, folder)
    counts = summary["benchmarks"]["mathvista"]
    assert (counts["images"], counts["failed"]) == (0, COUNT)
    (text,) = index_problems(summary, RULES, evaluate.benchmarks(RULES.compares_with))
    assert text.startswith("evaluate.tasks.mathvista.files: found 0 images")
    assert "ingest.decontamination.benchmarks.mathvista to false" in text


def test_only_what_is_read_counts(recipe):
    """Nothing of how a benchmark is asked is in what the index depends on."""
    whole, task = recipe.evaluate, recipe.evaluate.tasks["coco"]

    def part(**changes: Any) -> EvaluateConfig:
        tasks = {**whole.tasks, "coco": dataclasses.replace(task, **changes)}
        return dataclasses.replace(whole, tasks=tasks).benchmark_part()

    same = whole.benchmark_part()
    for changes in (
        {"shots": (0, 2)}, {"max_items": 50}, {"stop": (".",)}, {"max_new_tokens": 9},
        {"prompt": "{image} Here:"}, {"models": ("sft",)}, {"resolution": None},
    ):  # fmt: skip
        assert part(**changes) == same, changes
    assert part(subset="val") != same
    assert part(shot_files=None) != same
    parts = recipe.params["ingest"].pretraining_part()
    left_out = dataclasses.replace(RULES, benchmarks={"coco": False}, required=False)
    others = with_fields(recipe.params["ingest"], decontamination=left_out)
    assert others.pretraining_part() == parts
    assert others.index_part() != recipe.params["ingest"].index_part()


def test_the_recipe_can_be_evaluated(recipe):
    """As far as that shows before a run, with every task's files here."""
    more = {name: recipe.params[name] for name in ("shard", "sft_shard", "model")}
    for nodes in ("evaluate_models", "evaluate_pretrained", "evaluate_fine_tuned"):
        assert recipe.told(recipe.evaluate, nodes={nodes, "index_evaluation"}, **more) == []


def test_prompts_fit_what_the_model_was_trained_on(recipe):
    more = {name: recipe.params[name] for name in ("shard", "sft_shard")}

    def told(**tasks: Any) -> list[str]:
        changed = {
            name: dataclasses.replace(recipe.evaluate.tasks[name], resolution=resolution)
            for name, resolution in tasks.items()
        }
        evaluate = dataclasses.replace(recipe.evaluate, tasks={**recipe.evaluate.tasks, **changed})
        found = recipe.told(evaluate, nodes={"evaluate_models"}, **more)
        return [text for text in found if "trained on" in text]

    assert told() == []
    (text,) = told(coco=None)
    # Nine images of 720 positions, the first token, and an answer of 30.
    assert text.startswith("evaluate.tasks.coco.shots: found 8 shots and a query that take 6,511")
    assert "of sft (9 x 720 = 6,480 of images, and an answer of 30)" in text
    assert "expected at most 4,096, the longest sequence it is trained on" in text
    (text,) = told(mmmu_val=None)
    assert text.startswith("evaluate.tasks.mmmu_val.resolution: found 0 shots and a query")
    assert "take 5,297 positions or more of sft (7 x 720 = 5,040 of images" in text
    (text,) = told(mmmu_val=MixedResolution(max_high_images=6))
    assert "4,577 positions" in text
    assert "(6 x 720 = 4,320" in text
    allowed = dataclasses.replace(
        recipe.evaluate,
        tasks={"coco": dataclasses.replace(recipe.evaluate.tasks["coco"], resolution=None)},
        beyond_training=True,
    )
    assert recipe.told(allowed, nodes={"evaluate_models"}, **more) == []
