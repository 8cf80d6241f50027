"""What ends a training."""

import signal


class TrainingStoppedError(RuntimeError):
    """A training that cannot go on as planned; its message says why and what to do."""


class TrainingTerminatedError(SystemExit):
    """A training that was asked to end, and has saved its last step.

    A SystemExit, so that nothing goes on after it: the program ends with the status of the signal.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 128 + signal.SIGTERM
