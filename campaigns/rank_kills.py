"""Kills trainings that go on with other numbers of ranks: 1 -> 2 -> 3 -> 1 -> ..., and compares.

    python campaigns/rank_kills.py                # 40 chains of 6 kills
    python campaigns/rank_kills.py --chains 1

Every attempt of a chain trains on the next number of ranks (gloo, FSDP2) and is killed before a
drawn change of a file: all ranks, or the one that makes the change, after which the others are
ended, as the launcher does. The last attempt, in one process, must get through, and its losses
and weights must be those of a training that nobody killed, but for rounding (docs/training.md).
Ranks are forked, for imports take longer than the training; how the launcher's ranks end with it,
the tests say. The last line is one JSON object. Needs Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from faults import CLASSES, KILL_PROCESS, KILL_RUN, ROOT, FaultsFile, load_before_the_c_library

sys.path.insert(0, str(ROOT / "tests" / "e2e"))
SIZES = (1, 2, 3, 1, 2, 3)
"""Ranks of the attempts that are killed; the last attempt has one."""
STEPS, BATCH = 12, 12
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-3
"""As the tests have them for one change of the number of ranks."""
SECONDS_AN_ATTEMPT = 120


def training_config() -> Any:
    """Twelve sequences, which 1, 2 and 3 ranks can share, and a checkpoint every other step."""
    from training_toy import CONFIG

    from mm1_pipeline.config.training import CheckpointConfig, OptimizerConfig, ScheduleConfig

    shares = {"caption": 0.5, "interleaved": 0.25, "text": 0.25}
    streams = {
        name: dataclasses.replace(stream, share=shares[name])
        for name, stream in CONFIG.mixture.streams.items()
    }
    return dataclasses.replace(
        CONFIG,
        mixture=dataclasses.replace(CONFIG.mixture, streams=streams),
        global_batch_size=BATCH,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        schedule=ScheduleConfig(num_steps=STEPS, warmup_steps=2),
        checkpoint=CheckpointConfig(interval_steps=2),
    )


def _train(shards_dir: Path, folder: Path, rank: int, size: int) -> None:
    """Is one rank."""
    import torch
    import torch.distributed as dist
    from training_toy import build_toy

    from mm1_pipeline.models.mm1 import MM1
    from mm1_pipeline.models.next_token import NextToken
    from mm1_pipeline.training.distributed import World, begin_together
    from mm1_pipeline.training.run import TrainingRun
    from mm1_pipeline.training.train import train

    torch.set_num_threads(1)
    objective = NextToken(build_toy(shards_dir, MM1))
    where: dict[str, Any] = {"stage": "x", "work_dir": folder / "work"}
    if size == 1:
        train(training_config(), objective, shards_dir, output_dir=folder / "model", **where)
        return
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    world = World.of_environment()
    store = dist.FileStore(str(folder / "ranks"), size)  # pyright: ignore[reportPrivateImportUsage]
    begin_together(world, "gloo", store, timeout_seconds=60)
    TrainingRun(
        training_config(), objective, shards_dir, device="cpu", world=world, **where
    ).to_the_end()


def attempt(
    shards_dir: Path, folder: Path, size: int, fault: dict[str, int] | None = None
) -> tuple[list[int], FaultsFile, str]:
    """Trains on some ranks, with a fault or none, until all have ended.

    Returns:
        Their exit statuses (minus a signal), the faults file, and what was wrong.
    """
    for name in ("ranks", "statuses"):
        (folder / name).unlink(missing_ok=True)
    place = folder / "faults"
    content = FaultsFile(below=str(folder / "work").encode(), **(fault or {}))
    place.write_bytes(bytes(content))
    leader = os.fork()
    if leader == 0:
        os.setsid()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        content.group = os.getpid()
        place.write_bytes(bytes(content))
        ranks = [_start_rank(shards_dir, folder, rank, size, place) for rank in range(size)]
        ended: dict[int, int] = {}
        while len(ended) < size:
            rank, status = os.wait()
            ended[rank] = os.waitstatus_to_exitcode(status)
            if ended[rank]:  # as the launcher does: the others may wait for what it was to do
                for other in set(ranks) - ended.keys():
                    os.kill(other, signal.SIGKILL)
        statuses = [ended[rank] for rank in ranks]
        (folder / "statuses").write_text(json.dumps(statuses))
        os._exit(0)
    deadline, wrong = time.monotonic() + SECONDS_AN_ATTEMPT, ""
    while not os.waitpid(leader, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            wrong, deadline = f"did not end in {SECONDS_AN_ATTEMPT} s", float("inf")
            os.killpg(leader, signal.SIGUSR1)  # every thread's place goes to the rank's log
            time.sleep(1)
            os.killpg(leader, signal.SIGKILL)
        time.sleep(0.02)
    statuses = [-signal.SIGKILL] * size
    if (folder / "statuses").exists():
        statuses = json.loads((folder / "statuses").read_text())
    return statuses, FaultsFile.from_buffer_copy(place.read_bytes()), wrong


def _start_rank(shards_dir: Path, folder: Path, rank: int, size: int, faults: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        output = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
        ctypes.CDLL(None).faults_open(str(faults).encode())
        _train(shards_dir, folder, rank, size)
        status = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def results(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the metrics and weights of a training that got through."""
    from safetensors.torch import load_file

    from mm1_pipeline.training.metrics import MetricsLog
    from mm1_pipeline.training.run import metrics_file

    rows = MetricsLog(metrics_file(folder / "work", "x")).rows()
    return rows, load_file(folder / "model" / "model.safetensors")


def differences(expected: Any, found: Any) -> tuple[list[str], float, float]:
    """What differs, and the largest differences of losses and of weights."""
    rows, weights = expected
    found_rows, found_weights = found
    wrong = []
    if [row["step"] for row in rows] != [row["step"] for row in found_rows]:
        return ["steps differ"], float("nan"), float("nan")
    loss = weight = 0.0
    for row, other in zip(rows, found_rows, strict=True):
        wrong += [
            f"step {row['step']}: {key} differs"
            for key in ("shares", "positions", "lr", "spikes")
            if row[key] != other[key]
        ]
        loss = max(loss, abs(row["loss"] - other["loss"]))
    for name, tensor in weights.items():
        weight = max(weight, float((tensor - found_weights[name]).abs().max()))
    wrong += [f"losses differ by {loss:.2g}"] if loss > LOSS_TOLERANCE else []
    wrong += [f"weights differ by {weight:.2g}"] if weight > WEIGHT_TOLERANCE else []
    return wrong, loss, weight


def chain(
    number: int, seed: int, shards_dir: Path, place: Path, whole: FaultsFile, expected: Any
) -> dict[str, Any]:
    """Kills a training on every number of ranks, then lets it through."""
    rng, folder = random.Random(f"ranks {seed} {number}"), place / f"chain{number}"
    folder.mkdir()
    kills: list[dict[str, Any]] = []
    wrong: list[str] = []
    changes, loss, weight = list(whole.changes), float("nan"), float("nan")
    for size in SIZES:
        while not wrong:
            name = rng.choice([name for name, count in zip(CLASSES, changes, strict=True) if count])
            at_class, kind = CLASSES.index(name), rng.choice((KILL_RUN, KILL_PROCESS))
            at = 1 + int(rng.uniform(0, 2) * changes[at_class] / len(SIZES))
            fault = {"fault": kind, "at_class": at_class, "at": at, "torn": rng.randrange(2)}
            statuses, content, problem = attempt(shards_dir, folder, size, fault)
            words = "".join(path.read_text()[-4000:] for path in sorted(folder.glob("rank-*.log")))
            if problem or (not content.hit and any(statuses)):
                wrong.append(f"{size} ranks, {fault}: {statuses} {problem} {words}")
            elif not content.hit:  # it got through: the rest hits a new training
                shutil.rmtree(folder)
                folder.mkdir()
            else:
                killed = "all" if kind == KILL_RUN else "one"
                path = Path(content.path.decode()).relative_to(folder / "work")
                kills.append({"ranks": size, "class": name, "killed": killed, "path": str(path)})
                if -signal.SIGKILL not in statuses:
                    wrong.append(f"{size} ranks, {fault}: {statuses}")
                break
    if not wrong:
        statuses, _, problem = attempt(shards_dir, folder, 1)
        if problem or any(statuses):
            log = (folder / "rank-0.log").read_text()[-1500:]
            wrong.append(f"last attempt after {kills}: {statuses} {problem} {log}")
        else:
            wrong, loss, weight = differences(expected, results(folder))
    if not wrong:
        shutil.rmtree(folder)
    return {
        "chain": number,
        "seed": seed,
        "kills": kills,
        "wrong": wrong,
        "loss": loss,
        "weight": weight,
    }


def main() -> int:
    """Runs a campaign; 1 if a chain did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chains", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", type=Path, default=None, help="for trainings (a new folder)")
    parser.add_argument("--results", type=Path, default=None, help="finished chains; goes on there")
    options = parser.parse_args()
    load_before_the_c_library()
    place = Path(tempfile.mkdtemp(prefix="mm1-ranks-", dir=options.place))
    import training_toy

    import mm1_pipeline.training.train  # noqa: F401  imported once, for all ranks
    from mm1_pipeline.training.engine import choose_engine

    choose_engine("auto")  # imports Composer, where it is taken, once for all ranks
    if os.fork() == 0:  # threads of the tokenizer do not survive a fork
        training_toy.write_toy_shards(place / "toy")
        os._exit(0)
    os.wait()
    shards_dir = place / "toy" / "shards"
    (place / "undisturbed").mkdir()
    statuses, whole, wrong = attempt(shards_dir, place / "undisturbed", 1)
    if any(statuses) or wrong:
        print((place / "undisturbed" / "rank-0.log").read_text()[-3000:], wrong)
        return 1
    expected = results(place / "undisturbed")
    kept = options.results or place / "chains.jsonl"
    chains: list[dict[str, Any]] = []
    for line in kept.read_text().splitlines() if kept.exists() else ():
        with contextlib.suppress(ValueError):  # half a line, by a campaign that was killed
            found = json.loads(line)
            chains += [found] if found["seed"] == options.seed else []
    done, start = {found["chain"] for found in chains}, time.monotonic()
    todo = [number for number in range(options.chains) if number not in done]
    for count, number in enumerate(todo, 1):
        found = chain(number, options.seed, shards_dir, place, whole, expected)
        chains.append(found)
        with kept.open("a") as file:
            file.write(json.dumps(found) + "\n")
        rate = count / (time.monotonic() - start)
        left = (len(todo) - count) / rate
        print(f"{count} chains, {60 * rate:.1f} a minute, {left:,.0f} s left", flush=True)
    counts: dict[str, Counter[str]] = {"ranks": Counter(), "class": Counter(), "killed": Counter()}
    for found in chains:
        for kill in found["kills"]:
            for group, counter in counts.items():
                counter[str(kill[group])] += 1
    failures = {found["chain"]: found["wrong"] for found in chains if found["wrong"]}
    content = {
        "tried": sum(len(found["kills"]) for found in chains),
        "held": sum(len(found["kills"]) for found in chains if not found["wrong"]),
        "chains": len(chains),
        "chains_held": len(chains) - len(failures),
        **{f"by_{group}": dict(sorted(counter.items())) for group, counter in counts.items()},
        "largest_difference_of_losses": max(found["loss"] for found in chains),
        "largest_difference_of_weights": max(found["weight"] for found in chains),
        "failures": failures,
    }
    print(f"{sum(os.times()[:4]):,.0f} s of one core, with imports and the undisturbed run")
    print(json.dumps(content))
    if not failures:
        shutil.rmtree(place, ignore_errors=True)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
