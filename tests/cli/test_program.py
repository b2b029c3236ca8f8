"""The command line as a program: version, help, signals, a closed pipe."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metadist as package


def test_version(start: Callable[..., subprocess.Popen[str]]) -> None:
    program = start("--version")
    out, err = program.communicate(timeout=60)
    assert (program.returncode, out, err) == (0, f"metadist {package.__version__}\n", "")


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["evaluate"],
        ["data"],
        ["data", "prepare"],
        ["data", "info"],
        ["submit"],
        ["jobs"],
        ["jobs", "stop"],
        ["list"],
    ],
)
def test_help(metadist: Callable[..., Any], command: list[str]) -> None:
    ended = metadist(*command, "--help")
    assert ended.code == 0
    assert "Usage: metadist" in ended.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(
    start: Callable[..., subprocess.Popen[str]],
    metadist: Callable[..., Any],
    job: str,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    """The step in progress ends, a checkpoint is written, and the message says how to go on."""
    storage = tmp_path / "runs"
    program = start("train", job, "--storage", str(storage), "--set", "steps=1000000", "--json")
    assert program.stderr is not None
    for line in program.stderr:
        if line.startswith("· step 2: validation"):
            break
    program.send_signal(number)
    out, err = program.communicate(timeout=60)
    assert program.returncode == code, err
    assert "Traceback" not in err
    (run,) = storage.iterdir()
    assert f"To go on: metadist train --resume {run}" in err
    stopped = json.loads(out.splitlines()[-1])
    assert stopped["outcome"] == "stopped"
    assert (run / "checkpoints" / f"step-{stopped['step']:08d}.safetensors").exists()
    on = metadist("train", "--resume", str(run), "--stop-after", str(stopped["step"] + 1), "--json")
    assert on.code == 0, on.err
    assert on.result["step"] == stopped["step"] + 1


def test_closed_pipe(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """As in `metadist keys | head -1`."""
    program = start("keys")
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.close()
    err = program.stderr.read()
    program.wait(timeout=60)
    assert "Traceback" not in err
