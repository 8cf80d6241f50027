"""Whether a node must run, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kedro_rerun.fingerprint import Cause, Fingerprint
from kedro_rerun.graph import Dataset, Storage
from kedro_rerun.locks import NodeLock, RunRecord
from kedro_rerun.outputs import OutputStore
from kedro_rerun.parameters import Change, diff


class State(StrEnum):
    """What `status` calls a node."""

    FRESH = "fresh"
    """Its outputs are what it would make now."""
    STALE = "stale"
    """It would, or may, make something else now."""
    MISSING = "missing"
    """An output does not exist."""


class Action(StrEnum):
    """What the runner does with a node."""

    SKIP = "skip"
    ACTIVATE = "activate"
    """Puts the outputs of an earlier run back in place."""
    FETCH = "fetch"
    """Takes the outputs from the shared cache."""
    RUN = "run"


@dataclass(frozen=True)
class Reason:
    """One cause of a verdict."""

    cause: Cause
    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.cause}:{self.name}: {self.detail}" if self.name else self.detail


@dataclass(frozen=True)
class Root:
    """What a reason goes back to: something that changed, and the node where it did."""

    node: str
    reason: Reason

    @property
    def may_alter_nothing(self) -> bool:
        """Whether it is code or a library's version, of which a person may know better."""
        return self.reason.cause in (Cause.CODE, Cause.LIBRARY)


@dataclass(frozen=True)
class Verdict:
    """What is to be done with one node."""

    node: str
    state: State
    action: Action
    reasons: tuple[Reason, ...] = ()
    fingerprint: Fingerprint | None = None
    """None where an input is not known before an earlier node has run."""

    known: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What is known of the fingerprint where not all is."""

    roots: tuple[Root, ...] = field(default=(), compare=False)
    """What the reasons go back to, through the nodes before; see `Planner`."""

    @property
    def components(self) -> Mapping[str, str]:
        """What decides the outputs, as far as it is known."""
        return self.fingerprint.components if self.fingerprint is not None else self.known

    @property
    def may_alter_nothing(self) -> bool:
        """Whether all goes back to code and versions of libraries: a person may know that the
        outputs stay what they are, so an expensive node asks first.
        """
        return bool(self.roots) and all(root.may_alter_nothing for root in self.roots)

    @property
    def is_certain(self) -> bool:
        """Whether the node will run whatever the nodes before it make."""
        return any(reason.cause is not Cause.UPSTREAM for reason in self.reasons)


def judge(
    node: str,
    fingerprint: Fingerprint,
    lock: NodeLock,
    outputs: Iterable[Dataset],
    store: OutputStore,
) -> Verdict:
    """Decides about a node whose inputs are all known.

    Args:
        node: its name, for the verdict.
        fingerprint: what decides its outputs now.
        lock: its earlier runs.
        outputs: all it makes; those in memory hold nothing to look at.
        store: looks at the outputs.

    Returns:
        Skip when the last run had this fingerprint and its outputs are whole; activate when an
        earlier run had it and its outputs can be put back; otherwise run, with reasons.
    """
    outputs = list(outputs)
    run = lock.run(fingerprint.digest)
    if run is None:
        reasons = changes_since(lock, fingerprint.components)
        return Verdict(node, state_of(outputs, store), Action.RUN, tuple(reasons), fingerprint)
    is_head = lock.head == fingerprint.digest and lock.attempt is None
    reasons = _output_problems(run, outputs, store, can_be_put_back=not is_head)
    if reasons:
        return Verdict(node, state_of(outputs, store), Action.RUN, tuple(reasons), fingerprint)
    in_place = is_head and all(
        store.is_in_place(output, run.outputs[output.name]) for output in outputs
    )
    action = Action.SKIP if in_place else Action.ACTIVATE
    return Verdict(node, State.FRESH, action, (), fingerprint)


def changes_since(lock: NodeLock, components: Mapping[str, str]) -> list[Reason]:
    """Explains a fingerprint by what differs from the last run.

    Args:
        lock: the node's runs.
        components: of the fingerprint now; some inputs may be missing as not yet known.

    Returns:
        A reason for each component that differs.
    """
    latest = lock.latest
    if latest is None:
        told = f"its record is damaged: {lock.damaged}" if lock.damaged else "no record of a run"
        return [Reason(Cause.RECORD, "", told)]
    return [explain_change(change) for change in diff(latest.components, components)]


def _output_problems(
    run: RunRecord, outputs: list[Dataset], store: OutputStore, can_be_put_back: bool
) -> list[Reason]:
    reasons = []
    for output in outputs:
        if output.storage is Storage.MEMORY:
            continue
        record = run.outputs.get(output.name)
        if record is None:
            reasons.append(Reason(Cause.OUTPUT, output.name, "not recorded"))
        elif not (can_be_put_back and store.is_available(output, record)):
            problems = store.problems(output, record)
            reasons += [Reason(Cause.OUTPUT, output.name, problem) for problem in problems]
    return reasons


def state_of(outputs: Iterable[Dataset], store: OutputStore) -> State:
    """Stale where every output exists, else missing."""
    persistent = [output for output in outputs if output.storage is not Storage.MEMORY]
    return State.STALE if all(store.exists(output) for output in persistent) else State.MISSING


def explain_change(change: Change) -> Reason:
    """A component of a fingerprint that differs, as a reason."""
    cause, _, name = change.path.partition(":")
    if cause in (Cause.CODE, Cause.INPUT):
        return Reason(Cause(cause), name, _describe_hash_change(change.before, change.after))
    shown = f"{change.before or '(absent)'} -> {change.after or '(absent)'}"
    return Reason(Cause(cause), name, shown)


def _describe_hash_change(before: str | None, after: str | None) -> str:
    if before is None:
        return "new"
    if after is None:
        return "no longer used"
    return f"changed ({before[:8]} -> {after[:8]})"


def summarize(reasons: tuple[Reason, ...], shown: int = 3) -> str:
    """The first reasons in one line, and how many more there are."""
    text = "; ".join(str(reason) for reason in reasons[:shown])
    more = len(reasons) - shown
    return f"{text}; and {more} more" if more > 0 else text
