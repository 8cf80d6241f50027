"""The one decorator behind every parameter class."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, dataclass_transform

from annotated_types import GroupedMetadata
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, PydanticCustomError

from mm1_pipeline.ground.identity import EXTENT, INPUT_PATH, OPERATIONAL

T = TypeVar("T")


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: entry for name, entry in value.items() if entry is not None}


NULL_REMOVES = BeforeValidator(_without_nulls)
"""Metadata of a mapping whose entries an environment may take out: environments are merged into
`base` entry by entry, so one that wants other sources sets those of `base` to null."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_LONGEST_NAME = 100


def _plain_name(name: str) -> str:
    if len(name) > _LONGEST_NAME or not _PLAIN_NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"found the name {name!r}, expected at most {_LONGEST_NAME} letters, digits, `_`, `-` "
            "and single dots, the first a letter or digit: files and folders are called by it."
        )
    return name


Name = Annotated[str, AfterValidator(_plain_name)]
"""Key of a mapping whose entries files and folders are called by: none leads elsewhere."""


MOST = 2**53
"""The largest count: up to it JSON keeps whole numbers as they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class bounds(GroupedMetadata):  # noqa: N801 - it is written like a function, as Field is
    """Metadata of a number: what it may be, both ends. Every number of a parameter has it.

    What is not finite is refused whatever the bounds (`parameters`), and so is a truth value, which
    Python would take for 0 or 1.

    Attributes:
        ge: The least that is allowed.
        gt: What it must be above of.
        le: The most that is allowed.
        lt: What it must be below of.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __iter__(self) -> Iterator[object]:
        yield Field(ge=self.ge, gt=self.gt, le=self.le, lt=self.lt)
        yield WrapValidator(self._say)

    def _say(self, value: Any, check: Callable[[Any], Any], info: ValidationInfo) -> Any:
        """Has pydantic check, and says what it refuses as everything else of parameters is said."""
        if not isinstance(value, bool):
            try:
                return check(value)
            except ValidationError:
                pass
        said = {"name": info.field_name or "number", "found": repr(value), "expected": str(self)}
        raise PydanticCustomError(
            "out_of_bounds", "{name}: found {found}, expected {expected}.", said
        )

    def __str__(self) -> str:
        low = f"at least {self.ge}" if self.ge is not None else f"more than {self.gt}"
        high = f"at most {self.le}" if self.le is not None else f"less than {self.lt}"
        return low if self.le == MOST else f"{low} and {high}"


Count = Annotated[int, bounds(ge=1, le=MOST)]
"""How many, and not none."""
Number = Annotated[int, bounds(ge=0, le=MOST)]
"""How many, perhaps none."""
Share = Annotated[float, bounds(ge=0, le=1)]
Positive = Annotated[float, bounds(gt=0, le=MOST)]
Weight = Annotated[float, bounds(ge=0, le=MOST)]
"""What counts for nothing at 0."""
LearningRate = Annotated[float, bounds(gt=0, le=1)]
"""Weights move by about so much a step; they are of the order of 1 and below."""
Epsilon = Annotated[float, bounds(gt=0, le=1)]
"""What keeps a division from dividing by nothing."""
Seconds = Annotated[float, bounds(gt=0, le=31_536_000)]
"""Up to a year."""
Seed = Annotated[int, bounds(ge=0, le=2**32 - 1)]
"""What NumPy and PyTorch take alike."""
Workers = Annotated[int, bounds(ge=1, le=4_096)]
"""Processes, threads or connections at once, on one machine."""
Tries = Annotated[int, bounds(ge=0, le=1_000)]
"""Further tries after the first."""
Shots = Annotated[int, bounds(ge=0, le=1_000)]
"""Examples shown in a prompt."""
Resamples = Annotated[int, bounds(ge=2, le=10_000_000)]
"""Of a bootstrap; one has no standard error."""
NgramWords = Annotated[int, bounds(ge=1, le=1_000)]
"""Words of an n-gram."""
Width = Annotated[int, bounds(ge=1, le=2**24)]
"""Of a layer or a grid of tokens, heads included."""
MOST_LAYERS = 10_000
Layers = Annotated[int, bounds(ge=1, le=MOST_LAYERS)]
"""How many of what is built one by one, layers or experts: a damaged or hostile config that says
2^70 is refused, not counted up to."""
Pixels = Annotated[int, bounds(ge=1, le=65_536)]
"""Of a side of an image."""


_NO_DATA = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog)(\.(txt|md|rst|html?|pdf|cff|bib))?"
    r"|thumbs\.db|ehthumbs\.db|desktop\.ini|.*\.(md|rst)",
    re.IGNORECASE,
)
"""Names that people and file managers give to what is beside data."""


def operational(*, default: Any) -> Any:
    """Declares a field that changes speed, cost or logging, but no result.

    Staleness ignores such fields: a new number of workers reruns nothing.
    """
    return dataclasses.field(default=default, metadata={OPERATIONAL: True})


def extent(*, default: Any = dataclasses.MISSING) -> Any:
    """Declares a field that says how much is made, or where, but not what a part of it holds.

    A stage that was interrupted goes on with another; one that is finished is run again, for it
    would make more or less.
    """
    return dataclasses.field(default=default, metadata={EXTENT: True})


class Selection(NamedTuple):
    """Which files count of those that a parameter names."""

    place: str
    """Folder, or file."""
    counts: Callable[[str], bool]
    """Whether a file in the folder does, by its relative name."""
    follows_out: bool = True
    """Whether links that lead out of the folder are followed."""


def check_order(group: object, *pairs: tuple[str, str]) -> None:
    """Refuses a least that is above the most: nothing would pass.

    Args:
        group: the parameters.
        pairs: names of the two fields; one that is None does not count.

    Raises:
        ValueError: names the first.
    """
    for least, most in pairs:
        low, high = getattr(group, least), getattr(group, most)
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"{least}: found {low}, expected at most {most} ({high}): nothing would pass both."
            )


def is_data(name: str) -> bool:
    """Whether a file in a folder of data is any: not hidden, no README, nothing a system left.

    Args:
        name: of the file, relative to the folder.
    """
    *_, base = parts = name.split("/")
    return not any(part.startswith(".") for part in parts) and not _NO_DATA.fullmatch(base)


def _all_data(_group: Any, place: str) -> Selection:
    return Selection(place, is_data)


def input_path(
    *, default: Any = dataclasses.MISSING, reads: Callable[[Any, str], Selection] = _all_data
) -> Any:
    """Declares a field that names a file or folder which is read.

    Staleness counts what lies there, not where it lies: moving data reruns nothing,
    changing it does.

    Args:
        default: value of the field.
        reads: tells from the group and the path which files count.
    """
    return dataclasses.field(default=default, metadata={INPUT_PATH: reads})


@dataclass_transform(
    frozen_default=True,
    kw_only_default=True,
    field_specifiers=(dataclasses.field, operational, input_path, extent),
)
def parameters(cls: type[T]) -> type[T]:
    """Turns a class into a frozen parameter group that refuses unknown fields.

    Nested groups are built from nested YAML, and an error names the dotted path of the
    field, so a misspelt parameter stops a run before any node starts. YAML that names some fields
    of a nested group leaves the others as this class declares them, not as the group's class
    does: a stage whose optimizer is AdaFactor keeps it when only its learning rate is changed.
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    given = [getattr(value, "default", value) for value in vars(cls).values()]
    if any(map(dataclasses.is_dataclass, given)):
        check = classmethod(_keep_defaults)
        cls._keep_defaults = model_validator(mode="before")(check)  # pyright: ignore
    return dataclass(frozen=True, kw_only=True, config=config)(cls)  # pyright: ignore[reportReturnType]


def _keep_defaults(cls: type, given: Any, info: ValidationInfo) -> Any:
    """Fills what YAML leaves out of nested groups from the defaults of this class.

    Args:
        cls: The class.
        given: Values by name, as YAML gives them or, from Kedro, as arguments.
        info: Of the validation.
    """
    values = given.kwargs if isinstance(given, ArgsKwargs) else given
    if not isinstance(values, Mapping):
        return given
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    whole = {name: _over(defaults.get(name), value) for name, value in values.items()}
    if info.mode == "json":
        # What a validator returns is no JSON to pydantic any more, and strictly a list is no tuple.
        whole = {name: _as_tuples(value) for name, value in whole.items()}
    return ArgsKwargs(given.args, whole) if isinstance(given, ArgsKwargs) else whole


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _over(default: Any, value: Any) -> Any:
    if not isinstance(value, Mapping) or not dataclasses.is_dataclass(default):
        return value
    whole = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    return whole | {name: _over(whole.get(name), entry) for name, entry in value.items()}


def only(group: T, *paths: str) -> T:
    """A copy of a group that has these fields and None for all others.

    For nodes that read no more: what is None makes nothing stale, and reading it fails.

    Args:
        group: Its values are checked already and are not checked again.
        paths: Fields, those of nested groups with dots.
    """
    wanted: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        wanted.setdefault(name, []).append(rest)
    names = {field.name for field in dataclasses.fields(group)}  # pyright: ignore[reportArgumentType]
    assert wanted.keys() <= names, (wanted.keys() - names, type(group))
    parts = {
        name: only(getattr(group, name), *below)
        for name, below in wanted.items()
        if "" not in below
    }
    return with_fields(group, **dict.fromkeys(names - wanted.keys()), **parts)


def with_fields(group: T, **values: Any) -> T:
    """A copy of a group with other values of some fields, which are not checked again."""
    changed = copy.copy(group)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed
