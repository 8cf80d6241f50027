"""What is shown of an address in the project's logs."""

from __future__ import annotations

import logging


def test_records_of_any_library_are_written_without_it(caplog):
    import mm1_pipeline.settings  # noqa: F401 (sets the factory)

    logging.getLogger("other").warning("cannot open %s (%d)", "http://u:hunter2@h/x?key=k1", 3)
    assert "cannot open http://***@h/x?key=*** (3)" in caplog.text
    assert "hunter2" not in caplog.text
