"""Writes records as packed sequences in MDS shards: one dataset a source and split.

1. The records of each source are cut into partitions (`streams.partitions`).
2. Every partition is packed without its images: the plan, which is reported before anything is
   written.
3. Every partition is packed and written, by as many processes as are asked for; the files wait
   in a folder for progress, or go to a remote store, until all are there.
4. The indices are written, then `shards.json`: its presence means that all is complete.

The same records, parameters and tokenizer give the same bytes, whatever the number of processes
and however often a run was killed. What a sequence holds on disk: `streams.partition_writer`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kedro_rerun.files import hash_file
from kedro_rerun.manifests import read_manifest

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.config.shard import ShardConfig
from mm1_pipeline.corpus.records import RECORDS, read_records
from mm1_pipeline.ground.files import link_or_copy, write_text
from mm1_pipeline.ground.identity import identity
from mm1_pipeline.ground.processes import WorkerPool
from mm1_pipeline.ground.progress import Progress
from mm1_pipeline.streams.leftovers import TemporaryFolder
from mm1_pipeline.streams.mds import index_text
from mm1_pipeline.streams.partition_writer import (
    COMPLETED,
    PartitionJob,
    PartitionPlan,
    SplitCounts,
    Tokenize,
    WrittenPartition,
    plan_partition,
    read_completed,
    shard_files,
    split_of,
    tokenize_document,
    write_partition,
)
from mm1_pipeline.streams.partitions import cut_partitions, record_files, source_costs
from mm1_pipeline.streams.shard_index import (
    INDEX_FILE,
    SHARDS_FILE,
    ShardIndex,
    SourceShards,
    Split,
    SplitShards,
    dataset_directory,
)
from mm1_pipeline.streams.shard_store import ShardStore, is_url
from mm1_pipeline.streams.tokenizer import Tokenizer

__all__ = ["ShardPlan", "SplitCounts", "split_of", "write_shards"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LAYOUT = 2
"""Raise it when the files of a partition change their layout, so that none is reused."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What the shards will be, known before the first is written.

    Attributes:
        counts: By source and split.
        num_partitions: By source.
        bytes: By source: all columns before compression, images as the first of them came out.
    """

    counts: dict[str, dict[Split, SplitCounts]]
    num_partitions: dict[str, int]
    bytes: dict[str, int]

    def log(self) -> None:
        """States the plan, a line a source."""
        for source, counts in self.counts.items():
            train, held_out = counts[Split.TRAIN], counts[Split.VALIDATION]
            logger.info(
                "%s: %s sequences, %.0f %% full, %s images",
                source,
                f"{train.sequences + held_out.sequences:,}",
                100 * train.fill,
                f"{train.images + held_out.images:,}",
            )


def write_shards(
    config: ShardConfig,
    records_dir: Path | Sequence[Path],
    tokenizer: Tokenizer,
    sources: dict[str, RecordKind],
    output_dir: Path | str,
    *,
    tokenize: Tokenize = tokenize_document,
    part: Callable[[str], Path] | None = None,
) -> dict[str, Any]:
    """Plans, packs and writes a training and a validation dataset of each source.

    Memory holds one window of pieces and one shard file a process, however many records there
    are.

    Args:
        config: Packing, image transform, validation share, compression, processes.
        records_dir: The artifact that contains `records/`; of several, the first that has a
            source gives it.
        tokenizer: Encodes the text.
        sources: Training sources and their kinds: those of pre-training, or conversations.
        output_dir: Gets `<source>/train`, `<source>/validation` and `shards.json`. A folder, or a
            URL that fsspec opens: then each partition is uploaded when it is finished and takes
            no room here any more.
        tokenize: Turns records into tokens; of conversations
            `streams.conversations.tokenize_conversation`.
        part: Gives the folder for a source's finished partitions by a name that tells what they
            were made from, on the output's file system: those that lie there are not made again.
            None keeps them with the output until all are there, or, for a URL, not at all.

    Returns:
        The shard report: counts and fill by source and split, and by kind (training only).

    Raises:
        ValueError: A source has no records.
    """
    with _working_folder(output_dir, part) as folder, _processes(config.num_workers) as run:
        store = ShardStore(str(output_dir)) if is_url(output_dir) else None
        jobs = _jobs(config, records_dir, tokenizer, sources, folder, store, run, tokenize)
        plan = _plan(config, jobs, run)
        plan.log()
        written = _write_partitions(jobs, plan, run)
        _warn_of_drops(written)
        report = _report(config, tokenizer, jobs, written)
        texts = _index_texts(config, tokenizer, jobs, written)
        if store is None:
            _collect(jobs, written, Path(output_dir))
            for name, text in texts.items():
                write_text(Path(output_dir) / name, text)
        else:
            _put_indices(store, jobs, written, texts)
    return report


Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[int, Any]]]
"""Calls a function for each item and yields number and result, in the order they get ready."""


@contextlib.contextmanager
def _processes(num_workers: int) -> Iterator[Run]:
    if num_workers <= 1:
        yield lambda function, items: enumerate(map(function, items))
        return
    with WorkerPool(
        num_workers,
        doing="wrote shards",
        advice="Lower shard.num_workers, shard.packing.window or shard.shard_bytes",
    ) as pool:
        yield pool.run


@contextlib.contextmanager
def _working_folder(
    output_dir: Path | str, part: Callable[[str], Path] | None
) -> Iterator[Callable[[str], Path]]:
    if part is not None:
        yield part
    elif is_url(output_dir):
        with TemporaryFolder("shards") as folder:
            yield folder.joinpath
    else:
        folder = Path(output_dir) / ".partitions"
        yield folder.joinpath
        shutil.rmtree(folder, ignore_errors=True)


def _jobs(
    config: ShardConfig,
    records_dir: Path | Sequence[Path],
    tokenizer: Tokenizer,
    sources: dict[str, RecordKind],
    part: Callable[[str], Path],
    store: ShardStore | None,
    run: Run,
    tokenize: Tokenize,
) -> list[PartitionJob]:
    """All partitions of all sources, source by source."""
    content = tokenizer.to_json()
    jobs = []
    for source, kind in sources.items():
        records = _records_of(source, records_dir)
        costs = source_costs(records, source, config, lambda f, items: _in_order(run, f, items))
        made_from = _identity_of(config, tokenizer, records, source, store)
        folder = part(f"{source}/{made_from[:16]}")
        jobs += [
            PartitionJob(
                config,
                kind,
                records,
                content,
                partition,
                folder / f"{partition.number:05d}",
                store,
                made_from,
                tokenize,
            )
            for partition in cut_partitions(source, costs, config.partition_bytes)
        ]
    return jobs


def _in_order(run: Run, function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    return [result for _, result in sorted(run(function, items), key=lambda pair: pair[0])]


def _records_of(source: str, records_dir: Path | Sequence[Path]) -> Path:
    candidates = [Path(records_dir)] if isinstance(records_dir, str | Path) else list(records_dir)
    for candidate in candidates:
        if (candidate / RECORDS / source).is_dir():
            return candidate
    read_records(candidates[0], source)
    raise AssertionError("read_records names the sources that there are")


def _identity_of(
    config: ShardConfig, tokenizer: Tokenizer, records: Path, source: str, store: ShardStore | None
) -> str:
    """What the files of a source's partitions depend on, and where they are."""
    manifest = read_manifest(records)
    listed = {} if manifest is None else manifest["files"]
    files = record_files(records, source)
    names = [file.relative_to(records).as_posix() for file in files]
    digests = [listed[n].get("hash") if n in listed else hash_file(records / n) for n in names]
    return identity(
        layout=_LAYOUT,
        config=config,
        tokenizer=tokenizer.sha256,
        records=list(zip(names, digests, strict=True)),
        store=None if store is None else store.url,
    )


def _plan(config: ShardConfig, jobs: list[PartitionJob], run: Run) -> ShardPlan:
    plans: dict[int, PartitionPlan] = {}
    cost = sum(job.partition.cost for job in jobs) / 1e6
    with Progress("plan shards", unit="MB", total=cost) as progress:
        for number, plan in run(plan_partition, jobs):
            plans[number] = plan
            progress.advance(jobs[number].partition.cost / 1e6)
    counts = _sum_counts(jobs, {number: plan.counts for number, plan in plans.items()})
    per_image = {
        job.partition.source: plans[number].bytes_per_image or 0.0
        for number, job in enumerate(jobs)
        if not job.partition.number
    }
    return ShardPlan(
        counts,
        {s: sum(job.partition.source == s for job in jobs) for s in counts},
        {s: _planned_bytes(config, c.values(), per_image[s]) for s, c in counts.items()},
    )


def _planned_bytes(config: ShardConfig, counts: Iterable[SplitCounts], per_image: float) -> int:
    # int32 ids and uint8 mask; borders, offsets and keys are small beside them.
    per_sequence = 5 * config.packing.sequence_length
    return round(sum(c.sequences * per_sequence + c.images * per_image for c in counts))


def _write_partitions(
    jobs: list[PartitionJob], plan: ShardPlan, run: Run
) -> dict[int, WrittenPartition]:
    written: dict[int, WrittenPartition] = {}
    cost = sum(job.partition.cost for job in jobs) / 1e6
    done = sum(job.partition.cost for job in jobs if read_completed(job) is not None) / 1e6
    if done:
        logger.info("Goes on where an earlier run stopped: %.0f of %.0f MB are done.", done, cost)
    with Progress("write shards", unit="MB", total=cost) as progress:
        for number, partition in run(write_partition, jobs):
            written[number] = partition
            progress.advance(jobs[number].partition.cost / 1e6)
    found = _sum_counts(jobs, {number: part.counts for number, part in written.items()})
    assert found == plan.counts, "what was written is what was planned"
    for job in jobs:
        may_lose = job.kind == RecordKind.CONVERSATION or job.config.packing.overflow == "truncate"
        lost = sum(c.truncated_positions for c in found[job.partition.source].values())
        assert lost == 0 or may_lose, (job.partition.source, lost)
    return written


def _sum_counts(
    jobs: list[PartitionJob], counts: dict[int, dict[Split, SplitCounts]]
) -> dict[str, dict[Split, SplitCounts]]:
    total: dict[str, dict[Split, SplitCounts]] = {}
    for number, job in enumerate(jobs):
        mine = total.setdefault(job.partition.source, {split: SplitCounts() for split in Split})
        for split in Split:
            mine[split] += counts[number][split]
    return total


def _warn_of_drops(written: dict[int, WrittenPartition]) -> None:
    counts = [count for part in written.values() for count in part.counts.values()]
    if dropped := sum(count.dropped_records for count in counts):
        logger.warning(
            "%d of %d records are conversations that are longer than a sequence already in their "
            "first exchange and are left out; raise packing.sequence_length or max_images.",
            dropped,
            sum(count.records for count in counts),
        )


def _report(
    config: ShardConfig,
    tokenizer: Tokenizer,
    jobs: list[PartitionJob],
    written: dict[int, WrittenPartition],
) -> dict[str, Any]:
    counts = _sum_counts(jobs, {number: part.counts for number, part in written.items()})
    kinds = {job.partition.source: job.kind for job in jobs}
    streams: dict[str, SplitCounts] = {}
    for source, kind in kinds.items():
        streams[kind.value] = streams.get(kind.value, SplitCounts()) + counts[source][Split.TRAIN]
    mine = {
        source: [written[n] for n, job in enumerate(jobs) if job.partition.source == source]
        for source in kinds
    }
    return {
        "sources": {
            source: {
                "kind": kind.value,
                "partitions": len(mine[source]),
                "bytes": sum(part.num_bytes for part in mine[source]),
                **{split.value: counts[source][split].to_dict() for split in Split},
            }
            for source, kind in kinds.items()
        },
        "streams": {kind: counts.to_dict() for kind, counts in streams.items()},
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256},
        "packing": dataclasses.asdict(config.packing),
    }


def _index_texts(
    config: ShardConfig,
    tokenizer: Tokenizer,
    jobs: list[PartitionJob],
    written: dict[int, WrittenPartition],
) -> dict[str, str]:
    """Content of every index by its name; that of all shards is the last."""
    counts = _sum_counts(jobs, {number: part.counts for number, part in written.items()})
    texts: dict[str, str] = {}
    sources: dict[str, SourceShards] = {}
    for source, kind in {job.partition.source: job.kind for job in jobs}.items():
        parts = [written[n] for n, job in enumerate(jobs) if job.partition.source == source]
        splits = []
        for split in Split:
            text = index_text([entry for part in parts for entry in part.shards[split]])
            texts[f"{source}/{split.value}/{INDEX_FILE}"] = text
            digest = hashlib.sha256(text.encode()).hexdigest()
            splits.append(SplitShards(counts[source][split].sequences, digest))
        sources[source] = SourceShards(kind, *splits)
    texts[SHARDS_FILE] = _index(config, tokenizer, sources).to_text()
    return texts


def _collect(
    jobs: list[PartitionJob], written: dict[int, WrittenPartition], output_dir: Path
) -> None:
    """Links finished files to their places, where the file system can."""
    for source in {job.partition.source for job in jobs}:
        for split in Split:
            dataset_directory(output_dir, source, split).mkdir(parents=True, exist_ok=True)
    for number, job in enumerate(jobs):
        for file, name in shard_files(job.folder, job.partition.source, written[number]):
            link_or_copy(file, output_dir / name)


def _put_indices(
    store: ShardStore,
    jobs: list[PartitionJob],
    written: dict[int, WrittenPartition],
    texts: dict[str, str],
) -> None:
    """Uploads the indices, once every shard is known to be there with its size."""
    for number, job in enumerate(jobs):
        for split, entries in written[number].shards.items():
            for entry in entries:
                stored = entry["zip_data"] or entry["raw_data"]
                name = f"{job.partition.source}/{split.value}/{stored['basename']}"
                if (found := store.size(name)) != stored["bytes"]:
                    (job.folder / COMPLETED).unlink(missing_ok=True)
                    raise OSError(
                        f"{store.url}/{name}: found {found} bytes, expected {stored['bytes']}; it "
                        "was changed since it was uploaded. Start again to write it anew."
                    )
    for name, text in texts.items():
        store.put_text(text, name)


def _index(
    config: ShardConfig, tokenizer: Tokenizer, sources: dict[str, SourceShards]
) -> ShardIndex:
    return ShardIndex(
        packing=config.packing,
        image=config.image,
        sub_images=config.sub_images,
        special_ids={
            "pad": tokenizer.pad_id,
            "bos": tokenizer.bos_id,
            "eos": tokenizer.eos_id,
            "image": tokenizer.image_id,
        },
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        sources=sources,
    )
