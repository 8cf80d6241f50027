from __future__ import annotations

import pytest

from mm1_pipeline.staleness.errors import redact, unknown_name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pw@host/x", "http://***@host/x"),
        ("at 's3://key:se@cret@bucket/a b'", "at 's3://***@bucket/a b'"),
        ("https://h/x?a=1&token=abc#f", "https://h/x?a=1&token=***#f"),
        (
            "https://h/x?X-Amz-Signature=ab&X-Amz-Credential=c%2Fd&X-Amz-Date=3",
            "https://h/x?X-Amz-Signature=***&X-Amz-Credential=***&X-Amz-Date=3",
        ),
        ("--params=a.path=ftp://u:p@h/y,b=3", "--params=a.path=ftp://***@h/y,b=3"),
        ("simplecache::https://u:p@h/y", "simplecache::https://***@h/y"),
        ("a@b.c and https://host/a@b?monkey=1", "a@b.c and https://host/a@b?monkey=1"),
    ],
)
def test_addresses_are_shown_without_what_lets_in(text, shown):
    assert redact(text) == shown


def test_records_of_any_library_are_written_without_it(caplog):
    import logging

    import mm1_pipeline.settings  # noqa: F401 (sets the factory)

    logging.getLogger("other").warning("cannot open %s (%d)", "http://u:hunter2@h/x?key=k1", 3)
    assert "cannot open http://***@h/x?key=*** (3)" in caplog.text
    assert "hunter2" not in caplog.text


def test_an_unknown_name_comes_with_the_nearest():
    told = unknown_name("--env", "smok", ["smoke", "base"])
    assert told == "--env: found 'smok'; did you mean 'smoke'? There are: base, smoke."
    assert unknown_name("--env", "zz", []) == "--env: found 'zz'; there are: none."
