"""Hooks: where paths begin, the check of every parameter, and where to look when a run ends."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import click
import yaml
from kedro.framework.hooks import hook_impl
from kedro.framework.project import LOGGING
from kedro.utils import find_config_file

from mm1_pipeline.config.lab import WorldConfig
from mm1_pipeline.config.plan import ClusterConfig
from mm1_pipeline.config.validation import check_parameters
from mm1_pipeline.config.wiring import choose_edges

logger = logging.getLogger(__name__)

REPORTS = ("report", "lessons_report", "lr_law_report")
"""Pages that a person wants to open when a run ends."""

COMMAND_GROUPS = {"world": WorldConfig, "cluster": ClusterConfig}
"""Parameter groups that a command reads and no node; an environment need not have them."""


class ProjectFolderHooks:
    """Makes the project the working directory, wherever in it a session was opened.

    The paths of parameters mean files of the project: sources, tokenizers, task files, weights.
    They are opened in many places, forked workers and child processes included, and are written
    nowhere but as they were given, so nothing is stale for it.
    """

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: Any) -> None:
        """Changes the directory; the first to work, as other hooks read parameters."""
        project, loader = Path(context.project_path), context.config_loader
        if Path.cwd() == project:
            return
        if "://" not in loader.conf_source:
            loader.conf_source = os.path.abspath(loader.conf_source)
        os.chdir(project)
        if "KEDRO_LOGGING_CONFIG" not in os.environ and (found := find_config_file("conf/logging")):
            LOGGING.configure(yaml.safe_load(found.read_text(encoding="utf-8")))
        if click.get_current_context(silent=True) is None:  # In a notebook it may surprise.
            logger.info("The working directory is now the project's folder, %s.", project)


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


class ClosingHooks:
    """Says where the results are."""

    @hook_impl
    def after_pipeline_run(self, pipeline: Any, catalog: Any) -> None:
        """Prints the verdicts and the paths of the reports, where the run has any."""
        pages = [name for name in REPORTS if name in pipeline.outputs()]
        if "lessons_report" in pages:
            from mm1_pipeline.reporting.lessons import verdict_lines

            for line in verdict_lines(catalog.load("lessons")):
                logger.info(line)
        for name in pages:
            logger.info("Report: %s", catalog[name]._describe()["filepath"])


HOOKS = (ProjectFolderHooks(), ParameterHooks(), ClosingHooks())
