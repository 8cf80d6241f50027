"""Has the benchmarks' own scorers score our answers, and stores what they give.

    git clone https://github.com/haotian-liu/LLaVA                  # c121f0432da2
    git clone https://github.com/MMMU-Benchmark/MMMU                # bb0b95a94599
    git clone https://github.com/lupantech/MathVista                # 53d525874bdd
    git clone https://github.com/open-compass/VLMEvalKit            # e8e78f05f308
    git clone https://github.com/yuweihao/MM-Vet                    # acde843e02da
    git clone https://github.com/zjunlp/Deco                        # fee8d757c0a9, of MME
    pip install Levenshtein pandas pyyaml scikit-learn
    python make_option_scores.py FOLDER_OF_THE_CLONES

Their code runs as it is; modules that it imports and these values do not need (clients of judges,
loaders of data) are empty. `random.choice` of MMMU's and of none other is watched, so that what it
draws is stored as drawn and not compared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import runpy
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

from option_samples import (
    extractions,
    grades,
    open_answers,
    option_answers,
    reviews,
    yes_no_answers,
)

NUM_ANSWERS = 1_000
NUM_REVIEWS = 510


def _module(path: Path, *empty: str) -> ModuleType:
    for name in empty:
        sys.modules[name] = MagicMock()
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _script(path: Path, *arguments: str) -> str:
    """What a script prints."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before
        sys.path.remove(str(path.parent))
    return printed.getvalue()


def scienceqa(clones: Path, folder: Path) -> str:
    """The option that LLaVA's script takes, a letter an answer; `-` for none."""
    rows = option_answers(NUM_ANSWERS)
    problems = {
        row.key: {"choices": row.options, "answer": "ABCDE".index(row.right)} for row in rows
    }
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))
    given = [{"question_id": r.key, "text": r.answer, "prompt": "<image>"} for r in rows]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    _script(
        clones / "LLaVA/llava/eval/eval_science_qa.py",
        f"--base-dir={folder}",
        f"--result-file={folder / 'answers.jsonl'}",
        f"--output-file={folder / 'output.json'}",
        f"--output-result={folder / 'result.json'}",
    )
    taken = json.loads((folder / "result.json").read_text())["results"]
    return "".join("ABCDE"[taken[row.key]] if taken[row.key] >= 0 else "-" for row in rows)


def mmmu_options(clones: Path) -> str:
    """The option that MMMU's code takes; `*` where it draws one."""
    module: Any = _module(clones / "MMMU/mmmu/utils/eval_utils.py")
    drawn: list[str] = []
    module.random = MagicMock(choice=lambda letters: drawn.append("*") or letters[0])
    taken = ""
    for row in option_answers(NUM_ANSWERS):
        letters = list("ABCDE"[: len(row.options)])
        drawn.clear()
        name = module.parse_multi_choice_response(
            row.answer, letters, dict(zip(letters, row.options, strict=True))
        )
        taken += drawn[0] if drawn else name
    return taken


def mmmu_open(clones: Path) -> str:
    """1 for each open answer that MMMU's code takes for right."""
    module: Any = _module(clones / "MMMU/mmmu/utils/eval_utils.py")
    return "".join(
        str(int(module.eval_open(right, module.parse_open_response(answer))))
        for right, answer in open_answers(NUM_ANSWERS)
    )


def mmmu_domains(clones: Path, folder: Path) -> dict[str, Any]:
    """MMMU's table of domains and subjects for answers that are letters."""
    rows = option_answers(NUM_ANSWERS)
    answers = {
        row.key: {"question_type": "multiple-choice", "ground_truth": row.right} for row in rows
    }
    given = {row.key: "ABCDE"[number % len(row.options)] for number, row in enumerate(rows)}
    (folder / "answers.json").write_text(json.dumps(answers))
    (folder / "given.json").write_text(json.dumps(given))
    printed = _script(
        clones / "MMMU/mmmu/main_eval_only.py",
        f"--output_path={folder / 'given.json'}",
        f"--answer_path={folder / 'answers.json'}",
    )
    return json.loads(printed.splitlines()[-1].replace("'", '"'))


def mathvista(clones: Path) -> str:
    """1 for each extraction that MathVista's code takes for right."""
    sys.path.insert(0, str(clones / "MathVista"))
    module = _module(
        clones / "MathVista/evaluation/calculate_score.py",
        *("datasets", "rich", "rich.logging", "tqdm", "cv2", "PIL", "PIL.Image", "word2number"),
    )
    right = ""
    for problem, extraction in extractions(NUM_ANSWERS):
        kind = "multi_choice" if problem["choices"] else "free_form"
        given = module.normalize_extracted_answer(
            extraction, problem["choices"], kind, problem["answer_type"], problem["precision"]
        )
        right += str(int(module.safe_equal(given, problem["answer"])))
    return right


def mmbench(clones: Path) -> str:
    """The option that VLMEvalKit infers without a judge; `-` for none."""
    logs = ("vlmeval", "vlmeval.smp", "vlmeval.smp.log")
    module = _module(clones / "VLMEvalKit/vlmeval/utils/matching_util.py", *logs)
    taken = [
        module.can_infer(r.answer, dict(zip("ABCDE", r.options, strict=False)))
        for r in option_answers(NUM_ANSWERS)
    ]
    return "".join(name if name and name != "Z" else "-" for name in taken)


def llava_bench(clones: Path, folder: Path) -> dict[str, list[float]]:
    """LLaVA-Bench's summary: ratio and ten times the means of both marks, by category."""
    judge = _module(clones / "LLaVA/llava/eval/eval_gpt_review_bench.py", "openai")
    lines = []
    for number, (kind, reply) in enumerate(reviews(NUM_REVIEWS)):
        # The official parser takes a comma only without a blank.
        marks = judge.parse_score(reply.replace(", ", ","))
        assert marks != [-1, -1], reply
        lines.append(json.dumps({"question_id": number, "category": kind, "tuple": marks}))
    (folder / "review.jsonl").write_text("\n".join(lines))
    path = clones / "LLaVA/llava/eval/summarize_gpt_review.py"
    printed = _script(path, "--files", str(folder / "review.jsonl"))
    rows = [line.split() for line in printed.splitlines()[1:-1]]
    return {name: [float(value) for value in values] for name, *values in rows}


def mm_vet(clones: Path, folder: Path) -> dict[str, dict[str, float]]:
    """MM-Vet's tables of capabilities and of their combinations."""
    rows = grades(NUM_REVIEWS)
    data = {f"v1_{n}": {"capability": list(needs)} for n, (needs, _) in enumerate(rows)}
    graded = {
        f"v1_{n}": {"model": [""], "content": [""], "score": [grade]}
        for n, (_, grade) in enumerate(rows)
    }
    (folder / "mm-vet.json").write_text(json.dumps(data))
    (folder / "ours.json").write_text("{}")
    (folder / "ours_gpt-4-0613-grade-1runs.json").write_text(json.dumps(graded))
    for name in ("openai", "openai._exceptions", "tqdm"):
        sys.modules[name] = MagicMock()
    _script(
        clones / "MM-Vet/mm-vet_evaluator.py",
        f"--mmvet_path={folder}",
        f"--result_file={folder / 'ours.json'}",
        f"--result_path={folder}",
    )
    tables = {}
    for table in ("cap-score", "cap-int-score"):
        header, values = [
            line.split(",")
            for line in (folder / f"ours_gpt-4-0613-{table}-1runs.csv").read_text().splitlines()
        ]
        row = dict(zip(header, values, strict=True))
        tables[table] = {
            "+".join(sorted(name.split("_"))): float(value)
            for name, value in row.items()
            if name not in ("", "std", "runs")
        }
    return tables


def mme(clones: Path, folder: Path) -> dict[str, float]:
    """MME's score of each category and of both groups."""
    lines: dict[str, list[str]] = {}
    for category, image, right, given in yes_no_answers(NUM_ANSWERS):
        lines.setdefault(category, []).append(f"{image}\tIs it?\t{right}\t{given}\n")
    for category, rows in lines.items():
        (folder / f"{category}.txt").write_text("".join(rows))
    printed = _script(clones / "Deco/eval_tool/calculation.py", f"--results_dir={folder}")
    scores: dict[str, float] = {}
    for line in printed.splitlines():
        words = line.split()
        if words[:2] == ["total", "score:"]:
            scores[f"total {sum(name.startswith('total') for name in scores)}"] = float(words[2])
        elif len(words) == 3 and words[1] == "score:":
            scores[words[0]] = float(words[2])
    return scores


def main(clones: Path) -> None:
    """Writes option_scores.json beside this file."""

    def inside(make: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return make(clones, Path(folder))

    scores = {
        "scienceqa": inside(scienceqa),
        "mmmu_options": mmmu_options(clones),
        "mmmu_open": mmmu_open(clones),
        "mmmu_domains": inside(mmmu_domains),
        "mathvista": mathvista(clones),
        "mmbench": mmbench(clones),
        "llava_bench": inside(llava_bench),
        "mm_vet": inside(mm_vet),
        "mme": inside(mme),
    }
    path = Path(__file__).with_name("option_scores.json")
    path.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    for name, values in scores.items():
        print(name, Counter(values).most_common(8) if isinstance(values, str) else len(values))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
