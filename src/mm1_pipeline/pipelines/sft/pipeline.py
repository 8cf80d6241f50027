"""Pipeline `sft`."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node

from mm1_pipeline.config.stages import SFTStart
from mm1_pipeline.pipelines.sft.nodes import fine_tune

_START_MODELS = {SFTStart.PRETRAIN: "pretrained_model", SFTStart.UPCYCLE: "upcycled_model"}


def create_pipeline(init_from: SFTStart = SFTStart.PRETRAIN) -> Pipeline:
    """A trained model and conversations -> sft_model and training_sft.

    Args:
        init_from: the model that training starts from; it alone becomes a dependency.
    """
    return Pipeline(
        [
            node(
                fine_tune,
                inputs=["params:sft", _START_MODELS[init_from], "sft_shards"],
                outputs=["sft_model", "training_sft"],
                name="fine_tune",
                tags="expensive",
            )
        ],
        tags="sft",
    )
