"""One folder a stage: `nodes.py` (thin functions) and `pipeline.py` (how they connect)."""
