"""Where the work on partitions is done: here, in several processes, or on a Ray cluster.

The same functions run everywhere. They get a task, write a folder and give back a small result,
so that neither order nor place of the work can change what comes out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar

from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.ground.processes import WorkerPool

Task = TypeVar("Task")
Result = TypeVar("Result")


class Engine:
    """Runs tasks, and the queries over tables between them.

    Args:
        config: engine and number of workers.

    Raises:
        ValueError: Ray is asked for and not installed.
    """

    def __init__(self, config: IngestConfig) -> None:
        self._workers = config.num_workers
        self._ray: ModuleType | None = _start_ray(config) if config.engine == "ray" else None
        self._pool = WorkerPool(
            config.num_workers,
            doing="worked on a part of the corpus",
            advice="Lower num_workers, or give the machine more memory,",
        )

    @property
    def in_process(self) -> bool:
        """Whether tasks run in this process, one after the other."""
        return self._ray is None and self._workers == 1

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._pool.__exit__(kind, error, trace)

    def run(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> Iterator[tuple[Task, Result]]:
        """Runs a function on every task, and passes on results as they come.

        The first error ends the run; tasks that are finished by then stay finished.

        Args:
            function: of a module's top level, because it is sent to other processes.
            tasks: what can be pickled.
        """
        if self._ray is not None:
            yield from self._run_on_ray(self._ray, function, tasks)
        elif self._workers == 1 or len(tasks) == 1:
            for task in tasks:
                yield task, function(task)
        else:
            for number, result in self._pool.run(function, tasks):
                yield tasks[number], result

    def _run_on_ray(
        self, ray: ModuleType, function: Any, tasks: Sequence[Any]
    ) -> Iterator[tuple[Any, Any]]:
        remote = ray.remote(num_cpus=1, max_retries=2)(function)
        waiting = list(reversed(tasks))
        running: dict[Any, Any] = {}
        while waiting or running:
            while waiting and len(running) < self._workers:
                task = waiting.pop()
                running[remote.remote(task)] = task
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                yield running.pop(reference), ray.get(reference)


def _start_ray(config: IngestConfig) -> ModuleType:
    """Joins the cluster of RAY_ADDRESS, or starts one here, and has Daft use it as well."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "ingest.engine: found 'ray', which is not installed, expected 'native' or the extra: "
            "install mm1-pipeline[ray]."
        ) from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"num_cpus": config.num_workers}
        ray.init(
            address=address,
            include_dashboard=False if not address else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
            **local,
        )
    import_daft().set_runner_ray(noop_if_initialized=True)
    return ray


def import_daft() -> ModuleType:
    """Imports Daft, late because it takes half a second, and without its reports to its makers."""
    os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    logging.getLogger("tracing").setLevel(logging.WARNING)  # Daft tells every step of a query
    import daft

    return daft
