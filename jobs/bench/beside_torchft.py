"""Workers that are killed: metadist beside torchft, which leaves out the steps in which a member fails.

    pip install torchft==0.2.0
    python jobs/bench/beside_torchft.py --every 15 --seconds 120 --compute 3

Both train 111,000 values with four members that sleep for the time of a step, of which one is killed with SIGKILL on
the same schedule and started again at once. Told for each, with and without kills: the steps that were tried, those of
them that were committed, committed steps a second, and members' shares of committed steps a second.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

MEMBERS = 4
#: what a member of torchft waits for another that does not answer
PATIENCE = timedelta(seconds=10)
#: chunks of a step of metadist's; one of torchft's members computes as much in a step as four of them
CHUNKS = 16


class Slow(nn.Module):
    """A net of 111,000 values that sleeps in each pass for what `METADIST_SLOW_SECONDS` says."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 332), nn.ReLU(), nn.Linear(332, 332), nn.ReLU(), nn.Linear(332, 1))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(float(os.environ.get("METADIST_SLOW_SECONDS", "0")))
        out: Tensor = self.net(x)
        return out


def with_metadist(every: float, seconds: float, compute: float, spares: int = 0) -> dict[str, Any]:
    """A run of as many steps as fit the time, whose workers, and spares, are killed."""
    from metadist.distributed.chaos import Schedule, endure

    job = {
        "steps": round(seconds / compute),
        "tasks": {"kind": "sinusoid", "batch": CHUNKS, "chunk": 1},
        "model": {"kind": "beside_torchft.Slow"},
        "learner": {"kind": "maml", "inner_lr": 0.01, "inner_steps": 1, "eval_steps": 1, "remat": True},
        "evaluation": {"test_tasks": 1},
        "resources": {"workers": MEMBERS, "spares": spares, "cpus_per_worker": 0.2},
        "tracking": {"uri": "none"},
    }
    # With `remat` nothing is captured, and a chunk is three passes: to adapt, which is done twice, and to judge.
    slow = compute * MEMBERS / CHUNKS / 3
    os.environ |= {"METADIST_SLOW_SECONDS": str(slow), "PYTHONPATH": str(Path(__file__).parent)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "job.yaml").write_text(json.dumps(job))
        schedule = Schedule({"worker": every} if every else {}, 0)
        ordeal = endure(f"{folder}/job.yaml", "run", ("--storage", folder), folder, schedule, lambda text: None)
    steps = int(ordeal.summary["step"])
    seconds = ordeal.summary["train_seconds"]
    return told(ordeal.faults["worker"], steps + ordeal.repeated, steps, steps / seconds, steps * MEMBERS / seconds)


def with_torchft(every: float, seconds: float, compute: float) -> dict[str, Any]:
    """So many seconds of four members that are killed."""
    from torchft.coordination import LighthouseServer

    from metadist.distributed.chaos import Schedule

    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=1, join_timeout_ms=1000, heartbeat_timeout_ms=1000)
    schedule, kills = Schedule({"worker": every} if every else {}, 0), 0
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        votes = [Path(folder, str(member)) for member in range(MEMBERS)]
        logs = [stack.enter_context(path.open("ab")) for path in votes]

        def start(member: int) -> subprocess.Popen[bytes]:
            command = [sys.executable, __file__, "--member", str(member), "--lighthouse", lighthouse.address()]
            return subprocess.Popen(
                [*command, "--compute", str(compute)], stdout=logs[member], stderr=subprocess.DEVNULL
            )

        members = [start(member) for member in range(MEMBERS)]
        try:
            while not all(path.stat().st_size for path in votes):
                time.sleep(0.1)
            began = time.monotonic()
            while (now := time.monotonic() - began) < seconds:
                time.sleep(min(schedule.wait(now), seconds - now, 1.0))
                for _ in schedule.due(time.monotonic() - began):
                    victim = members[schedule.choose(range(MEMBERS))]
                    victim.kill()
                    victim.wait()
                    kills += 1
                for member, process in enumerate(members):
                    if process.poll() is not None:  # one may also end by itself, when it cannot join in time
                        members[member] = start(member)
        finally:
            for process in members:
                process.kill()
                process.wait()
        lighthouse.shutdown()
        found = [[vote for vote in whole_lines(path) if 0 <= vote["at"] - began < seconds] for path in votes]
    # Members that take part in a step try it together, until it is committed.
    steps = {vote["step"] for each in found for vote in each}
    failed = sum(
        max(sum(vote["step"] == step and not vote["committed"] for vote in each) for each in found) for step in steps
    )
    committed = len({vote["step"] for each in found for vote in each if vote["committed"]})
    shares = sum(vote["committed"] for each in found for vote in each)
    return told(kills, failed + committed, committed, committed / seconds, shares / seconds)


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """What a member wrote, but for a line in whose middle it was killed."""
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def told(kills: int, tried: int, committed: int, steps: float, shares: float) -> dict[str, Any]:
    """What is told of a run: a share is one member's work in a committed step."""
    counted = {"kills": kills, "tried": tried, "committed": committed}
    return counted | {"steps_per_second": round(steps, 3), "shares_per_second": round(shares, 3)}


def member(number: int, lighthouse: str, compute: float) -> None:
    """One member of torchft's, until it is killed; writes each of its votes to stdout."""
    from torch import distributed, optim
    from torchft import Manager, Optimizer, ProcessGroupGloo

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    store = distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    model = Slow()
    adam = optim.Adam(model.parameters())

    def load(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])

    manager = Manager(
        pg=ProcessGroupGloo(timeout=PATIENCE),
        min_replica_size=1,
        load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "adam": adam.state_dict()},
        replica_id=f"member-{number}",
        lighthouse_addr=lighthouse,
        rank=0,
        world_size=1,
        store_addr="localhost",
        store_port=store.port,
        timeout=PATIENCE,
        quorum_timeout=timedelta(seconds=20),
    )
    commit = manager.should_commit

    def vote(*arguments: Any, **options: Any) -> bool:
        step, committed = manager.current_step(), commit(*arguments, **options)
        print(json.dumps({"at": time.monotonic(), "step": step, "committed": committed}), flush=True)
        return bool(committed)

    manager.should_commit = vote
    rule = Optimizer(manager, adam)
    x = torch.linspace(-5, 5, 10)[:, None]
    while True:
        rule.zero_grad()
        time.sleep(compute)
        model(x).square().mean().backward()
        # What torchft's DistributedDataParallel does, which asserts on a future that this torch does not make when a
        # member is lost.
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        flat = parameters_to_vector(gradients)
        manager.allreduce(flat).wait()
        vector_to_parameters(flat, gradients)
        rule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=15, help="mean seconds between two kills")
    parser.add_argument("--seconds", type=float, default=120, help="that a run takes when left alone")
    parser.add_argument("--compute", type=float, default=3, help="seconds of a step's computing")
    parser.add_argument("--member", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--lighthouse", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.member is not None:
        member(given.member, given.lighthouse, given.compute)
    spared = functools.partial(with_metadist, spares=1)
    for name, run in (("torchft", with_torchft), ("metadist", with_metadist), ("metadist, 1 spare", spared)):
        alone, under = (run(every, given.seconds, given.compute) for every in (0.0, given.every))
        print(name, "left alone ", json.dumps(alone))
        print(name, "under kills", json.dumps(under))
        ratios = {"committed": under["committed"] / under["tried"]}
        ratios |= {key: under[key] / alone[key] for key in ("steps_per_second", "shares_per_second")}
        print(name, ", ".join(f"{key} {100 * value:.1f} %" for key, value in ratios.items()), flush=True)


if __name__ == "__main__":
    main()
