"""Writes official_scores.npz: what each benchmark's own scorer gives to generated answers.

Run outside the project, with checkouts of the scorers side by side in one folder:

    python make_official_scores.py FOLDER

in an environment with numpy, scikit-learn, tqdm and editdistance. FOLDER holds

    vqa         GT-Vision-Lab/VQA                   a013f0043c1e  VQAv2, OK-VQA
    mmf         facebookresearch/mmf                b0ffc7fba39f  TextVQA
    vizwiz      peyajm29/VizWiz-VQA                 ae80bef59fe9  VizWiz's evaluation, a copy
    gqa         TRI-ML/vlm-evaluation               d9f58967de7f  GQA's eval.py, a copy
    infovqa     QwenLM/Qwen-VL                      aa00ed04091e  InfographicVQA's, a copy
    pix2struct  google-research/pix2struct          945f27e936c9  ChartQA's relaxed correctness
    pope        AoiDragon/POPE                      08d957b917e5  POPE
    mme         zjunlp/Deco                         fee8d757c0a9  MME's calculation.py, a copy
    llava       haotian-liu/LLaVA                   c121f0432da2  answers converted for VQAv2, GQA

GQA's, InfographicVQA's, MME's and VizWiz's scorers are handed out on pages of their own; those
copies of them were read. VQAv2's is written in Python 2: its print statements are turned into
calls. Libraries that only the captions need are replaced by stubs.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import re
import runpy
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
from answer_cases import CASES, COUNT, KINDS, Case

OUT = Path(__file__).with_name("official_scores.npz")
STUBS = ("pycocoevalcap.tokenizer.ptbtokenizer", "pycocoevalcap.bleu.bleu")
STUBS += ("pycocoevalcap.meteor.meteor", "pycocoevalcap.rouge.rouge", "pycocoevalcap.cider.cider")

Scores = list[float]


def digest(cases: list[Case]) -> str:
    """Tells whether the generator still gives the answers that were scored."""
    return hashlib.sha256(json.dumps(cases).encode()).hexdigest()


def load(path: Path, *, is_python2: bool = False) -> ModuleType:
    source = path.read_text(encoding="utf-8").replace("from .pycoco", "from pycoco")
    if is_python2:
        source = re.sub(r"(?m)^(\s*)print (.+)$", r"\1print(\2)", source)
    module = ModuleType(path.stem)
    stubs = {
        ".".join(name.split(".")[: depth + 1]): MagicMock() for name in STUBS for depth in range(3)
    }
    with patch.dict(sys.modules, stubs):
        exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def vqa(folder: Path, cases: list[Case]) -> Scores:
    evaluation = load(
        folder / "vqa/PythonEvaluationTools/vqaEvaluation/vqaEval.py", is_python2=True
    )
    truth = {
        number: {
            "answers": [{"answer": text, "answer_id": n} for n, text in enumerate(case.references)],
            "question_type": "",
            "answer_type": "",
        }
        for number, case in enumerate(cases)
    }
    given = {number: {"answer": case.answer} for number, case in enumerate(cases)}
    reader = SimpleNamespace(qa=truth, getQuesIds=lambda: list(truth))
    scorer = evaluation.VQAEval(reader, SimpleNamespace(qa=given), n=12)
    scorer.evaluate()
    return [scorer.evalQA[number] / 100 for number in truth]


def vqa_after_llava(folder: Path, cases: list[Case]) -> Scores:
    """LLaVA converts answers before they are handed in."""
    process = load(folder / "llava/llava/eval/m4c_evaluator.py").EvalAIAnswerProcessor()
    return vqa(folder, [Case(process(case.answer), case.references) for case in cases])


def textvqa(folder: Path, cases: list[Case]) -> Scores:
    evaluator = load(folder / "mmf/mmf/utils/m4c_evaluators.py").TextVQAAccuracyEvaluator()
    return [
        evaluator.eval_pred_list([{"pred_answer": answer, "gt_answers": list(references)}])
        for answer, references in cases
    ]


def vizwiz(folder: Path, cases: list[Case]) -> Scores:
    api = folder / "vizwiz/evaluation/API/PythonEvaluationTools/vqaEvaluation/vqaEval.py"
    evaluation: Any = load(api)
    evaluation.COCOEvalCap = MagicMock()
    truth = {
        number: {"answers": [{"answer": text} for text in case.references], "answer_type": ""}
        for number, case in enumerate(cases)
    }
    given = {number: {"image": number, "answer": case.answer} for number, case in enumerate(cases)}
    reader = SimpleNamespace(imgToQA=truth, getImgs=lambda: list(truth))
    scorer = evaluation.VQAEval(reader, SimpleNamespace(imgToQA=given), n=12)
    scorer.evaluate()
    return [scorer.evalQA[number] / 100 for number in truth]


def gqa(folder: Path, cases: list[Case], *, is_converted: bool) -> Scores:
    """Every question has a type of its own, because the scorer gives accuracies by type."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        questions = {
            str(number): {
                "question": "what?",
                "answer": case.references[0],
                "isBalanced": True,
                "semantic": [],
                "types": {"structural": f"{number:06d}", "semantic": "obj", "detailed": ""},
                "groups": {"global": "all", "local": None},
                "entailed": [],
            }
            for number, case in enumerate(cases)
        }
        written = [
            {"questionId": str(number), "question_id": str(number), "text": case.answer.strip()}
            for number, case in enumerate(cases)
        ]
        answers = work / "predictions.json"
        if is_converted:
            lines = work / "answers.jsonl"
            lines.write_text("".join(json.dumps(row) + "\n" for row in written))
            script = folder / "llava/scripts/convert_gqa_for_eval.py"
            run_script(script, "--src", str(lines), "--dst", str(answers))
        else:
            rows = [{**row, "prediction": row["text"]} for row in written]
            answers.write_text(json.dumps(rows))
        (work / "questions.json").write_text(json.dumps(questions))
        found = run_script(
            folder / "gqa/vlm_eval/util/evaluation/gqa/eval.py",
            *("--questions", str(work / "questions.json"), "--predictions", str(answers)),
        )
    by_type = found["scores"]["accuracyPerStructuralType"]
    return [by_type[f"{number:06d}"][0] / 100 for number in range(len(cases))]


def docvqa(folder: Path, cases: list[Case]) -> Scores:
    evaluation = load(folder / "infovqa/eval_mm/infographicsvqa_eval.py")
    truth = [
        {"questionId": number, "question": "", "answers": list(case.references)}
        for number, case in enumerate(cases)
    ]
    given = [{"questionId": number, "answer": case.answer} for number, case in enumerate(cases)]
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / "truth.json", Path(name) / "given.json"]
        paths[0].write_text(json.dumps({"dataset_name": "", "data": truth}))
        paths[1].write_text(json.dumps(given))
        options = Namespace(answer_types=False, anls_threshold=0.5)
        found = evaluation.evaluate_method(*map(str, paths), options)
    return [found["per_sample_result"][str(number)]["score"] for number in range(len(cases))]


def chartqa(folder: Path, cases: list[Case]) -> Scores:
    relaxed = load(folder / "pix2struct/pix2struct/metrics.py").relaxed_correctness
    return [float(relaxed(references[0], answer)) for answer, references in cases]


def pope(folder: Path, cases: list[Case]) -> tuple[Scores, Scores]:
    """Whether each answer is right; and F1, accuracy and yes-ratio of all."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        answers = [json.dumps({"answer": case.answer}) + "\n" for case in cases]
        labels = [json.dumps({"label": case.references[0]}) + "\n" for case in cases]
        (work / "answers").write_text("".join(answers))
        (work / "labels").write_text("".join(labels))
        source = (folder / "pope/evaluate.py").read_text()
        source = source.replace("ans_file = ''", f"ans_file = {str(work / 'answers')!r}")
        source = source.replace("label_file = ''", f"label_file = {str(work / 'labels')!r}")
        found: dict[str, Any] = {}
        exec(compile(source, "evaluate.py", "exec"), found)
    pairs = zip(found["pred_list"], found["label_list"], strict=True)
    totals = [found["f1"], found["acc"], found["yes_ratio"]]
    return [float(given == right) for given, right in pairs], totals


def mme(folder: Path, cases: list[Case]) -> tuple[Scores, Scores]:
    """Whether each answer is right; and the score of each of ten categories, in their order.

    Tabs part the columns of MME's files and a line end ends the row, so answers with one are given
    to the scorer alone.
    """
    evaluation: Any = load(folder / "mme/eval_tool/calculation.py")
    metrics = evaluation.calculate_metrics()
    right = [
        float(metrics.parse_pred_ans(answer.lower()) == references[0])
        for answer, references in cases
    ]
    names = evaluation.eval_type_dict["Perception"]
    size = len(cases) // len(names)
    evaluation.eval_type_dict = {"Perception": names}
    with tempfile.TemporaryDirectory() as folder_name:
        for place, name in enumerate(names):
            part = cases[place * size : (place + 1) * size]
            rows = [
                f"{n // 2}.jpg\tIs it?\t{case.references[0].title()}\t{plain(case.answer)}\n"
                for n, case in enumerate(part)
            ]
            (Path(folder_name) / f"{name}.txt").write_text("".join(rows))
        by_name = metrics.process_result(folder_name)
    return right, [by_name[name] for name in names]


def without_outer_spaces(cases: list[Case]) -> list[Case]:
    """What is handed in: the space that a model begins with is no part of its answer."""
    return [Case(case.answer.strip(), case.references) for case in cases]


def plain(answer: str) -> str:
    return answer.replace("\t", " ").replace("\n", " ")


def run_script(path: Path, *arguments: str) -> dict[str, Any]:
    with patch.object(sys, "argv", [str(path), *arguments]):
        return runpy.run_path(str(path), run_name="__main__")


def main() -> None:
    importlib.import_module("sklearn.metrics")  # before any stub, which is taken away again
    folder = Path(sys.argv[1]).resolve()
    arrays: dict[str, np.ndarray] = {}
    for kind in KINDS:
        cases = {task: make(kind, COUNT) for task, make in CASES.items()}
        for task, rows in cases.items():
            arrays[f"{task}.{kind}.sha256"] = np.array(digest(rows))
        with contextlib.redirect_stdout(io.StringIO()):
            found = {
                "vqav2": vqa(folder, cases["vqav2"]),
                "okvqa": vqa(folder, cases["okvqa"]),
                "vqav2_sft": vqa_after_llava(folder, cases["vqav2_sft"]),
                "textvqa": textvqa(folder, cases["textvqa"]),
                "vizwiz": vizwiz(folder, cases["vizwiz"]),
                "gqa": gqa(folder, cases["gqa"], is_converted=True),
                "gqa.unconverted": gqa(folder, cases["gqa"], is_converted=False),
                "docvqa": docvqa(folder, without_outer_spaces(cases["docvqa"])),
                "docvqa.with_spaces": docvqa(folder, cases["docvqa"]),
                "chartqa": chartqa(folder, without_outer_spaces(cases["chartqa"])),
                "chartqa.with_spaces": chartqa(folder, cases["chartqa"]),
            }
            found["pope"], found["pope.totals"] = pope(folder, cases["pope"])
            found["mme"], found["mme.totals"] = mme(folder, cases["mme"])
        for task, scores in found.items():
            arrays[f"{task}.{kind}"] = np.array(scores, dtype=np.float64)
    np.savez_compressed(OUT, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
