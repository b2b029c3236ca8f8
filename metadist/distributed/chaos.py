"""Chaos: a job under faults, and the same job left alone.

The job runs as its users run it, `metadist train` in a process of its own with an embedded Ray. Beside it, on a seeded
schedule, processes of that run are killed with SIGKILL: a worker, the parameter server, or the driver, with which all
of its Ray goes; it is then started again and goes on with its run. On a cluster, whose nodes may be anywhere, it is the
driver, or a node with all that runs on it, which a command of the cluster's own takes away. Linux only: processes are
found in /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from metadist.errors import UserError
from metadist.tracking import MetricsFile
from metadist.training.run_folder import JUDGED, RunFolder, checkpoint_version

Kind = Literal["worker", "server", "node", "driver"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: how the titles of the actors' processes begin
_TITLES: dict[Kind, bytes] = {"worker": b"ray::WorkerActor", "server": b"ray::ServerActor"}
#: deaths of the driver without a step or a judged task between them after which nothing is gained by going on
LIVES = 5


@dataclass
class Ordeal:
    """What a run of a job has been through.

    Attributes:
        summary: the run's, as `metadist train --json` prints it.
        seconds: from the first start of the driver to the end of the last.
        faults: processes that were killed, by kind.
        repeated: committed steps that were taken again after a death of the driver.
    """

    summary: dict[str, Any]
    seconds: float
    faults: Counter[str] = field(default_factory=Counter)
    repeated: int = 0


class Schedule:
    """When the next process of each kind is killed: at intervals of half to one and a half times the kind's mean.

    Args:
        every: mean seconds between two faults, by kind.
    """

    def __init__(self, every: Mapping[Kind, float], seed: int) -> None:
        self._every, self._random = dict(every), random.Random(seed)
        self._due = {kind: self._interval(kind) for kind in self._every}

    def _interval(self, kind: Kind) -> float:
        return self._every[kind] * self._random.uniform(0.5, 1.5)

    def wait(self, now: float) -> float:
        """Seconds from `now` to the next fault; infinity without any."""
        return max(0.0, min(self._due.values(), default=float("inf")) - now)

    def due(self, now: float) -> list[Kind]:
        """The kinds whose time has come, each with its next time set."""
        kinds = [kind for kind, at in self._due.items() if at <= now]
        for kind in kinds:
            self._due[kind] = now + self._interval(kind)
        return kinds

    def choose(self, processes: Sequence[int]) -> int:
        """One of some processes."""
        return self._random.choice(sorted(processes))


def endure(
    job: str,
    run: str,
    options: Sequence[str],
    storage: str,
    schedule: Schedule,
    say: Callable[[str], None],
    lose: str | None = None,
) -> Ordeal:
    """Train a job to its end, under faults.

    Args:
        run: name of the run's folder in `storage`.
        options: what `metadist train` is given beside job and run.
        say: told of each fault, in a sentence.
        lose: for faults of kind node, the command that takes one away from the job's cluster and adds another.

    Raises:
        RuntimeError: the driver ended by itself before the job did, or gets nowhere.
    """
    command = [sys.executable, "-m", "metadist", "train", job, "--run", run, "--json", *options]
    folder, log = RunFolder(f"{storage}/{run}"), Path(storage, f"{run}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    ordeal = Ordeal({}, 0.0)
    began, last, fruitless = time.monotonic(), (0, 0), 0
    while True:
        with log.open("ab") as errors:
            driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        try:
            killed = _beside(driver, schedule, lose, ordeal, began, say)
        finally:
            driver.kill()
            out, _ = driver.communicate()
        if not killed:
            break
        steps = MetricsFile.read(f"{folder.location}/metrics.jsonl") if folder.exists("metrics.jsonl") else []
        reached, saved = max((step for step, _ in steps), default=0), folder.checkpoints()
        ordeal.repeated += reached - (checkpoint_version(saved[-1]) if saved else 0)
        far = (reached, len(folder.names(JUDGED)))
        fruitless = 0 if far > last else fruitless + 1
        last = max(last, far)
        if fruitless == LIVES:
            raise RuntimeError(
                f"the driver was killed {LIVES} times without a new step or judged task; kill it less often ({log})"
            )
    if driver.returncode:
        lines = log.read_text(errors="replace").splitlines()[-5:]
        raise RuntimeError("\n".join([f"the driver ended with exit code {driver.returncode}; {log} ends with", *lines]))
    ordeal.summary, ordeal.seconds = json.loads(out.splitlines()[-1]), time.monotonic() - began
    return ordeal


def _beside(
    driver: subprocess.Popen[bytes],
    schedule: Schedule,
    lose: str | None,
    ordeal: Ordeal,
    began: float,
    say: Callable[[str], None],
) -> bool:
    """Kill what is due until the driver has ended; returns whether it was killed."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            wait = schedule.wait(time.monotonic() - began)
            driver.wait(None if wait == float("inf") else wait)
            return False
        for kind in schedule.due(time.monotonic() - began):
            if kind == "node":
                assert lose is not None
                lose_node(lose)
                ordeal.faults[kind] += 1
                say(f"{time.monotonic() - began:.1f} s: node lost, and another one there")
                continue
            victims = [driver.pid] if kind == "driver" else processes_of(driver.pid, _TITLES[kind])
            if not victims:
                continue  # not started yet, or on its way back
            victim = schedule.choose(victims)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                ordeal.faults[kind] += 1
                say(f"{time.monotonic() - began:.1f} s: {kind} killed (process {victim})")
            if kind == "driver":
                driver.wait()
                return True


def lose_node(command: str) -> None:
    """Take a node from a cluster by the cluster's own command.

    Raises:
        UserError: the command cannot be run, or fails.
    """
    try:
        subprocess.run(shlex.split(command), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None)
        reason = said.decode(errors="replace").strip() if said else str(error)
        raise UserError("--lose-node", command, "a command that ends with exit code 0", reason) from error


def processes_of(ancestor: int, title: bytes) -> list[int]:
    """Processes that descend from another and whose command lines begin with `title`."""
    parents: dict[int, int] = {}
    titled: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # The second field is the name in brackets, which may have spaces.
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if (entry / "cmdline").read_bytes().startswith(title):
                titled.append(int(entry.name))

    def descends(process: int) -> bool:
        while process not in (0, ancestor):
            process = parents.get(process, 0)
        return process == ancestor

    return [process for process in titled if descends(process)]


def parse_kinds(text: str, every: str) -> dict[Kind, float]:
    """Mean seconds between faults by kind, from `worker=5s,server` and the interval of kinds without one.

    Raises:
        UserError: there is no such kind, or an interval is no time.
    """
    found: dict[Kind, float] = {}
    for part in filter(None, text.split(",")):
        name, _, interval = part.strip().partition("=")
        if name not in KINDS:
            raise UserError("--kinds", text, f"some of {', '.join(KINDS)}, each with =SECONDS or without")
        found[name] = _seconds("--kinds" if interval else "--every", interval or every)
    if not found:
        raise UserError("--kinds", text, f"some of {', '.join(KINDS)}")
    return found


def _seconds(option: str, text: str) -> float:
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise UserError(option, text, "seconds above 0, for example 2s")
    return value
