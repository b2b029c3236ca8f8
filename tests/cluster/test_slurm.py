"""The Slurm script, run with stand-ins for Slurm, `ray` and `metadist` that write down how they were called."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "slurm" / "train.sbatch"

#: `ray start --block` and `metadist train` run until they are told to end; the rest answers at once
STAND_IN = """#!/bin/bash
name=${0##*/}
ends_with=0
trap 'echo "$name $1 ended" >>CALLS; kill $!; exit $ends_with' TERM
case "$name $1" in
  "srun -"*) echo "srun $*" >>CALLS; while [[ $1 == -* ]]; do shift; done; exec "$@" ;;
  "metadist train") # the machines are there before a run begins
    ends_with=143
    machines=$((SLURM_JOB_NUM_NODES > 1 ? 2 : 1))
    until (($(grep -c "^ray start -" CALLS) == machines)); do read -rt 0.02 <> <(:); done ;;
esac
echo "$name $*" >>CALLS
case "$name $1" in
  "ray start") [[ ! -e FOLDER/no-head ]] || exit 1 ;;
  "metadist train") [[ ! -e FOLDER/result ]] || exit "$(<FOLDER/result)" ;;
  *) exit 0 ;;
esac
tail -f /dev/null &
wait
"""


class Allocation:
    """A machine with the script on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        programs = folder / "venv" / "bin"
        programs.mkdir(parents=True)
        for name in ("srun", "scontrol", "ray", "metadist"):
            text = STAND_IN.replace("CALLS", str(folder / "calls")).replace("FOLDER", str(folder))
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)

    def start(self, *arguments: str, nodes: int = 3) -> subprocess.Popen[str]:
        slurm = {
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_CPUS_PER_TASK": "4",
            "SLURMD_NODENAME": "n1",
            "METADIST_VENV": str(self.folder / "venv"),
        }
        script = subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env=dict(os.environ) | slurm,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(script)
        return script

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def wait_for(self, begin: str) -> str:
        """The call that begins so, when it has come."""
        deadline = time.monotonic() + 30
        while not (found := [call for call in self.calls() if call.startswith(begin)]):
            assert time.monotonic() < deadline, self.calls()
            threading.Event().wait(0.02)
        return found[0]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Allocation]:
    allocation = Allocation(tmp_path)
    yield allocation
    for script in allocation.started:
        alive = script.poll() is None
        if alive:
            os.killpg(script.pid, signal.SIGKILL)
        script.communicate(timeout=10)
        assert not alive, "the script ends by itself in every test"


def test_the_end_of_the_time_saves_and_queues_again(machine: Allocation) -> None:
    script = machine.start("job.yaml", "a-run", "--steps", "9")
    command = machine.wait_for("metadist")
    script.send_signal(signal.SIGUSR1)
    assert script.wait(30) == 143
    assert command.startswith("metadist train job.yaml --run a-run --address ")
    assert command.endswith(":24711 --shared-storage --steps 9")
    calls = machine.calls()
    assert calls.index("metadist train ended") < calls.index("scontrol requeue 4711")
    assert calls.count("ray start ended") == 2, "the head, and the one srun that stands for all others"


def test_a_cancelled_job_is_not_queued_again(machine: Allocation) -> None:
    script = machine.start("job.yaml", "a-run")
    machine.wait_for("metadist")
    script.send_signal(signal.SIGTERM)
    assert script.wait(30) == 143
    assert "metadist train ended" in machine.calls()
    assert not [call for call in machine.calls() if call.startswith("scontrol")]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_run_that_ends_by_itself_gives_its_code(machine: Allocation, code: int) -> None:
    (machine.folder / "result").write_text(str(code))
    script = machine.start("job.yaml", "a-run")
    assert script.wait(30) == code
    assert not [call for call in machine.calls() if call.startswith("scontrol")]
    assert machine.calls().count("ray start ended") == 2


def test_the_other_machines_join_the_head(machine: Allocation) -> None:
    (machine.folder / "result").write_text("0")
    assert machine.start("job.yaml", "a-run").wait(30) == 0
    head, other = (call for call in machine.calls() if call.startswith("ray start -"))
    if "--head" not in head:
        head, other = other, head
    assert "--port=24711" in head
    assert ":24711" in other
    assert all("--num-cpus=4" in call and "--temp-dir=/tmp/metadist-slurm-4711" in call for call in (head, other))


def test_one_machine_needs_no_srun(machine: Allocation) -> None:
    (machine.folder / "result").write_text("0")
    assert machine.start("job.yaml", "a-run", nodes=1).wait(30) == 0
    assert not [call for call in machine.calls() if call.startswith("srun")]


def test_a_head_that_does_not_start_ends_the_job(machine: Allocation) -> None:
    (machine.folder / "no-head").touch()
    ray = machine.folder / "venv/bin/ray"
    ray.write_text(ray.read_text().replace("*) exit 0", "*) exit 1"))
    assert machine.start("job.yaml", "a-run").wait(30) == 1
    assert not [call for call in machine.calls() if call.startswith("metadist")]


def test_what_is_missing_is_said(machine: Allocation) -> None:
    script = machine.start("job.yaml")
    assert script.wait(30) == 2
    assert script.stdout is not None
    assert "usage: sbatch train.sbatch JOB.yaml RUN" in script.stdout.read()
    assert machine.calls() == []


def test_slurm_sees_every_directive() -> None:
    """Slurm reads no further than the first command."""
    lines = SCRIPT.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    directives = {number: line for number, line in enumerate(lines) if line.startswith("#SBATCH")}
    assert max(directives) < first
    assert {"#SBATCH --requeue", "#SBATCH --no-kill", "#SBATCH --signal=B:USR1@120"} <= set(directives.values())


@pytest.mark.parametrize("script", [SCRIPT, ROOT / "cluster" / "local.sh"], ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([checker, "--severity=warning", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
