"""What ends a training."""


class TrainingStoppedError(RuntimeError):
    """A training that cannot go on as planned; its message says why and what to do."""
