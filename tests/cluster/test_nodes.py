"""A run on a real cluster whose nodes share nothing: its data reaches them, they come and go, the bits stay."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from local_cluster import ROOT, Local
from test_same_bits import STEPS, job, short

from metadist.distributed.run import RunOptions, train_job
from metadist.testing.observers import Notes

#: drives a run as `metadist train` does; kills a node after a named step, and adds one when the loss was noticed
DRIVER = """
import json, os, subprocess, sys
from metadist.config import load_job
from metadist.distributed.run import RunOptions, train_job
from metadist.testing.observers import Notes

killed, path, *overrides = sys.argv[1:]

def change(*command):
    subprocess.run([os.environ["LOCAL"], *command], check=True, stdout=subprocess.DEVNULL, timeout=120)

class Nodes(Notes):
    def stepped(self, record, workers, losses):
        super().stepped(record, workers, losses)
        if record.version == int(killed):
            change("kill", "1")

    def say(self, text):
        super().say(text)
        if "was lost" in text:
            change("add")

notes = Nodes()
summary = train_job(load_job(path, overrides), notes, RunOptions(address="local"))
print(json.dumps({"summary": summary, "said": notes.said}))
"""


def drive(cluster: Local, *settings: str, killed: int = 0) -> subprocess.CompletedProcess[str]:
    return cluster.run(DRIVER, str(killed), str(ROOT / "jobs" / "quickstart.yaml"), *settings, timeout=240)


def caches(cluster: Local, node: int) -> list[str]:
    """Stores in a node's own cache."""
    return [path.name for path in Path(cluster.state["root"], str(node), "cache").glob("fetched-*")]


@pytest.mark.slow
def test_a_run_outlives_its_nodes(cluster: Local, tmp_path: Path) -> None:
    """The sha is the in-process runtime's, though a node dies, and another one joins."""
    settings = short(tmp_path)
    oracle = train_job(job(tmp_path, "runtime=inprocess"), Notes(), RunOptions())
    both = "resources.workers={min: 2, max: 2}"  # the nodes have one CPU each: without the second it waits
    done = drive(cluster, *settings, both, "resources.shared_storage=true", killed=4)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    summary = found["summary"]
    assert summary["worker_losses"] == 1, found["said"]
    assert any("2 nodes; one that dies is missed after about 1.5 s" in text for text in found["said"])
    assert any("was lost" in text and "going on with at least 2 workers" in text for text in found["said"])
    assert (summary["step"], summary["params_sha256"]) == (STEPS, oracle["params_sha256"])
    assert summary["test"] == oracle["test"]
    states = [line.split()[2] for line in cluster.sh("status").stdout.splitlines()[:3]]
    assert states == ["alive", "killed", "alive"]
    # The node that joined had none of the data, and nothing but Ray to get it through.
    assert len(caches(cluster, 2)) == 1
    assert caches(cluster, 0) == [], "the driver's node has it already"


def test_a_nodes_own_disk_is_no_storage_for_a_cluster(cluster: Local, tmp_path: Path) -> None:
    refused = drive(cluster, *short(tmp_path))
    assert refused.returncode == 1
    assert "storage: got" in refused.stderr
    assert "--shared-storage" in refused.stderr
    assert not list(tmp_path.iterdir())
