"""MM1's recipe for multimodal pre-training as a reproducible pipeline."""

__version__ = "0.1.0"
