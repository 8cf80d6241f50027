"""Raw sources to clean records, partition by partition, in memory that does not grow.

Evaluation sources come first, because what they hold must not be in the others; where it was read
before, the others are given an index of it. Each source is parted into partitions of whole files
(`partitions.py`), which pass through the steps of `steps.py`; between the steps, queries over
tables of keys find what only the whole source shows. Everything that is finished stays: a run that
was killed goes on with the partitions it lacks, and one with other parameters or files takes the
sources that they do not touch as they are.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from kedro_rerun.files import hash_file
from kedro_rerun.inputs import path_state
from kedro_rerun.parameters import flatten_parameters

from mm1_pipeline.config.ingest import (
    IngestConfig,
    RecordKind,
    SourceConfig,
    SourceFormat,
    SourceSplit,
)
from mm1_pipeline.corpus.caption_scores import SCORES_VERSION, LoadScorer, ScorerReference
from mm1_pipeline.corpus.decontamination import SUMMARY, build_index, items_of, read_summary
from mm1_pipeline.corpus.deduplication import find_frequent, find_repeats
from mm1_pipeline.corpus.earlier_sources import is_wanted_later, keep_keys, open_earlier
from mm1_pipeline.corpus.engine import Engine
from mm1_pipeline.corpus.files import SourceFiles
from mm1_pipeline.corpus.partitions import plan_partitions
from mm1_pipeline.corpus.preflight import check_sources
from mm1_pipeline.corpus.quarantine import QUARANTINE_SCHEMA, Tally
from mm1_pipeline.corpus.readers.dispatch import input_listing, open_files, unread_files
from mm1_pipeline.corpus.records import RECORDS, read_parts, write_sources
from mm1_pipeline.corpus.steps import QUARANTINE as PARTITION_QUARANTINE
from mm1_pipeline.corpus.steps import (
    STEPS,
    TALLY,
    Counts,
    PartitionTask,
    finish_folder,
    index_partition,
    judge_partition,
    passed_over_to_json,
    read_partition,
    write_partition,
)
from mm1_pipeline.ground.files import (
    link_or_copy,
    read_sealed,
    seal,
    whole_folder,
    write_json,
)
from mm1_pipeline.ground.identity import identity
from mm1_pipeline.ground.progress import Progress
from mm1_pipeline.ground.rejects import Passed, Reason

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine"

_WORK = ".ingest"
_FINISHED = ".finished"
_FINISHED_MARK = "finished.json"
_STARTED = "started.json"
_INDEX = ".evaluation"
_LAYOUT = 4
"""Raise it when the files of a source change their layout, so that none is reused."""


def ingest(
    config: IngestConfig,
    output_dir: Path,
    *,
    evaluation_index: Path | None = None,
    work_dir: Path | None = None,
    part: Callable[[str], Path] | None = None,
    load_scorer: LoadScorer | None = None,
) -> dict[str, Any]:
    """Reads, filters and de-duplicates every source; what is dropped is listed and counted.

    Source: MM1, Appendix on interleaved documents (unconfirmed values). Deviation: MM1 looks for
    frequent images over all its documents; here in each source.

    Args:
        config: the sources and the rules.
        output_dir: gets `records/`, `quarantine/` and `sources.json`.
        evaluation_index: what training sources must not hold, as `build_index` wrote it. None makes
            one of the evaluation sources in `config`.
        work_dir: where finished partitions wait until all of a source are; a run that finds them
            there does not make them again. None takes a folder inside `output_dir`.
        part: gives the folder for a finished source by a name that tells what it was made from,
            on the file system of `work_dir`; one that lies there is not made again. None keeps
            them in `work_dir` until all are finished.
        load_scorer: gives what sources with a `clip_score` are scored by.

    Returns:
        The report: per source read, kept and rejected records and images, the same for every
        step, and their totals; and what the evaluation data was compared with.

    Raises:
        ValueError: paths or columns of sources, or models that score captions, do not fit; all
            are named at once.
    """
    scorers = check_sources(config, load_scorer)
    work_dir = work_dir or output_dir / _WORK
    part = part or (work_dir / _FINISHED).joinpath
    reports: dict[str, Any] = {}
    fingerprints: dict[str, str] = {}
    finished: dict[str, Path] = {}
    index = evaluation_index
    with Engine(config) as engine:
        for name in _evaluation_first(config):
            if config.sources[name].split == SourceSplit.TRAIN and index is None:
                index = _index_evaluation(config, finished, work_dir)
            scorer = scorers.get(name)
            earlier = [fingerprints[other] for other in config.earlier_sources(name)]
            fingerprint = _fingerprint(name, config, index, scorer, earlier)
            fingerprints[name] = fingerprint
            finished[name] = part(f"{name}/{fingerprint[:16]}")
            report = _finished_report(finished[name], fingerprint)
            if report is None:
                folder = work_dir / name
                _start_or_resume(folder, fingerprint)
                report = _ingest_source(name, config, folder, index, scorer, engine, finished)
                if _fingerprint(name, config, index, scorer, earlier) != fingerprint:
                    raise ValueError(
                        f"ingest.sources.{name}.path: found files that were written to while they "
                        "were read, so nobody can tell what was. Run it again when nothing writes "
                        "to them."
                    )
                _finish(folder, fingerprint, report, finished[name])
            else:
                logger.info("%s: finished by an earlier run, kept", name)
            reports[name] = report
            _warn_if_little_is_kept(name, report)
    for name in config.sources:
        _publish(finished[name], name, output_dir)
    report = join_reports([_report_of(reports, index)], list(config.sources))
    shutil.rmtree(work_dir / _INDEX, ignore_errors=True)
    if work_dir == output_dir / _WORK:
        shutil.rmtree(work_dir, ignore_errors=True)
    write_sources(output_dir, config.sources)
    return report


def join_reports(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """One report of what several calls ingested.

    Args:
        reports: Theirs. Those that compared training sources with evaluation data compared them
            with the same.
        names: Of all sources, in the order that the report has them in.
    """
    sources = {name: found for report in reports for name, found in report["sources"].items()}
    summary: dict[str, Any] = {}
    rejected: dict[str, Any] = {}
    for report in reports:
        summary |= report["decontamination"]
        rejected |= summary.pop("rejected")
    return {
        "sources": {name: sources[name] for name in names},
        "totals": _totals(sources),
        "decontamination": {**summary, "rejected": dict(sorted(rejected.items()))},
    }


def without_records(report: Mapping[str, Any]) -> list[str]:
    """Sources that gave nothing which is a record of their format, whatever rules make of it.

    Args:
        report: What `ingest` gave.

    Returns:
        A text for each: no damage costs a whole source unsaid, nor does a format that it is not.
        What is passed over is of the format and not wanted, such as entries of another `ids`.
    """
    problems = []
    for name, found in report["sources"].items():
        of_reader = found["steps"]["read"]
        if not of_reader["kept"] and not found["passed_over"]:
            rejected = of_reader["rejected"]
            reasons = ", ".join(f"{why} ({n})" for why, n in rejected.items()) or "nothing at all"
            problems.append(
                f"ingest.sources.{name}: found no record of format {found['format']}, but "
                f"{reasons}; expected files of that format, whole ones. Correct path or format, "
                "mend the files, or take the source out."
            )
    return problems


def _evaluation_first(config: IngestConfig) -> list[str]:
    return sorted(config.sources, key=lambda name: config.sources[name].split == SourceSplit.TRAIN)


def _index_evaluation(config: IngestConfig, finished: Mapping[str, Path], work_dir: Path) -> Path:
    """Makes the index of the evaluation sources, unless an earlier run made the same."""
    names = [n for n, s in config.sources.items() if s.split == SourceSplit.EVALUATION]
    places = [finished[name] / RECORDS for name in names]
    files = [file for place in places for file in sorted(place.glob("part-*.parquet"))]
    rules = config.decontamination
    made_from = identity(rules=rules, records=[hash_file(file) for file in files])
    folder = work_dir / _INDEX / made_from[:16]
    if not (folder / SUMMARY).exists():
        shutil.rmtree(folder.parent, ignore_errors=True)
        records = (record for place in places for record in read_parts(place))
        with whole_folder(folder) as unfinished:
            build_index(items_of(records), rules, unfinished)
    return folder


def _ingest_source(
    name: str,
    config: IngestConfig,
    folder: Path,
    index: Path | None,
    scorer: ScorerReference | None,
    engine: Engine,
    finished: Mapping[str, Path],
) -> dict[str, Any]:
    source = config.sources[name]
    files = open_files(source)
    tasks = _plan_tasks(name, config, folder, index, scorer, in_process=engine.in_process)
    sizes = {file.name: file.size for file in files}
    weights = [sum(sizes[name] for name in task.files) for task in tasks]

    def run(step: str, function: Callable[[PartitionTask], int]) -> None:
        waiting = [task for task in tasks if not task.step(step).exists()]
        if len(waiting) < len(tasks):
            done = len(tasks) - len(waiting)
            logger.info("%s, %s: %d of %d partitions are finished", name, step, done, len(tasks))
        results = engine.run(function, waiting)
        if len(waiting) < 2:  # which `track_source` tells of
            deque(results, maxlen=0)
            return
        total = sum(weights[task.number] for task in waiting)
        with Progress(
            f"{name}, {step}", unit="records", total=total, log_seconds=0, has_bar=False
        ) as progress:
            for number, (task, num_records) in enumerate(results, start=1):
                note = f"partition {number} of {len(waiting)}"
                progress.advance(weights[task.number], count=num_records, note=note)

    if tasks[0].prepared is not None:
        run("index", index_partition)
        finish_folder(folder / "prepared", lambda part: _merge_indices(tasks, part))
    run("read", read_partition)
    finish_folder(
        folder / "frequent_images", lambda part: _find_frequent_images(source, tasks, part)
    )
    run("judge", judge_partition)
    finish_folder(
        folder / "repeats", lambda part: _find_repeats(config, source, tasks, part, finished)
    )
    run("write", write_partition)
    if is_wanted_later(name, config):
        keep_keys(folder, tasks)
    report = _finish_source(source, tasks, folder)
    return _add_unread_files(name, source, files, report)


def _finish(folder: Path, fingerprint: str, report: dict[str, Any], place: Path) -> None:
    """Removes what only an unfinished source needs, seals the rest, and moves it to its place."""
    for step in ("index", "prepared", "read", "frequent_images", "judge", "repeats", "write"):
        shutil.rmtree(folder / step, ignore_errors=True)
    (folder / _STARTED).unlink(missing_ok=True)
    (folder / _FINISHED_MARK).unlink(missing_ok=True)
    content = {"fingerprint": fingerprint, "report": report, "files": _hash_files(folder)}
    write_json(folder / _FINISHED_MARK, seal(content))
    shutil.rmtree(place, ignore_errors=True)  # what it lacked or had damaged
    place.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(place)


def _hash_files(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def _start_or_resume(folder: Path, fingerprint: str) -> None:
    """Keeps the partitions of an earlier run with the same parameters and files, and no other."""
    started = folder / _STARTED
    try:
        if started.read_text(encoding="utf-8") == fingerprint:
            return
    except OSError:
        pass
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started.write_text(fingerprint, encoding="utf-8")


def _plan_tasks(
    name: str,
    config: IngestConfig,
    folder: Path,
    index: Path | None,
    scorer: ScorerReference | None,
    *,
    in_process: bool,
) -> list[PartitionTask]:
    source = config.sources[name]
    partitions = plan_partitions(source, open_files(source), config.partition_bytes)
    is_web = source.format == SourceFormat.WARC_HTML
    prepared = folder / "prepared" if is_web and len(partitions) > 1 else None
    return [
        PartitionTask(
            name,
            config,
            folder,
            number,
            files,
            label=name if len(partitions) == 1 else f"{name} {number + 1}/{len(partitions)}",
            shows_progress=in_process or len(partitions) == 1,
            decontamination=index,
            prepared=prepared,
            scorer=scorer,
        )
        for number, files in enumerate(partitions)
    ]


def _merge_indices(tasks: list[PartitionTask], folder: Path) -> None:
    """Puts together where the images lie that pages of any partition may show."""
    from mm1_pipeline.corpus.readers.warc_index import load_places, merge_places, save_places

    save_places(folder, merge_places([load_places(task.step("index")) for task in tasks]))


def _find_frequent_images(source: SourceConfig, tasks: list[PartitionTask], folder: Path) -> None:
    """What occurs all over the source."""
    allowed = source.image_rules.max_occurrences
    for column in ("url", "sha256"):
        if allowed is None:
            (folder / column).mkdir()
        else:
            paths = [task.step("read") / "images.parquet" for task in tasks]
            find_frequent(paths, column, allowed, folder / column)


def _find_repeats(
    config: IngestConfig,
    source: SourceConfig,
    tasks: list[PartitionTask],
    folder: Path,
    finished: Mapping[str, Path],
) -> None:
    """What repeats an earlier record once boilerplate is gone."""
    if source.split == SourceSplit.EVALUATION:
        return
    judged = [task.step("judge") for task in tasks]
    tables = {name: [step / f"{name}.parquet" for step in judged] for name in ("exact", "names")}
    if source.kind == RecordKind.CAPTION:
        tables["captions"] = [step / "captions.parquet" for step in judged]
        tables["pictures"] = [step / "pictures.parquet" for step in judged]
        tables["perceptual_hashes"] = [
            task.step("read") / "perceptual_hashes.parquet" for task in tasks
        ]
    elif source.kind in (RecordKind.INTERLEAVED, RecordKind.TEXT):
        tables["near"] = [step / "near.parquet" for step in judged]
    work = folder / "work"
    earlier = open_earlier(tasks[0].name, config, finished)
    find_repeats(config.deduplication_of(source), tables, folder / "found", work, earlier)
    shutil.rmtree(work)


def _finish_source(
    source: SourceConfig, tasks: list[PartitionTask], folder: Path
) -> dict[str, Any]:
    """Puts the files of all partitions together, and their counts."""
    shutil.rmtree(folder / RECORDS, ignore_errors=True)
    (folder / RECORDS).mkdir()
    counts, number = Counts(), 0
    with pq.ParquetWriter(
        folder / f"{QUARANTINE}.parquet", QUARANTINE_SCHEMA, compression="zstd"
    ) as quarantine:
        for task in tasks:
            for step in ("read", "write"):
                counts.add(Counts.read(task.step(step) / TALLY))
                with pq.ParquetFile(task.step(step) / PARTITION_QUARANTINE) as rows:
                    for batch in rows.iter_batches():
                        quarantine.write_batch(batch)
            for path in sorted((task.step("write") / RECORDS).glob("part-*.parquet")):
                # A partition of which nothing is kept left an empty file.
                if pq.read_metadata(path).num_rows or len(tasks) == 1:
                    link_or_copy(path, folder / RECORDS / f"part-{number:05d}.parquet")
                    number += 1
        if not number:
            empty = tasks[0].step("write") / RECORDS / "part-00000.parquet"
            link_or_copy(empty, folder / RECORDS / "part-00000.parquet")
    counts.check()
    return {
        "kind": source.kind.value,
        "format": source.format.value,
        "split": source.split.value,
        **counts.records.to_json(),
        "passed_over": passed_over_to_json(counts.passed_over),
        "images": counts.images.to_json(),
        "steps": {name: counts.steps[name].to_json() for name in STEPS},
    }


def _add_unread_files(
    name: str, source: SourceConfig, files: SourceFiles, report: dict[str, Any]
) -> dict[str, Any]:
    """Counts the files that no pattern of the format matches, and says so if they are the most."""
    suffixes, num_bytes = unread_files(source, files)
    if not suffixes:
        return report
    if num_bytes > sum(file.size for file in files):
        logger.warning(
            "%s: %s of the files in %r do not have the names of format %s and were not read; "
            "their suffixes are %s.",
            name,
            f"{num_bytes:,} bytes",
            source.path,
            source.format.value,
            ", ".join(f"{suffix or 'none'} ({n})" for suffix, n in suffixes.most_common(5)),
        )
    passed_over = {**report["passed_over"], Passed.OTHER_FILE.value: suffixes.total()}
    by_suffix = dict(sorted(suffixes.items(), key=lambda item: (-item[1], item[0])))
    return {**report, "passed_over": passed_over, "files_passed_over": by_suffix}


def _publish(folder: Path, name: str, output_dir: Path) -> None:
    """Links a finished source into the output, where the file system can."""
    (output_dir / QUARANTINE).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output_dir / RECORDS / name, ignore_errors=True)
    shutil.copytree(folder / RECORDS, output_dir / RECORDS / name, copy_function=link_or_copy)
    quarantine = f"{QUARANTINE}.parquet"
    link_or_copy(folder / quarantine, output_dir / QUARANTINE / f"{name}.parquet")


def _finished_report(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The report of a source that an earlier run finished with the same parameters and files."""
    content = read_sealed(folder / _FINISHED_MARK)
    if content is None or content["fingerprint"] != fingerprint:
        return None
    found = _hash_files(folder)
    del found[_FINISHED_MARK]
    if changed := sorted({name for name, _ in found.items() ^ content["files"].items()}):
        logger.warning(
            "%s: is not as it was written; its source is read again.", folder / changed[0]
        )
        return None
    return content["report"]


def _fingerprint(
    name: str,
    config: IngestConfig,
    index: Path | None = None,
    scorer: ScorerReference | None = None,
    earlier: Sequence[str] = (),
) -> str:
    """What the files of a finished source depend on, as far as it is seen without reading.

    A file that was edited and restored counts as another one: a killed run may have read it before.
    """
    source = config.sources[name]
    read = flatten_parameters(source, "").inputs()
    return identity(
        layout=_LAYOUT,
        name=name,
        source=source,
        deduplication=config.deduplication_of(source),
        limits=config.limits,
        partition_bytes=config.partition_bytes,
        records_per_file=config.records_per_file,
        files=input_listing(source),
        # So that work on what lay there for a while is not taken for work on what lies there now.
        states={path: path_state(found) for path, found in read.items()},
        evaluation=None if index is None else read_summary(index)["digest"],
        decontamination=None if index is None else config.decontamination,
        scores=None if scorer is None else [SCORES_VERSION, scorer.identity],
        earlier=earlier,
        keys=is_wanted_later(name, config),
        profanity_list=_content_hash(source.text_rules.profanity_list),
    )


def _content_hash(path: str | None) -> str | None:
    if path is None:
        return None
    import fsspec

    with fsspec.open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()  # pyright: ignore[reportAttributeAccessIssue]


def _totals(reports: dict[str, Any]) -> dict[str, Any]:
    records, images = Tally(), Tally()
    for report in reports.values():
        records.add(Tally.from_json(report))
        images.add(Tally.from_json(report["images"]))
    return {**records.to_json(), "images": images.to_json()}


def _report_of(reports: dict[str, Any], index: Path | None) -> dict[str, Any]:
    """Sources, what they were compared with, and how many records were rejected for it."""
    rejected = {
        name: found
        for name, report in reports.items()
        if (
            found := {
                reason.value: report["rejected"][reason.value]
                for reason in (Reason.CONTAMINATED_IMAGE, Reason.CONTAMINATED_TEXT)
                if reason.value in report["rejected"]
            }
        )
    }
    summary = {} if index is None else read_summary(index)
    return {"sources": reports, "decontamination": {**summary, "rejected": rejected}}


def _warn_if_little_is_kept(name: str, report: dict[str, Any]) -> None:
    if report["kept"] * 2 >= report["read"] > 0:
        return
    if not report["read"]:
        passed_over = ", ".join(f"{n} as {why}" for why, n in report["passed_over"].items())
        logger.warning("%s: no record; passed over were %s.", name, passed_over or "none")
        return
    logger.warning(
        "%s: kept %d of %d records; the commonest reason is %s. Each one is listed in "
        "quarantine/%s.parquet.",
        name,
        report["kept"],
        report["read"],
        next(iter(report["rejected"])),
        name,
    )
