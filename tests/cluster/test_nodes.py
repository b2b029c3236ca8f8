"""A run on a real cluster whose nodes share nothing: its data reaches them, they come and go, the bits stay."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_cluster import LOCAL, ROOT, Local
from test_same_bits import job, short

from metadist.distributed.run import RunOptions, train_job
from metadist.testing.observers import Notes

#: drives a run as `metadist train` does; strikes with one command at a named step, or once two workers are there, and
#: mends with another one when the loss was noticed
STRIKER = """
import json, subprocess, sys
from metadist.config import load_job
from metadist.distributed.run import RunOptions, train_job
from metadist.testing.observers import Notes

at, strike, mend, path, *overrides = sys.argv[1:]

def do(command):
    subprocess.run(json.loads(command), check=True, stdout=subprocess.DEVNULL, timeout=120)

class Struck(Notes):
    struck = None

    def stepped(self, record, workers, losses):
        super().stepped(record, workers, losses)
        if self.struck is None and workers == 2 and record.version >= int(at):
            do(strike)
            self.struck = record.version

    def say(self, text):
        super().say(text)
        if "was lost" in text:
            do(mend)

notes = Struck()
summary = train_job(load_job(path, overrides), notes, RunOptions(address="local"))
print(json.dumps({"summary": summary, "said": notes.said, "struck": notes.struck}))
"""

#: enough for a node's loss to be noticed, and for another node's worker to join, on the way
LONG = 200
#: namespaces and ends of the link between them, with their addresses
HEAD, OTHER = f"mda{os.getpid()}", f"mdb{os.getpid()}"
ADDRESSES = {HEAD: "10.213.7.1", OTHER: "10.213.7.2"}


def striker(at: int, strike: list[str], mend: list[str], *settings: str) -> list[str]:
    """What follows `python -c` for a run of the quickstart's job."""
    return [STRIKER, str(at), json.dumps(strike), json.dumps(mend), str(ROOT / "jobs" / "quickstart.yaml"), *settings]


def drive(cluster: Local, *settings: str) -> subprocess.CompletedProcess[str]:
    """A run in whose fourth step a node is killed."""
    return cluster.run(*striker(4, [str(LOCAL), "kill", "1"], [str(LOCAL), "add"], *settings), timeout=240)


def caches(cluster: Local, node: int) -> list[str]:
    """Stores in a node's own cache."""
    return [path.name for path in Path(cluster.state["root"], str(node), "cache").glob("fetched-*")]


@pytest.mark.slow
def test_a_run_outlives_its_nodes(cluster: Local, tmp_path: Path) -> None:
    """The sha is the in-process runtime's, though a node dies, and another one joins."""
    settings = [*short(tmp_path), f"steps={LONG}"]
    oracle = train_job(job(tmp_path, f"steps={LONG}", "runtime=inprocess"), Notes(), RunOptions())
    both = "resources.workers={min: 2, max: 2}"  # the nodes have one CPU each: without the second it waits
    done = drive(cluster, *settings, both, "resources.shared_storage=true")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    summary = found["summary"]
    assert found["struck"] == 4
    assert summary["worker_losses"] == 1, found["said"]
    assert any("2 nodes; one that dies is missed after about 1.5 s" in text for text in found["said"])
    assert any("was lost" in text and "going on with at least 2 workers" in text for text in found["said"])
    assert (summary["step"], summary["params_sha256"]) == (LONG, oracle["params_sha256"])
    assert summary["test"] == oracle["test"]
    states = [line.split()[2] for line in cluster.sh("status").stdout.splitlines()[:3]]
    assert states == ["alive", "killed", "alive"]
    # The node that joined had none of the data, and nothing but Ray to get it through.
    assert len(caches(cluster, 2)) == 1
    assert caches(cluster, 0) == [], "the driver's node has it already"


@pytest.mark.slow
def test_a_run_goes_on_when_the_node_of_driver_and_server_is_gone(cluster: Local, tmp_path: Path) -> None:
    """And the cluster with it: in another cluster, from the folder that both see."""
    settings = [*short(tmp_path), f"steps={LONG}", "resources.shared_storage=true"]
    oracle = train_job(job(tmp_path, f"steps={LONG}", "runtime=inprocess"), Notes(), RunOptions())
    train = [sys.executable, "-m", "metadist", "train"]
    sets = [part for setting in settings for part in ("--set", setting)]
    begin = [*train, str(ROOT / "jobs" / "quickstart.yaml"), "--run", "gone", "--address", "local", *sets]
    folder, deadline = tmp_path / "gone", time.monotonic() + 120
    with subprocess.Popen(begin, env=cluster.environment, cwd=ROOT, stderr=subprocess.DEVNULL) as driver:
        while not list(folder.glob("checkpoints/step-*")):
            assert driver.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
        driver.kill()
        assert cluster.sh("kill", "0").returncode == 0
    assert driver.returncode == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    assert cluster.sh("down").returncode == 0
    assert cluster.sh("up", "2", "--detect", "fast").returncode == 0
    again = [*train, "--resume", str(folder), "--address", "local", "--json"]
    done = subprocess.run(again, env=cluster.environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["step"], summary["params_sha256"]) == (LONG, oracle["params_sha256"])
    assert summary["test"] == oracle["test"]


@pytest.mark.slow
def test_chaos_takes_nodes_away(cluster: Local, tmp_path: Path) -> None:
    small = ("model.width=8", "tracking.uri=none", "evaluation.test_tasks=16", "resources.shared_storage=true")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "metadist", "chaos", str(ROOT / "jobs" / "quickstart.yaml"), "--steps", "150"),
            *("--kinds", "node=8s", "--address", "local", "--lose-node", f"{LOCAL} replace"),
            *("--storage", str(tmp_path), "--json", *(part for change in small for part in ("--set", change))),
        ],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["faults"]["node"] >= 1
    assert (result["steps"], result["same"]) == (150, True)
    states = [line.split()[2] for line in cluster.sh("status").stdout.splitlines() if line.startswith("node")]
    assert states.count("killed") >= result["faults"]["node"]


def test_a_nodes_own_disk_is_no_storage_for_a_cluster(cluster: Local, tmp_path: Path) -> None:
    refused = drive(cluster, *short(tmp_path))
    assert refused.returncode == 1
    assert "storage: got" in refused.stderr
    assert "--shared-storage" in refused.stderr
    assert not list(tmp_path.iterdir())


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


def within(namespace: str, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", "netns", "exec", namespace, *command], capture_output=True, text=True, **options)


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Local]:
    """A head and another node, each in a namespace of its own, joined by one link."""
    if os.getuid() or shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", HEAD]).returncode:
        pytest.skip("no network namespaces here: they take root and the program ip")
    local = Local(tmp_path / "cluster")
    try:
        ip("netns", "add", OTHER)
        ip("link", "add", HEAD, "netns", HEAD, "type", "veth", "peer", "name", OTHER, "netns", OTHER)
        for name, address in ADDRESSES.items():
            other = next(each for each in ADDRESSES.values() if each != address)
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            for device in ("lo", name):
                ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "route", "add", "default", "via", other)  # by which Ray finds its own address
        for name, command in ((HEAD, ["up", "1", "--detect", "fast"]), (OTHER, ["add"])):
            started = within(name, str(LOCAL), *command, env=local.environment, timeout=200)
            assert started.returncode == 0, started.stderr
        yield local
    finally:
        local.sh("down")
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=10)


@pytest.mark.slow
def test_a_link_that_is_cut_and_comes_back(linked: Local, tmp_path: Path) -> None:
    """The nodes are in network namespaces of their own, which Linux gives to root only."""
    oracle = train_job(job(tmp_path, f"steps={LONG}", "runtime=inprocess"), Notes(), RunOptions())
    settings = [
        *short(tmp_path),
        f"steps={LONG}",
        "resources.workers={min: 1, max: 2}",
        "resources.shared_storage=true",
    ]
    turn = ["ip", "link", "set", HEAD]
    program = striker(0, [*turn, "down"], [*turn, "up"], *settings)
    done = within(HEAD, sys.executable, "-c", *program, env=linked.environment, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    summary = found["summary"]
    assert found["struck"] < LONG, "both nodes had a worker"
    assert summary["worker_losses"] == 1, found["said"]
    assert summary["server_losses"] == 0
    assert (summary["step"], summary["params_sha256"]) == (LONG, oracle["params_sha256"])
    assert summary["test"] == oracle["test"]
