"""The log that a killed evaluation goes on from."""

from __future__ import annotations

import pytest

from mm1_pipeline.evaluation.answers import Answer, AnswerLog

MADE_WITH = {"model": "a", "stop": ("\n", ".")}
FIRST = [("p1", Answer("a\n cat\u2028")), ("p2", Answer("", "image: found 0 bytes"))]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers" / "log.jsonl"


def test_what_is_logged_is_read_again(path):
    AnswerLog(path, MADE_WITH).append(FIRST)
    log = AnswerLog(path, MADE_WITH)
    assert [log.get("p1"), log.get("p2"), log.get("p3")] == [*dict(FIRST).values(), None]
    assert len(log) == 2


def test_any_half_line_is_cut_off_and_written_anew(path):
    AnswerLog(path, MADE_WITH).append(FIRST[:1])
    before = path.read_bytes()
    AnswerLog(path, MADE_WITH).append(FIRST[1:])
    whole = path.read_bytes()
    for end in range(len(before), len(whole)):
        path.write_bytes(whole[:end])
        log = AnswerLog(path, MADE_WITH)
        assert (log.get("p1"), log.get("p2")) == (FIRST[0][1], None)
        log.append(FIRST[1:])
        assert path.read_bytes() == whole


def test_a_log_of_another_making_or_kind_is_not_continued(path):
    for content in (None, b"", b"{}\n", b"\xff\xfe\n", b'{"format_version": 1\n'):
        if content is None:
            AnswerLog(path, {**MADE_WITH, "model": "b"}).append(FIRST)
        else:
            path.write_bytes(content)
        assert len(AnswerLog(path, MADE_WITH)) == 0
        AnswerLog(path, MADE_WITH).append(FIRST)
        assert len(AnswerLog(path, MADE_WITH)) == 2
