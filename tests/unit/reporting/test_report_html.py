from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_samples import HOSTILE, Run, sample_run, training_rows, write_predictions, write_records

from mm1_pipeline.config.report import ReportConfig
from mm1_pipeline.reporting import html as html_module
from mm1_pipeline.reporting.html import SECTIONS, render_report
from mm1_pipeline.reporting.inputs import ReportInputs
from mm1_pipeline.reporting.page import Note, Section
from mm1_pipeline.reporting.paper import PRETRAINING, TASKS

ANCHORS = [
    "headline",
    "data",
    "sequences",
    "training",
    "vision",
    "held-out",
    "results",
    "examples",
    "provenance",
]
VOID = {"meta", "img", "br", "link", "input", "hr", "base", "source", "wbr"}


class _Page(HTMLParser):
    """Collects a page's tags, and checks that they are balanced."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _sections(page: str) -> dict[str, str]:
    """The page's sections, tags removed and white space collapsed."""
    parts = re.findall(r'<section id="([^"]+)">(.*?)</section>', page, re.DOTALL)
    return {
        anchor: " ".join(html.unescape(re.sub(r"<[^>]*>", " ", content)).split())
        for anchor, content in parts
    }


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sections of the whole sample run."""
    return _sections(sample_run(tmp_path_factory.mktemp("run")).render())


def test_all_sections_stand_in_order_and_in_the_navigation(run: Run) -> None:
    page = _Page(run.render())
    assert [section["id"] for section in page.all("section")] == ANCHORS
    links = [link["href"] for link in page.all("a")]
    assert links == [f"#{anchor}" for anchor in ANCHORS]


@pytest.mark.parametrize(
    ("anchor", "shown"),
    [
        ("headline", ["42.4k", "image encoder 12.3k, connector 100, decoder 30k", "C-Abstractor"]),
        ("headline", ["40 steps", "220k tokens"]),
        ("headline", ["12 74.2 ± 4.8 21.4 ± 2.1 12.3 ± 1.1 +52.8 48.6 to 57.5 yes"]),
        ("headline", ["+2.3 −1.9 to 7.0 not shown", "−60.1 −64.3 to −55.4 worse"]),
        ("data", ["5,000 of 5,321 records were kept (94.0 %)", "the other 321 lie in quarantine"]),
        ("data", ["vqa asked 4,321 1,234 77 2", "shown as examples 8,765 4,444 0 0"]),
        (
            "data",
            ["4,321 4,000 321 4,321 4,000", "duplicate 300 6.9 %", "image_too_small 21 0.5 %"],
        ),
        ("sequences", ["131 17,011 22,016 1,376 93.1 %", "validation 30 3 333 448 28 81.4 %"]),
        ("sequences", ["90.00 %, planned 90.00 %", "10.00 %, planned 10.00 %"]),
        ("sequences", ["How often 40 steps of 20 sequences", "720 7.25", "80 0.75"]),
        ("training", ["Stage pretrain", "Steps 40 peak learning rate 2.5e-3"]),
        ("training", ["Loss at the end 4.450", "at first 7.900", "120k text, 100k image"]),
        ("training", ["Time 20.0 s 11k tokens a second", "Gradient norm", "Tokens a second"]),
        ("vision", ["validation image → text 64 40 31.4 % 2.5 % 71.8 % 12.5 %"]),
        ("vision", ["text → image 40 64 27.5 % 1.6 % 65.0 % 7.8 %"]),
        ("held-out", ["validation 88 2.213 blank 2.731 +0.518 0.358 to 0.678 yes"]),
        ("held-out", ["shuffled 2.934 +0.721 −0.029 to 1.413 not shown"]),
        ("held-out", ["stream caption 1,056 2.345 text 30,500 5.012", "text 30,501 6.543"]),
        ("results", ["pretrain 58.3 ± 1.9 61.2 ± 1.9 12", "frequent 43.2 ± 2.0 43.2 ± 2.0 12"]),
        ("results", ["not comparable in value", "arXiv 2403.09611", "MM1-30B 8 123.1 111.6 92.9"]),
        ("examples", ["what is shown in picture", "a cat (7 of 10 people)", "a picture of cat"]),
        ("provenance", ["model: pretrain 0123456789ab fedcba98fedc", "9c3d" * 16, "7e57" * 16]),
        ("provenance", ["317c" * 16, '"d_model": 192']),
        (
            "provenance",
            [
                "Made by PIL torch model: pretrain 11.3.0 2.7.0 running now 13.0.0 2.7.0",
                "than those that run now: model: pretrain by PIL 11.3.0 (now 13.0.0). Another",
            ],
        ),
    ],
)
def test_numbers_of_the_reports_appear(
    sections: dict[str, str], anchor: str, shown: list[str]
) -> None:
    for text in shown:
        assert text in sections[anchor]


def test_equal_inputs_give_equal_bytes(run: Run) -> None:
    assert run.render() == run.render()


def test_bytes_depend_on_neither_process_nor_time(run: Run, tmp_path: Path) -> None:
    arguments = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in run.without("models").parts.items()
    }
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    code = (
        "import json, sys; from pathlib import Path;"
        "from mm1_pipeline.config.report import ReportConfig;"
        "from mm1_pipeline.reporting.html import render_report;"
        "parts = json.load(open(sys.argv[1]));"
        "parts |= {k: Path(parts[k]) for k in ('predictions_dir', 'records_dir')};"
        "page = render_report(ReportConfig(num_examples=6), **parts);"
        "sys.stdout.buffer.write(page.encode())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "arguments.json")]
    environment = os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1", "TZ": "Asia/Tokyo"}
    other = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    assert other.decode() == run.without("models").render()


def test_the_page_loads_nothing_and_runs_nothing(run: Run) -> None:
    page = run.render()
    without_images = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", page)
    assert "http" not in without_images.replace("http-equiv", "")
    assert "//" not in without_images
    assert "url(" not in re.sub(r"url\(#", "", page)
    assert "@import" not in page
    parsed = _Page(page)
    forbidden = {"script", "link", "iframe", "object", "embed", "form", "base", "foreignobject"}
    assert not forbidden & {tag for tag, _ in parsed.tags}
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    policy = next(m for m in parsed.all("meta") if "content-security" in str(m).lower())
    assert policy["content"].startswith("default-src 'none'")


def _poison(value: Any) -> Any:
    """Replaces every string by hostile text, and puts it into every key that is a name."""
    if isinstance(value, dict):
        return {key: _poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_poison(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def _rename(value: dict[str, Any]) -> dict[str, Any]:
    return {name + HOSTILE: item for name, item in value.items()}


def test_hostile_strings_are_shown_and_do_nothing(run: Run) -> None:
    parts = run.parts
    for name in ("ingest_report", "shard_report", "mixture"):
        sources = parts[name].get("sources")
        parts[name] = _poison(parts[name])
        if sources:
            parts[name]["sources"] = _rename(parts[name]["sources"])
    source = parts["ingest_report"]["sources"]
    next(iter(source.values()))["rejected"] = _rename({"duplicate": 321})
    parts["mixture"]["streams"] = _rename(parts["mixture"]["streams"])
    for row in parts["training"]["pretrain"]:
        row["losses"], row["shares"] = _rename(row["losses"]), _rename(row["shares"])
    parts["training"] = _rename(parts["training"])
    parts["vision_held_out"]["sets"] = _rename(parts["vision_held_out"]["sets"])
    parts["held_out_loss"]["models"] = _rename(parts["held_out_loss"]["models"])
    parts["evaluation"]["harness"] = _poison(parts["evaluation"]["harness"])
    tasks = parts["evaluation"]["models"]["pretrain"]["tasks"]
    tasks[HOSTILE] = tasks["sample_vqa"] | {"metric": HOSTILE}
    parts["versions"] = {HOSTILE: HOSTILE}
    in_arrow = HOSTILE.replace("\ud800", "")
    write_records(parts["records_dir"], suffix=in_arrow)
    write_predictions(parts["predictions_dir"], answer=HOSTILE, suffix=in_arrow)
    page = Run(ReportConfig(title=HOSTILE, num_examples=6), parts).render()

    page.encode("utf-8")
    assert page.count("&lt;script&gt;alert(") > 40
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page
    assert not {"\u202e", "\x00", "\ud800"} & set(page)
    parsed = _Page(page)
    assert {image["src"][:15] for image in parsed.all("img")} == {"data:image/jpeg"}
    assert len(parsed.all("img")) == 12
    assert page.count("?&lt;script&gt;alert(") == 6, "every question is shown"


@pytest.mark.parametrize("missing", ["records_dir", "predictions_dir", "models", "mixture"])
def test_a_missing_part_costs_its_own_place_only(run: Run, missing: str) -> None:
    lost = {"examples"} if missing == "predictions_dir" else set()
    assert set(ANCHORS) - set(_sections(run.without(missing).render())) == lost


@pytest.mark.parametrize(
    ("missing", "lost"),
    [
        ("ingest_report", {"data"}),
        ("shard_report", {"sequences"}),
        ("training", {"training"}),
        ("held_out_loss", {"held-out"}),
        ("vision_held_out", {"vision"}),
        ("evaluation", {"results", "examples"}),
    ],
)
def test_a_missing_report_has_no_section(run: Run, missing: str, lost: set[str]) -> None:
    assert set(ANCHORS) - set(_sections(run.without(missing).render())) == lost


def test_patch_errors_of_an_encoder_are_shown(run: Run) -> None:
    result = {"n": 7, "loss": 0.4321, "constant": 0.9876}
    run.parts["vision_held_out"] = {"objective": "aim", "sets": {"validation": result}}
    assert "validation 7 0.432 0.988" in _sections(run.render())["vision"]


def test_an_empty_run_is_a_page(run: Run) -> None:
    page = render_report(ReportConfig(title="nothing yet"))
    assert _sections(page) == {}
    assert "Nothing has been run yet" in page


def test_baselines_alone_have_no_main_model(run: Run) -> None:
    models = run.parts["evaluation"]["models"]
    run.parts["evaluation"]["models"] = {"frequent": models["frequent"]}
    sections = _sections(run.render())
    assert "No model has been scored yet" in sections["headline"]
    assert "examples" not in sections


def test_a_later_stage_becomes_the_main_model_and_gets_its_panels(run: Run) -> None:
    models = run.parts["evaluation"]["models"]
    models["sft"] = json.loads(json.dumps(models["pretrain"]).replace("58.31", "66.66"))
    run.parts["training"]["sft"] = training_rows()
    sections = _sections(run.render())
    assert "model of the stage “sft”" in sections["headline"]
    assert "66.7" in sections["headline"]
    assert "Stage sft" in sections["training"]
    assert "Trained: sft" in sections["headline"]


def test_a_new_section_is_one_function(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def lessons_section(inputs: ReportInputs) -> Section:
        return Section("lessons", "Lessons", "What <was> learnt.", (Note("a & b"),))

    monkeypatch.setattr(html_module, "SECTIONS", (*SECTIONS, lessons_section))
    page = run.render()
    assert _sections(page)["lessons"] == "Lessons What <was> learnt. a & b"
    assert "What &lt;was&gt; learnt." in page


def test_examples_show_marks_images_and_both_models(run: Run) -> None:
    page = run.render()
    examples = page[page.index('id="examples"') : page.index('id="provenance"')]
    vqa = examples[examples.index("sample_vqa") :]
    assert vqa.count("<li>") == 6
    assert vqa.count('class="answer good"') == 3
    assert vqa.count('class="answer bad"') == 9  # three wrong ones, and all six of the twin
    assert examples.count('<img src="data:image/jpeg;base64,') == 12
    captions = examples[: examples.index("sample_vqa")]
    assert 'class="answer good"' not in captions
    assert "CIDEr 100.0" in captions


def test_failed_items_are_owned_up_to(run: Run) -> None:
    models = run.parts["evaluation"]["models"]
    models["pretrain"]["tasks"]["sample_vqa"]["shots"]["0"]["failed"] = 3
    assert "3 of the n items could not be asked" in _sections(run.render())["results"]


def test_long_trainings_keep_the_page_small(run: Run) -> None:
    row = training_rows()[0]
    run.parts["training"] = {"pretrain": [row | {"step": step} for step in range(1, 50_001)]}
    assert len(run.render()) < 1_000_000
    assert "50,000 steps" in _sections(run.render())["headline"]


def test_the_papers_table_is_complete() -> None:
    assert len(PRETRAINING) == 11
    assert [row.model for row in PRETRAINING if row.is_mm1] == [
        "MM1-3B", "MM1-3B", "MM1-7B", "MM1-30B",
    ]  # fmt: skip
    # Column sums of the numbers as printed: a slip of one digit shows.
    sums = [round(sum(row.scores[i] or 0 for row in PRETRAINING), 1) for i in range(len(TASKS))]
    assert sums == [913.2, 484.2, 410.8, 664.1, 388.1, 453.4, 486.7]


def test_rendering_needs_no_torch_and_no_kedro() -> None:
    code = (
        "import sys, mm1_pipeline.reporting.html;"
        "print([m for m in ('torch', 'kedro', 'composer', 'streaming') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_benchmarks_stand_under_the_papers_columns_in_a_table_of_their_own() -> None:
    run = make_run_with_benchmarks()
    results = _sections(run)["results"]
    own, rest = results.split("This run: the paper's pre-training benchmarks")[1].split(
        "The paper's, after pre-training"
    )
    assert "Model Shots COCO CIDEr" in own
    assert "pretrain 0 – – – 41.5 ± 1.2, n 200" in own
    assert "pretrain 4 – – – 50.5 ± 1.0, n 200" in own
    assert "Not confirmed to be the paper's: prompt, shots." in own
    assert "frequent" not in own
    assert "MM1-30B 8 123.1" in rest
    own_sft, paper_sft = rest.split("This run: the paper's benchmarks after SFT")[1].split(
        "The paper's, after SFT"
    )
    assert "72.6 ± 3.0, n 20" in own_sft
    assert "30.0 ± 3.0, n 20" in own_sft
    assert "LLaVA-NeXT-7B 0 81.8" in paper_sft
    assert "pope by part: pretrain, 0 shots Part f1 accuracy yes ratio n random 75.0 " in results
    assert "mathvista by domain: pretrain, 0 shots Part mean n Science 50.0 " in results
    assert "Not comparable with published numbers: extracted by rules." in results
    assert "MathV is not comparable with published numbers: extracted by rules." in own_sft


def make_run_with_benchmarks() -> str:
    def score(value: float, stderr: float, n: int, **more) -> dict:
        return {"value": value, "stderr": stderr, "n": n, "failed": 0, **more}

    paper = {"table": "pretrain", "column": "VQAv2"}
    part = {"f1": 75.0, "accuracy": 75.0, "yes_ratio": 50.0, "n": 8}
    tasks = {
        "vqav2": {
            "metric": "vqa_accuracy",
            "paper": paper,
            "unconfirmed": ["shots", "prompt"],
            "shots": {"0": score(41.5, 1.2, 200), "4": score(50.5, 1.0, 200)},
        },
        "pope": {
            "metric": "pope_f1",
            "paper": {"table": "sft", "column": "POPE"},
            "shots": {"0": score(72.6, 3.0, 20, details={"by_category": {"random": part}})},
        },
        "mathvista": {
            "metric": "mathvista",
            "paper": {"table": "sft", "column": "MathV"},
            "not_comparable": "extracted by rules",
            "shots": {
                "0": score(
                    30.0, 3.0, 20, details={"by_domain": {"Science": {"mean": 50.0, "n": 8}}}
                )
            },
        },
        "arc_easy": {"metric": "acc", "shots": {"0": score(25.0, 2.0, 50, details={"acc": 25.0})}},
    }
    evaluation = {"models": {"pretrain": {"tasks": tasks}, "frequent": {"tasks": tasks}}}
    return render_report(ReportConfig(), evaluation=evaluation)


def test_figures_of_several_runs_say_so_on_top():
    line = "shards: version 1a2b3c4d behind evaluation; version <9f8e> behind sft_model."
    page = render_report(ReportConfig(title="mixed"), mixed=[line])
    assert page.index("These figures are not of one run.") < page.index("Nothing has been run yet")
    assert "version &lt;9f8e&gt; behind sft_model." in page
    assert "not of one run" not in render_report(ReportConfig(title="of one run"))
