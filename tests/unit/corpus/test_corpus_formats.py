"""That nothing is left out of a source's format."""

from __future__ import annotations

import pytest

from mm1_pipeline.config.source_formats import ImagePlace, RecordKind, SourceFormat
from mm1_pipeline.corpus.readers.dispatch import reader_of
from source_samples import FORMATS, SETS, Writer


@pytest.mark.parametrize("source_format", SourceFormat)
def test_every_source_format_is_whole(source_format):
    """What a new format needs beside its member, which the enumeration itself asks for."""
    layout = source_format.layout
    assert callable(reader_of(source_format).read), "its reader's module names it in READERS"
    assert layout.files
    assert all(pattern == pattern.lower() for pattern in layout.files)
    assert not layout.is_pair or layout.prompt, "pairs become conversations by a prompt"
    if layout.images == ImagePlace.NOWHERE:
        assert layout.kind in (RecordKind.TEXT, RecordKind.CONVERSATION)
    assert source_format.value in FORMATS, "the tests have a sample: tests/source_samples.py"
    assert hasattr(Writer, source_format.value)
    if layout.reader == "question_sets":
        assert source_format.value in SETS, "the tests say which conversation is expected of it"
