"""All checks by the node that they are for, and their answers for a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from kedro_rerun.graph import Graph, Storage
from kedro_rerun.preflight import Mistake

from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.preflight import data, evaluation, lab, training
from mm1_pipeline.preflight.run import Check, Run


def _of_run(run: Run) -> Iterator[str]:
    for text, _ in _answers(run):
        yield text


CHECKS: Mapping[str, Check | None] = {
    "ingest_evaluation": data.check_ingest(IngestConfig.evaluation_part),
    "index_evaluation": evaluation.check_index,
    "ingest_pretraining": data.check_ingest(IngestConfig.pretraining_part),
    "ingest_conversations": data.check_ingest(IngestConfig.conversation_part),
    "report_sources": None,
    "synthesize_captions": data.check_synthesis,
    "prepare_tokenizer": data.check_tokenizer,
    "pack_shards": None,
    "pack_conversations": None,
    "plan_vision_mixture": training.check_vision_mixture,
    "pretrain_vision": training.check_vision,
    "evaluate_vision": None,
    "plan_text_mixture": training.check_text_mixture,
    "pretrain_text": training.check_text,
    "plan_mixture": training.check_mixture,
    "pretrain_model": training.check_pretrain,
    "train_experts": training.check_upcycling,
    "train_dense_control": training.check_control,
    "fine_tune": training.check_sft,
    "evaluate_models": evaluation.check_evaluation("pretrain", "upcycle", "sft"),
    "evaluate_pretrained": evaluation.check_evaluation("pretrain"),
    "evaluate_fine_tuned": evaluation.check_evaluation("sft"),
    "write_report": None,
    "download_images": data.check_download,
    "export_pretrained": training.check_export("pretrain"),
    "export_upcycled": training.check_export("upcycle"),
    "export_fine_tuned": training.check_export("sft"),
    "run_arms": lab.check_arms(_of_run),
    "judge_arms": None,
    "report_lessons": None,
    "run_rates": lab.check_rates(_of_run),
    "fit_rates": None,
    "report_law": None,
}
"""By node; None where its parameters' own classes check all that can be known. A test holds the
table to the registry."""


def find_mistakes(graph: Graph) -> list[Mistake]:
    """What a user has to mend before a run, each with the nodes that would fail.

    Args:
        graph: Of the nodes that are asked for; parameters are those that they read.
    """
    groups = {
        name.removeprefix("params:"): dataset.value
        for name, dataset in graph.datasets.items()
        if dataset.storage is Storage.PARAMETER
    }
    return check(Run(frozenset(node.name for node in graph.nodes), groups))


def check(run: Run) -> list[Mistake]:
    """As `find_mistakes`, of a run that is told by names."""
    nodes: dict[str, set[str]] = defaultdict(set)
    for text, node in _answers(run):
        nodes[text].add(node)
    return [Mistake(text, frozenset(found)) for text, found in nodes.items()]


def _answers(run: Run) -> Iterator[tuple[str, str]]:
    """Each text with its node, in the order of the table."""
    for node, look in CHECKS.items():
        if node in run.nodes and look is not None:
            for text in look(run):
                yield text, node
