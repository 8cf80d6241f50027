"""Environments: how one is laid over `base`, and how one is written for somebody's own data."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from kedro.config import OmegaConfigLoader
from kedro_rerun.errors import StalenessError

if TYPE_CHECKING:
    from mm1_pipeline.config.ingest import SourceConfig
    from mm1_pipeline.config.source_formats import RecordKind

OTHERS = "*"
"""Set to null in a mapping of an environment, it takes out all entries of `base` that the
environment does not name itself: an entry a sample gets later does not slip in either."""

_EVALUATION = re.compile(r"(held_?out|val|valid|validation|dev|eval|evaluation|test)(_.*)?", re.I)
"""Folders whose records are for scores, by the names that data sets give them."""
_TEXTS = ("caption", "text", "description", "title", "label", "content", "sentence")
"""Columns that hold the text, the likeliest first."""
_COUNTED = 2_000
_HELD_OUT = 0.1
_FEWEST_HELD_OUT = 8
_FOR_SHOTS = 12
"""Held-out records from which on four of them are shown before another is asked."""


class EnvironmentLoader(OmegaConfigLoader):
    """Kedro's loader, in whose environments `"*": null` takes out what `base` has beside."""

    @staticmethod
    def _soft_merge(
        config: dict[str, Any], env_config: dict[str, Any], env_path: str | None = None
    ) -> Any:
        kept, own = without_others(config, env_config)
        return OmegaConfigLoader._soft_merge(kept, own, env_path)


def without_others(
    base: Mapping[str, Any], environment: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is left of `base` under an environment, and the environment, without the signs.

    Args:
        base: Of any depth.
        environment: Is laid over it afterwards.
    """
    replaces = OTHERS in environment and environment[OTHERS] is None
    own = {name: value for name, value in environment.items() if not replaces or name != OTHERS}
    kept = {name: value for name, value in base.items() if not replaces or name in own}
    for name, value in own.items():
        if isinstance(value, Mapping):
            below = kept[name] if isinstance(kept.get(name), Mapping) else {}
            merged, own[name] = without_others(below, value)
            if name in kept and isinstance(kept[name], Mapping):
                kept[name] = merged
    return kept, own


@dataclass
class FoundSource:
    """A source that a folder holds.

    Attributes:
        name: What the environment calls it.
        config: Its format, path and columns.
        kind: Of its records.
        number: Records that can be read, up to some thousands.
        fractions: By which a part of them is held out.
        is_evaluation: Whether its folder's name says so.
    """

    name: str
    config: SourceConfig
    kind: RecordKind
    number: int
    fractions: list[float] = field(default_factory=list)
    is_evaluation: bool = False

    @property
    def entry(self) -> dict[str, Any]:
        """Its parameters, those that are no default."""
        config, layout = self.config, self.config.format.layout
        entry: dict[str, Any] = {"kind": self.kind.value, "format": config.format.value}
        entry["path"] = config.path
        if config.text_column != "caption" and layout.kind.value in ("caption", "text"):
            entry["text_column"] = config.text_column
        if config.image_column != "image":
            entry["image_column"] = config.image_column
        return entry


class _Plain(yaml.SafeDumper):
    """YAML as a person writes it: short lists in one line, no references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Plain.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True)
)
_Plain.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if set(text) & set("\n{}*") else None
    ),
)


def write_environment(name: str, folder: Path, conf: Path) -> list[str]:
    """Writes an environment whose sources are those of a folder, and none of the sample's.

    Args:
        name: Of the environment, and of its data's folder.
        folder: Holds the raw data: files of a format, or folders of such files.
        conf: The configuration's folder.

    Returns:
        What was found and written, a line each.

    Raises:
        StalenessError: The name is taken or none, or the folder holds nothing to learn from.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,99}", name):
        raise StalenessError(
            f"NAME: found {name!r}, expected letters, digits, `_` and `-`: a folder is called so."
        )
    place = conf / name
    if place.exists():
        raise StalenessError(f"NAME: found {place}, expected a name that no environment has.")
    sources = find_sources(folder)
    parameters, remarks = _parameters(sources, folder)
    place.mkdir(parents=True)
    head = f"# The data of {folder}, and none of the sample's; written by `kedro mm1 new-env`.\n"
    (place / "globals.yml").write_text(f"{head}data_root: data/{name}\n", encoding="utf-8")
    body = yaml.dump(parameters, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=96)
    explained = (
        f'{head}# `"*": null` takes out what base has there; without it, base\'s entries stay and '
        "share the weights.\n# Weights say how often a source is drawn within its stream, beside "
        "the others of it.\n"
    )
    (place / "parameters.yml").write_text(explained + body, encoding="utf-8")
    lines = [
        f"{source.name}: {source.number}{'+' if source.number >= _COUNTED else ''} records, "
        f"{source.kind.value}, format {source.config.format.value}, {source.config.path}"
        for source in sources
    ]
    return [*lines, *remarks, f"Written: {place}/globals.yml, {place}/parameters.yml"]


def find_sources(folder: Path) -> list[FoundSource]:
    """The sources in a folder: those of the files in it, or else those of the folders in it.

    Raises:
        StalenessError: There is none; the message says what lies there.
    """
    if not folder.is_dir():
        raise StalenessError(f"--from: found no folder {folder}, expected one of raw data.")
    found = _sources_of(folder, below=False)
    if not found:
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
        found = [source for path in folders for source in _sources_of(path, below=True)]
    if not found:
        files = (path for path in folder.rglob("*") if path.is_file())
        counts = Counter(path.suffix.lower() or "no suffix" for path in files).most_common(6)
        listed = ", ".join(f"{count} of {name}" for name, count in counts) or "nothing"
        raise StalenessError(
            f"--from: found no file in {folder} that any format can read ({listed}); "
            "expected, for instance, pictures beside a CSV whose first row is `image,caption`. "
            "docs/corpus.md lists the formats."
        )
    taken: set[str] = set()
    for source in found:
        plain = re.sub(r"\W+", "_", source.name).strip("_").lower()
        plain = plain if re.match(r"[a-z]", plain) else f"data_{plain}".rstrip("_")
        source.name = next(
            n for n in (plain, *(f"{plain}_{i}" for i in range(2, 99))) if n not in taken
        )
        taken.add(source.name)
    return found


def _sources_of(folder: Path, *, below: bool) -> list[FoundSource]:
    """Sources of a folder, no file of which is read twice; the one with most records first."""
    from mm1_pipeline.config.source_formats import SourceFormat
    from mm1_pipeline.corpus.readers.dispatch import open_files

    found: list[tuple[int, FoundSource, set[str]]] = []
    for number, source_format in enumerate(SourceFormat):
        source = _try_format(folder, source_format)
        if source is None:
            continue
        files = {file.name for file in open_files(source.config)}
        if below or any("/" not in name for name in files):
            found.append((number, source, files))
    chosen: list[FoundSource] = []
    taken: set[str] = set()
    for _, source, files in sorted(found, key=lambda item: (-item[1].number, item[0])):
        if not files & taken:
            chosen.append(source)
            taken |= files
    return chosen


def _try_format(folder: Path, source_format: Any) -> FoundSource | None:
    """A folder read as a format; None where no record of it comes out."""
    from mm1_pipeline.config.ingest import ReaderLimits, SourceConfig
    from mm1_pipeline.corpus.readers.base import RawRecord, Source, is_files_fault
    from mm1_pipeline.corpus.readers.dispatch import key_fraction, open_files, reader_of
    from mm1_pipeline.corpus.recognition import content_problems

    layout = source_format.layout
    place = folder.resolve()
    path = str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place)
    best: FoundSource | None = None
    for columns in _columns(folder, source_format):
        try:
            config = SourceConfig(kind=layout.kind, format=source_format, path=path)
            config = dataclasses.replace(config, **columns)
            limits = ReaderLimits()
            files = open_files(config)
            source = Source("s", config, files, limits)
            if not len(files) or content_problems("s", config, limits):
                return None
            reader = reader_of(source_format)
            if reader.problems(source):
                continue
            fractions: list[float] = []
            for item in reader.read(source):
                if isinstance(item, RawRecord):
                    fractions.append(key_fraction(item.key))
                if len(fractions) >= _COUNTED:
                    break
        except Exception as error:
            if not is_files_fault(error) and not isinstance(error, ValueError | OSError):
                raise
            continue
        if fractions and (best is None or len(fractions) > best.number):
            is_evaluation = bool(_EVALUATION.fullmatch(folder.name))
            name = f"eval_{folder.name}" if is_evaluation else folder.name
            best = FoundSource(name, config, layout.kind, len(fractions), fractions, is_evaluation)
    return best


def _columns(folder: Path, source_format: Any) -> Iterator[dict[str, str]]:
    """Columns to try: the usual ones, then those that the first file has by their likely names."""
    from mm1_pipeline.config.source_formats import Content

    yield {}
    names = _column_names(folder, source_format)
    if not names:
        return
    content, lowered = source_format.layout.content, {name.lower(): name for name in names}
    texts = [lowered[name] for name in _TEXTS if name in lowered] + names
    if content is Content.JSON:
        if source_format.value == "jsonl":
            yield from ({"text_column": text} for text in dict.fromkeys(texts))
        return
    for image in names:
        for text in dict.fromkeys(texts):
            if text != image:
                yield {"image_column": image, "text_column": text}


def _column_names(folder: Path, source_format: Any) -> list[str]:
    """Columns of the first file of a format's in a folder; none where it has no columns."""
    import csv
    import json

    from mm1_pipeline.config.source_files import matches
    from mm1_pipeline.config.source_formats import Content
    from mm1_pipeline.corpus import decompression

    layout = source_format.layout
    paths = (p for p in sorted(folder.rglob("*")) if matches(p.name, layout.files, "*"))
    path = next(paths, None)
    if path is None:
        return []
    if layout.content is Content.PARQUET:
        import pyarrow.parquet as pq

        try:
            return list(dict.fromkeys(pq.read_schema(path).names))[:30]
        except (OSError, ValueError):
            return []
    with path.open("rb") as stream:
        try:
            head = next(decompression.read_chunks(stream, path.name), b"")
        except ValueError:
            return []
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    line = head.decode(encoding, "replace").lstrip().partition("\n")[0]
    if layout.content is Content.TABLE:
        sign = max(",;\t|", key=line.count)
        return [name.strip() for name in next(csv.reader([line], delimiter=sign), [])][:30]
    try:
        entry = json.loads(line)
    except ValueError:
        return []
    texts = (
        {n: v for n, v in entry.items() if isinstance(v, str)} if isinstance(entry, dict) else {}
    )
    return sorted(texts, key=lambda name: -len(texts[name]))[:30]


def _parameters(sources: list[FoundSource], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The environment's parameters, and what somebody should know of them."""
    from mm1_pipeline.config.source_formats import RecordKind

    remarks: list[str] = []
    entries: dict[str, Any] = {OTHERS: None}
    streams: dict[RecordKind, dict[str, float]] = {}
    tasks: dict[str, Any] = {OTHERS: None}
    for source in sources:
        is_pair = source.config.format.layout.is_pair
        if source.is_evaluation:
            if is_pair:
                entries[source.name] = {**source.entry, "kind": "caption", "split": "evaluation"}
                tasks[f"{source.name}_captions"] = _caption_task(source.name, source.number)
            else:
                remarks.append(f"{source.name}: left out; name a task for it (docs/evaluation.md).")
            continue
        part = _held_out_share(source.fractions) if is_pair else 0.0
        share = {"share": [part, 1.0]} if part else {}
        own = {**source.entry, **share, **_own_rules(source.kind)}
        entries[source.name] = own
        streams.setdefault(source.kind, {})[source.name] = 1.0
        if source.kind is RecordKind.CAPTION:  # The same pairs teach to answer.
            entries[f"{source.name}_answers"] = {**source.entry, "kind": "conversation", **share}
            streams.setdefault(RecordKind.CONVERSATION, {})[f"{source.name}_answers"] = 1.0
        if part:
            held = sum(fraction < part for fraction in source.fractions)
            name = f"eval_{source.name}"
            entries[name] = {**source.entry, "kind": "caption", "split": "evaluation",
                             "share": [0.0, part]}  # fmt: skip
            tasks[f"{source.name}_captions"] = _caption_task(name, held)
            remarks.append(f"{name}: {part:.0%} of its records are held out for evaluation.")
    pretraining = [kind for kind in streams if kind is not RecordKind.CONVERSATION]
    if not pretraining:
        raise StalenessError(
            f"--from: found conversations alone in {folder}, expected captions, interleaved "
            "documents or text as well: pre-training learns from those."
        )
    mixture = {
        kind.value: {"share": share, "sources": {OTHERS: None, **streams[kind]}}
        for kind, share in _shares(pretraining).items()
    }
    parameters: dict[str, Any] = {
        "ingest": {"sources": entries},
        "pretrain": {"mixture": {"streams": {OTHERS: None, **mixture}}},
    }
    alone = {"vision_pretrain": RecordKind.CAPTION, "text_pretrain": RecordKind.TEXT}
    for stage, kind in alone.items():
        if kind in streams:
            stream = {"share": 1.0, "sources": {OTHERS: None, **streams[kind]}}
            parameters[stage] = {
                "training": {"mixture": {"streams": {OTHERS: None, kind.value: stream}}}
            }
    if RecordKind.CONVERSATION in streams:
        stream = {"share": 1.0, "sources": streams[RecordKind.CONVERSATION]}
        parameters["sft"] = {"mixture": {"streams": {OTHERS: None, "own": stream}}}
    else:
        remarks.append("No conversations: run `--pipeline=pretrain`; `sft` has nothing to learn.")
    if len(tasks) == 1:
        remarks.append(
            "No pairs to hold out: name a task in `evaluate.tasks` (docs/evaluation.md) before "
            "whole runs, or run `--pipeline=pretrain` alone, with "
            "`ingest.decontamination.required: false`: nothing is there to keep out of it."
        )
    parameters["evaluate"] = {"tasks": tasks}
    return parameters, remarks


def _own_rules(kind: RecordKind) -> dict[str, Any]:
    """Rules that are made for the web, and that somebody's own collection is not held to."""
    match kind.value:
        case "caption":  # A label is a caption too, and one that many pictures have.
            rules = {"min_words": 1, "min_characters": 1}
            return {"captions": rules, "deduplication": {"max_caption_occurrences": None}}
        case "text" | "interleaved":
            return {"text": {"defaults": False}}
        case _:
            return {}


def _held_out_share(fractions: list[float]) -> float:
    """A tenth, or of few records as much as makes a handful, but never more than a third."""
    for share in (_HELD_OUT, 0.15, 0.2, 0.25, 0.3):
        if sum(fraction < share for fraction in fractions) >= _FEWEST_HELD_OUT:
            return share
    return 0.33 if sum(fraction < 0.33 for fraction in fractions) >= 2 else 0.0


def _caption_task(source: str, number: int) -> dict[str, Any]:
    return {
        "source": source,
        "metric": "cider",
        "prompt": "{image}",
        "stop": ["\n"],
        "max_new_tokens": 30,
        "shots": [0, 4] if number >= _FOR_SHOTS else [0],
    }


def _shares(kinds: list[RecordKind]) -> dict[RecordKind, float]:
    """MM1's 45 : 45 : 10; where a kind is missing, the other with images has its share."""
    text = {kind: 0.1 if len(kinds) > 1 else 1.0 for kind in kinds if kind.value == "text"}
    shown = [kind for kind in kinds if kind.value != "text"]
    rest = round(1.0 - sum(text.values()), 6)
    return {**{kind: rest / len(shown) for kind in shown}, **text}
