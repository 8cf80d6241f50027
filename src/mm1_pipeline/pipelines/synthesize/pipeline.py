"""Pipeline `synthesize`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.pipelines.synthesize.nodes import synthesize_captions


def create_pipeline() -> Pipeline:
    """Records -> synthetic_records and synthesis_report."""
    return Pipeline(
        [
            node(
                synthesize_captions,
                inputs=["params:synthesis", "records"],
                outputs=["synthetic_records", "synthesis_report"],
                name="synthesize_captions",
            )
        ],
        tags="synthesize",
    )
