"""Hooks: checks before any work starts, and a closing line that says where to look."""

from __future__ import annotations

import logging
from typing import Any

from kedro.framework.hooks import hook_impl

from mm1_pipeline.config.lab import WorldConfig
from mm1_pipeline.config.validation import ParameterError, check_parameters
from mm1_pipeline.config.wiring import choose_edges

logger = logging.getLogger(__name__)

COMMAND_GROUPS = {"world": WorldConfig}
"""Parameter groups that a command reads and no node; an environment need not have them."""


class ParameterHooks:
    """Refuses bad parameters by their dotted paths before the catalogue is built."""

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Lays the edges that parameters choose, and checks the groups of every pipeline.

        Switches of a single run, given with `--params`, belong to no group.
        """
        from kedro.framework.project import pipelines, settings
        from kedro.validation.type_extractor import TypeExtractor

        if choose_edges(context.config_loader["parameters"]):
            pipelines.configure("mm1_pipeline.pipeline_registry")
        types = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()
        raw = context.config_loader["parameters"]
        types |= {name: cls for name, cls in COMMAND_GROUPS.items() if name in raw}
        switches = settings.SESSION_CLASS.staleness_settings.switches
        check_parameters(raw, types, switches)


class PreflightHooks:
    """Looks for what a run will need before its first node."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Any, catalog: Any) -> None:
        """Checks that every raw source of a run that ingests is where it should be.

        Raises:
            ParameterError: names every source that is missing or of another format.
        """
        if "params:ingest" not in pipeline.inputs():
            return
        from mm1_pipeline.corpus.preflight import check_sources

        try:
            check_sources(catalog.load("params:ingest"))
        except ValueError as error:
            raise ParameterError(str(error)) from error


class ClosingHooks:
    """Says where the results are."""

    @hook_impl
    def after_pipeline_run(self, pipeline: Any, catalog: Any) -> None:
        """Prints the path of the report, where the run has one."""
        if "report" in pipeline.outputs():
            logger.info("Report: %s", catalog["report"]._describe()["filepath"])


HOOKS = (ParameterHooks(), PreflightHooks(), ClosingHooks())
