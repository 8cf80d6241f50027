"""The log that a killed evaluation goes on from."""

from __future__ import annotations

import pytest

from mm1_pipeline.evaluation.generation.answer_log import Answer, AnswerLog

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


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b"cat", b"dog"),
        lambda line: line.replace(b'"p1"', b'"p9"'),
        lambda line: b"{}",
        lambda line: b"[1, 2]",
        lambda line: b"null",
        lambda line: b"[" * 100_000,
        lambda line: line[:20] + bytes([line[20] ^ 128]) + line[21:],
        lambda line: b"",
        lambda line: line + line,
    ],
)
def test_a_row_that_is_not_as_it_was_written_is_set_aside_and_said(path, caplog, damage):
    AnswerLog(path, MADE_WITH).append(FIRST)
    header, first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([header, damage(first), second, b""]))
    log = AnswerLog(path, MADE_WITH)
    assert (log.get("p1"), log.get("p2"), len(log)) == (None, FIRST[1][1], 1)
    assert f"{path}: 1 of 3 rows are damaged and are made again" in caplog.text
    assert path.with_name("log.jsonl.damaged").read_bytes() == damage(first) + b"\n"
    log.append(FIRST[:1])
    caplog.clear()
    assert AnswerLog(path, MADE_WITH).get("p1") == FIRST[0][1]
    assert caplog.text == ""


def test_rows_behind_a_damaged_header_belong_to_nothing(path, caplog):
    AnswerLog(path, MADE_WITH).append(FIRST)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"a"', b'"b"', 1))
    assert len(AnswerLog(path, MADE_WITH)) == 0
    assert "its first row is damaged; everything is made again" in caplog.text
    assert path.with_name("log.jsonl.damaged").read_bytes() == content.replace(b'"a"', b'"b"', 1)
