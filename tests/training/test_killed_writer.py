"""Drivers that are killed while they write checkpoints: the newest complete one always loads."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import torch

from metadist.learners import plain_meta
from metadist.outer import Checkpoint, OuterState, decode_checkpoint, encode_checkpoint
from metadist.training.run_folder import RunFolder, checkpoint_name, checkpoint_version

#: drivers of a run that are killed one after the other
DRIVERS = 10
#: seconds within which a driver is killed: it may write a checkpoint or two in that time
LONGEST = 0.01
VALUES = 100_000


def content(version: int) -> bytes:
    """A checkpoint of which every value tells its version."""
    meta = plain_meta({"weight": torch.full((VALUES,), float(version))})
    return encode_checkpoint(Checkpoint(OuterState(version, meta, {}), "identity", {}, ""))


def drive(run: str, contents: list[bytes], seconds: float, told: int) -> None:
    """In a process of its own: takes the run over and writes checkpoints, each told of when it is there.

    The timer's signal ends the process wherever it is, as SIGKILL would: nothing catches it.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    folder = RunFolder(run).acquire()
    saved = folder.checkpoints()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    for version in range(checkpoint_version(saved[-1]) + 1 if saved else 0, len(contents)):
        folder.write(checkpoint_name(version), contents[version])
        os.write(told, version.to_bytes(4, "big"))
    signal.pause()


def killed(run: str, contents: list[bytes], seconds: float) -> int:
    """Let a driver be killed; the last version that it told of, or -1."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            drive(run, contents, seconds, write)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        told = stream.read()
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), "the driver ended by itself"
    assert os.WTERMSIG(status) == signal.SIGALRM
    return int.from_bytes(told[-4:], "big") if told else -1


@pytest.mark.parametrize("runs", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_the_newest_checkpoint_loads_after_a_kill_at_any_instant(tmp_path: Path, runs: int) -> None:
    instants, contents = random.Random(0), [content(version) for version in range(64)]
    torn = 0
    for number in range(runs):
        run, before = tmp_path / str(number), -1
        for _ in range(DRIVERS):
            told = max(before, killed(str(run), contents, instants.uniform(1e-5, LONGEST)))
            torn += bool(list(run.glob("checkpoints/.*")))
            saved = RunFolder(str(run)).checkpoints()
            before = checkpoint_version(saved[-1]) if saved else -1
            assert told <= before <= told + 1
            if saved:
                state = decode_checkpoint(RunFolder(str(run)).read(saved[-1]), saved[-1]).state
                assert state.version == before
                assert torch.equal(state.meta.parameters["weight"], torch.full((VALUES,), float(before)))
        RunFolder(str(run)).acquire()
        assert not list(run.glob("checkpoints/.*")), "what was not whole goes with the next driver"
    assert torn > runs * DRIVERS / 10, "many were killed in the middle of a file"
