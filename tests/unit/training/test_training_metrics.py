from __future__ import annotations

import pytest
import torch

from mm1_pipeline.models.objective import Term
from mm1_pipeline.training.metrics import (
    MetricsLog,
    StreamLosses,
    TermMeans,
    count_positions,
    stream_shares,
    without_timing,
)

STREAMS = ("caption", "interleaved", "text")


def test_losses_are_means_over_labels_of_the_whole_batch_not_of_microbatches():
    # Row losses sum to 6, 2 and 12 over 2, 1 and 3 labels.
    losses = torch.tensor([[2.0, 4.0, 0.0], [0.0, 2.0, 0.0], [3.0, 4.0, 5.0]])
    labels = torch.tensor([[7, 7, -100], [-100, 7, -100], [7, 7, 7]])
    stream_ids = torch.tensor([2, 0, 2])
    meter = StreamLosses(STREAMS)
    for rows in (slice(0, 2), slice(2, 3)):
        meter.add(losses[rows], labels[rows] != -100, stream_ids[rows])
    mean, by_stream = meter.means()
    assert mean == pytest.approx(20 / 6)
    assert by_stream == pytest.approx({"caption": 2.0, "text": 18 / 5})


def test_reset_forgets_the_step_before():
    meter = StreamLosses(STREAMS)
    meter.add(torch.full((1, 2), 9.0), torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]))
    meter.reset()
    meter.add(torch.full((1, 2), 1.0), torch.ones(1, 2, dtype=torch.bool), torch.tensor([1]))
    assert meter.means() == (1.0, {"interleaved": 1.0})


def test_losses_may_be_one_a_sequence_that_stands_for_several_targets():
    meter = StreamLosses(STREAMS)
    meter.add(torch.tensor([6.0, 0.0, 1.0]), torch.tensor([3, 0, 1]), torch.tensor([0, 0, 1]))
    assert meter.means() == (7 / 4, {"caption": 2.0, "interleaved": 1.0})


def test_terms_are_means_weighted_by_targets():
    meter = TermMeans()
    meter.add({"balance": Term(torch.tensor(1.0), 0.01)}, 30)
    meter.add({"balance": Term(torch.tensor(2.0), 0.01)}, 10)
    assert meter.means() == {"balance": 1.25}
    meter.reset()
    meter.add({"load": Term(torch.tensor([[1.0, 0.0]]), 0.0)}, 30)
    meter.add({"load": Term(torch.tensor([[0.0, 1.0]]), 0.0)}, 10)
    assert meter.means() == {"load": [[0.75, 0.25]]}
    meter.reset()
    meter.add({}, 10)
    assert meter.means() == {}


def test_positions_are_told_apart():
    input_ids = torch.tensor([[1, 3, 3, 8, 2, 0], [1, 9, 9, 9, 9, 2]])
    found = count_positions(input_ids, pad_id=0, image_id=3)
    assert found == {"text": 9, "image": 2, "padding": 1}


def test_shares_name_every_stream():
    shares = stream_shares(torch.tensor([0] * 9 + [2] * 11), STREAMS)
    assert shares == {"caption": 0.45, "interleaved": 0.0, "text": 0.55}


def test_log_survives_a_kill_in_the_middle_of_a_line(tmp_path):
    log = MetricsLog(tmp_path / "training_x.jsonl")
    rows = [{"step": step, "loss": 1 / (step + 2)} for step in range(1, 6)]
    for row in rows:
        log.append(row)
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')
    after_kill = MetricsLog(log.path)
    assert after_kill.rows() == rows
    after_kill.rewind(3)
    after_kill.append({"step": 4, "loss": 0.5})
    assert after_kill.rows() == [*rows[:3], {"step": 4, "loss": 0.5}]
    assert after_kill.num_rows == 4
    after_kill.rewind(0)
    assert after_kill.rows() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b"0.25", b"0.24"),
        lambda line: b"{}",
        lambda line: b"[]",
        lambda line: b'{"step": 2, "loss": 0.25}',
        lambda line: b"\xff" + line[1:],
        lambda line: b"[" * 100_000,
    ],
)
def test_rows_that_are_not_as_they_were_written_are_said_and_left_out(tmp_path, caplog, damage):
    log = MetricsLog(tmp_path / "training_x.jsonl")
    rows = [{"step": step, "loss": 1 / (step + 2), "by": {"10": 1, "9": 2}} for step in (1, 2, 3)]
    for row in rows:
        log.append({**row, "by": {10: 1, 9: 2}})
    log.close()
    assert log.rows() == rows
    assert not caplog.records
    lines = log.path.read_bytes().split(b"\n")
    log.path.write_bytes(b"\n".join([lines[0], damage(lines[1]), *lines[2:]]))
    assert log.rows() == [rows[0], rows[2]]
    assert f"{log.path}: 1 of 3 rows are damaged" in caplog.text


def test_log_refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        MetricsLog(tmp_path / "x.jsonl").append({"step": 1, "loss": float("nan")})


def test_without_timing_leaves_the_rest():
    assert without_timing([{"step": 1, "timing": {"seconds": 2.0}}]) == [{"step": 1}]
