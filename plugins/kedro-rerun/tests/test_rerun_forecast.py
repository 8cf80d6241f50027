"""What is said of a run before it begins."""

from __future__ import annotations

from kedro_rerun.forecast import forecast
from kedro_rerun.locks import NodeLock, RunRecord
from kedro_rerun.verdict import Action


class Planned:
    def __init__(self, action: Action) -> None:
        self.action = action


def lock(*seconds: float | None) -> NodeLock:
    provenance = ({} if value is None else {"seconds": value} for value in seconds)
    return NodeLock("node", runs=tuple(RunRecord("f", {}, {}, one) for one in provenance))


def said(actions: dict[str, Action], locks: dict[str, NodeLock]) -> str:
    plan = {name: Planned(action) for name, action in actions.items()}
    return forecast(plan, lambda name: locks.get(name, lock()))  # pyright: ignore[reportArgumentType]


def test_time_is_that_of_the_last_runs_and_nothing_is_guessed():
    run, skip = Action.RUN, Action.SKIP
    assert said({"a": skip}, {}) == "Plan: nothing of 1 nodes has to run."
    assert "unknown, as none of them ran here" in said({"a": run, "b": skip}, {"b": lock(9.0)})
    text = said(
        {"a": run, "b": run, "c": run, "d": skip},
        {"a": lock(5.0, 600.0), "b": lock(None, 30.0), "d": lock(1000.0)},
    )
    assert text == (
        "Plan: 3 of 4 nodes run, in about 10 min by their last runs (a 10 min, b 30 s); "
        "unknown for 1."
    )
