"""Stages as the boxes of Kedro-Viz, which open and close."""

from __future__ import annotations

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

BOXES = {
    "data": ("ingest", "synthesize", "shard"),
    "training": ("vision_pretrain", "text_pretrain", "pretrain", "upcycle", "sft"),
    "results": ("evaluate", "report"),
}
"""Stages by the box that holds theirs.

All are closed at first sight, and what passes between them lies outside. With the stages alone as
boxes, every report would: 39 things instead of 24.
"""


class BoxedNode(Node):
    """A node in a namespace that is no part of its name.

    Names stand in records of runs, on command lines, and in what Kedro-Viz says to type.
    """

    @property
    def name(self) -> str:
        """As the pipeline gives it."""
        return self._name or self._func_name


def in_boxes(pipeline: Pipeline) -> Pipeline:
    """The same nodes, with their stages as namespaces. To be looked at, not to be run.

    Args:
        pipeline: Its nodes are tagged by their stages.
    """
    boxes = {stage: f"{box}.{stage}" for box, stages in BOXES.items() for stage in stages}

    def boxed(node: Node) -> Node:
        namespace = next((boxes[tag] for tag in sorted(node.tags) if tag in boxes), None)
        # Inputs and outputs as they were given: Kedro-Viz makes a node's id of them.
        given = (node.func, node._inputs, node._outputs)
        return BoxedNode(*given, name=node.name, tags=node.tags, namespace=namespace)

    return Pipeline([boxed(node) for node in pipeline.nodes])
