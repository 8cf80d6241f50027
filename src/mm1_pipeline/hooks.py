"""Hooks: where paths begin, checks before any work starts, and where to look when it ends."""

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
from mm1_pipeline.config.validation import ParameterError, check_parameters
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


class PreflightHooks:
    """Looks for what a run will need before its first node."""

    @hook_impl
    def before_pipeline_run(self, pipeline: Any, catalog: Any) -> None:
        """Checks that all that users bring is where it should be, and what it should be.

        Raises:
            ParameterError: names every raw source that is missing or of another format, or
                says how a file of weights differs from the model that is wanted.
        """
        try:
            if "params:ingest" in pipeline.inputs():
                _check_sources(catalog)
            if "params:vision_pretrain" in pipeline.inputs():
                _check_vision_file(catalog)
            if "params:text_pretrain" in pipeline.inputs():
                _check_decoder_file(catalog)
            if "params:export" in pipeline.inputs():
                _check_export(catalog)
        except ValueError as error:
            raise ParameterError(f"{error}\nRelative paths begin at {Path.cwd()}.") from error


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


def _check_sources(catalog: Any) -> None:
    from mm1_pipeline.corpus.preflight import check_sources
    from mm1_pipeline.evaluation.captioning.scorers import load_scorer

    check_sources(catalog.load("params:ingest"), load_scorer)


def _check_vision_file(catalog: Any) -> None:
    """Reads names and shapes of an encoder's file, if one is to be imported."""
    path = catalog.load("params:vision_pretrain").path
    if path is not None:
        from mm1_pipeline.models.convert.vision import check_vision_file

        check_vision_file(Path(path), catalog.load("params:model.vision"))


def _check_decoder_file(catalog: Any) -> None:
    """Reads the configuration beside a decoder's weights, if one is to be imported."""
    path = catalog.load("params:text_pretrain").path
    if path is not None:
        from mm1_pipeline.models.convert.preflight import check_decoder_file

        check_decoder_file(Path(path), catalog.load("params:model.decoder"))


def _check_export(catalog: Any) -> None:
    """Asks whether the model has the shape that its export is to have, before it is trained."""
    from mm1_pipeline.config.export import Layout

    if catalog.load("params:export").layout is Layout.LLAVA:
        from mm1_pipeline.models.convert.llava import why_not_llava

        if reasons := why_not_llava(catalog.load("params:model")):
            raise ValueError(
                "export.layout: found llava, but LlavaForConditionalGeneration cannot compute "
                f"this model: {'; '.join(reasons)}. Change them, or export with layout: own."
            )


HOOKS = (ProjectFolderHooks(), ParameterHooks(), PreflightHooks(), ClosingHooks())
