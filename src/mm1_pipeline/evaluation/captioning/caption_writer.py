"""Writers of synthetic captions and sources of concepts by their parameters.

Those that need no model lie in `corpus.synthesis`. What the models need is imported only where
one is asked for.
"""

from __future__ import annotations

from mm1_pipeline.config.synthesis import SynthesisConfig
from mm1_pipeline.corpus.synthesis.concepts import ConceptSource, MeasuredConcepts
from mm1_pipeline.corpus.synthesis.endpoint import EndpointWriter
from mm1_pipeline.corpus.synthesis.writers import CaptionWriter, TemplateWriter

LOCAL_VERSION = 1
"""Raise it when the same model of this project gives other captions, from a prompt or from an
image. Staleness does not follow the code of `local_models` (see settings.py): it reaches the
models, and every edit there would rerun `synthesize` of everybody."""


def make_writer(config: SynthesisConfig) -> CaptionWriter:
    """The writer that the parameters name.

    Raises:
        ValueError: The local model cannot be read.
    """
    match config.writer:
        case "template":
            return TemplateWriter()
        case "endpoint":
            return EndpointWriter(config.endpoint, config.instruction)
        case "local":
            from mm1_pipeline.evaluation.captioning.local_models import LocalWriter

            return LocalWriter(config.local, config.instruction, LOCAL_VERSION)


def make_concept_sources(config: SynthesisConfig) -> list[ConceptSource]:
    """What tells the concepts that the parameters name.

    Raises:
        ValueError: The captioner cannot be read, or the reader of text is not installed.
    """
    sources: list[ConceptSource] = []
    measured = tuple(name for name in config.concepts if name in MeasuredConcepts.KNOWN)
    if measured:
        sources.append(MeasuredConcepts(measured))
    if "text" in config.concepts:
        from mm1_pipeline.corpus.synthesis.text_reader import TextReader

        sources.append(TextReader(config.text))
    if "caption" in config.concepts:
        from mm1_pipeline.evaluation.captioning.local_models import ModelCaptioner

        sources.append(ModelCaptioner(config.captioner, LOCAL_VERSION))
    return sources
