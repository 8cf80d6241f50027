"""Environments of people's own data: what `new-env` writes, and how an environment takes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro_rerun.errors import StalenessError
from pydantic import TypeAdapter

from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.corpus.readers.base import RawRecord, Source
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source
from mm1_pipeline.corpus.steps import count_passed_over
from mm1_pipeline.environments import EnvironmentLoader, write_environment
from mm1_pipeline.settings import CONFIG_LOADER_ARGS
from source_samples import Writer

ROOT = Path(__file__).parents[2]


def merge(base, environment):
    return EnvironmentLoader._soft_merge(base, environment)


def test_a_star_takes_out_what_base_has_there_and_nothing_else():
    base = {"a": {"x": 1, "y": {"p": 1, "q": 2}}, "b": {"x": 1}}
    assert merge(base, {"a": {"y": {"p": 3}}}) == {"a": {"x": 1, "y": {"p": 3, "q": 2}},
        "b": {"x": 1}}  # fmt: skip
    assert merge(base, {"a": {"*": None, "y": {"p": 3}}})["a"] == {"y": {"p": 3, "q": 2}}
    assert merge(base, {"a": {"*": None, "y": {"*": None, "r": 3}}})["a"] == {"y": {"r": 3}}
    assert merge(base, {"a": {"y": {"*": None}}})["a"] == {"x": 1, "y": {}}
    assert merge({}, {"a": {"*": None, "z": 1}}) == {"a": {"z": 1}}
    assert merge(base, {"a": {"*": 5}})["a"]["*"] == 5  # No null: a name, which is refused later.


@pytest.fixture
def conf(tmp_path):
    """The project's configuration by links, so that an environment more costs nothing."""
    bootstrap_project(ROOT)
    (tmp_path / "conf").mkdir()
    for name in ("base", "local"):
        (tmp_path / "conf" / name).mkdir()
        for file in (ROOT / "conf" / name).glob("*.yml"):
            (tmp_path / "conf" / name / file.name).symlink_to(file)
    return tmp_path / "conf"


def parameters(conf: Path, name: str):
    return EnvironmentLoader(str(conf), env=name, **CONFIG_LOADER_ARGS)["parameters"]


def test_an_environment_has_the_users_sources_and_none_of_the_samples(tmp_path, conf):
    from mm1_pipeline.pipeline_registry import register_pipelines
    from mm1_pipeline.preflight.checks import check
    from mm1_pipeline.preflight.run import Run

    Writer(tmp_path / "raw" / "pictures").image_csv("captions.csv", [f"{n}" for n in range(40)])
    Writer(tmp_path / "raw" / "notes").jsonl("notes.jsonl", ["a", "b"])
    Writer(tmp_path / "raw" / "val").image_csv("captions.csv", ["a", "b", "c"])
    lines = write_environment("mine", tmp_path / "raw", conf)
    assert any("pictures: 40 records, caption, format image_csv" in line for line in lines)
    found = parameters(conf, "mine")
    assert set(found["ingest"]["sources"]) == {
        "pictures", "pictures_answers", "eval_pictures", "notes", "eval_val",
    }  # fmt: skip
    streams = found["pretrain"]["mixture"]["streams"]
    assert {name: (s["share"], s["sources"]) for name, s in streams.items()} == {
        "caption": (0.9, {"pictures": 1.0}), "text": (0.1, {"notes": 1.0}),
    }  # fmt: skip
    assert found["sft"]["mixture"]["streams"] == {
        "own": {"share": 1.0, "sources": {"pictures_answers": 1.0}}
    }
    assert set(found["evaluate"]["tasks"]) == {"pictures_captions", "eval_val_captions"}
    assert yaml.safe_load((conf / "mine" / "globals.yml").read_text())["data_root"] == "data/mine"
    context = KedroSession.create(ROOT, env="mine", conf_source=str(conf)).load_context()
    nodes = register_pipelines()["__default__"].nodes
    groups = {name: value for name, value in context.params.items() if not isinstance(value, dict)}
    assert check(Run(frozenset(node.name for node in nodes), groups)) == []


@pytest.mark.parametrize("name", ["base", "../out", ""])
def test_a_name_that_is_taken_or_none_is_refused(tmp_path, conf, name):
    Writer(tmp_path / "raw").image_csv("c.csv", ["a"])
    with pytest.raises(StalenessError, match=r"NAME: found .* expected"):
        write_environment(name, tmp_path / "raw", conf)


def test_a_folder_without_anything_to_read_says_what_lies_there(tmp_path, conf):
    Writer(tmp_path / "raw").images(["a", "b"])
    with pytest.raises(StalenessError, match=r"found no file .*2 of \.png.* expected"):
        write_environment("mine", tmp_path / "raw", conf)
    Writer(tmp_path / "talk").llava("x.json", ["a"])
    with pytest.raises(StalenessError, match="found conversations alone"):
        write_environment("mine", tmp_path / "talk", conf)
    assert not (conf / "mine").exists()


def test_columns_of_other_names_are_found(tmp_path, conf):
    Writer(tmp_path / "raw").images(["a", "b"])
    rows = ["file;who;description", "ia1.png;me;a dog", "ib2.png;you;a cat"]
    (tmp_path / "raw" / "x.csv").write_text("\n".join(rows))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "t.jsonl").write_text(json.dumps({"id": "1", "body": "many words here"}))
    for folder, columns in (("raw", ("file", "description")), ("text", (None, "body"))):
        write_environment(folder, tmp_path / folder, conf)
        entry = parameters(conf, folder)["ingest"]["sources"][folder]
        assert (entry.get("image_column"), entry["text_column"]) == columns


@pytest.mark.parametrize("source_format", ["image_csv", "img2dataset", "coco_captions"])
def test_shares_part_the_records_of_a_source(tmp_path, source_format):
    name = {"image_csv": "c.csv", "img2dataset": "c.tar", "coco_captions": "captions.json"}
    getattr(Writer(tmp_path), source_format)(name[source_format], [f"{n}" for n in range(60)])

    def keys(share):
        source = {"kind": "caption", "format": source_format, "path": str(tmp_path), "share": share}
        config = TypeAdapter(IngestConfig).validate_python({"sources": {"s": source}})
        chosen = config.sources["s"]
        found = read_source(Source("s", chosen, open_files(chosen), config.limits))
        from collections import Counter

        passed = Counter()
        items = list(count_passed_over(found, passed))
        assert len(items) + passed.total() == 60
        return {item.key for item in items if isinstance(item, RawRecord)}

    held, rest, whole = keys([0, 0.2]), keys([0.2, 1]), keys(None)
    assert not held & rest
    assert held | rest == whole
    assert 3 <= len(held) <= 24
