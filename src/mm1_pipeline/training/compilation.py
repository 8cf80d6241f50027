"""torch.compile where it pays and cannot go wrong."""

from __future__ import annotations

from torch import nn

from mm1_pipeline.models.decoder import FeedForward
from mm1_pipeline.models.vit import VisionLayer


def compile_layers(objective: nn.Module, backend: str = "inductor") -> int:
    """Compiles the encoder's layers and the decoder's dense feed-forward maps, in place.

    These hold most of the arithmetic and take plain tensors. A decoder layer as a whole is not
    compiled: its attention has another layout in every batch, for which it would be compiled
    anew; nor are experts, whose sizes depend on the data. Names of weights do not change.

    Args:
        objective: whose modules are compiled when they are first called.
        backend: of torch.compile.

    Returns:
        Number of modules.
    """
    found = [m for m in objective.modules() if isinstance(m, VisionLayer | FeedForward)]
    for module in found:
        # Batches differ in images and positions: one graph for all sizes.
        module.compile(backend=backend, dynamic=True)
    return len(found)
