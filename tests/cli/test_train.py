"""`metadist train`: what it prints, where it writes, stopping and going on."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_json_is_the_last_line_of_stdout(finished: Any) -> None:
    (line,) = finished.out.splitlines()
    result = json.loads(line)
    wanted = {"run_dir", "mlflow_run_id", "step", "params_sha256", "tasks_per_second", "valid", "test"}
    assert wanted <= result.keys()
    assert result["step"] == 6
    assert result["mlflow_run_id"] is None
    assert result["tasks_per_second"] > 0
    assert len(result["params_sha256"]) == 64
    assert os.path.isdir(result["run_dir"])
    for name in ("valid", "test"):
        inside = {"accuracy", "ci95", "loss", "tasks", "per_step", "from_scratch"}
        assert inside <= result[name].keys()
        assert result[name]["tasks"] == 4
        assert 0 <= result[name]["accuracy"] <= 1
        assert [point["step"] for point in result[name]["per_step"]] == [0, 1]


def test_summary_file_is_the_json(finished: Any, run: str) -> None:
    summary = json.loads(Path(run, "summary.json").read_text())
    assert {key: finished.result[key] for key in summary} == summary


def test_plain_lines_without_a_terminal(finished: Any) -> None:
    assert "\x1b" not in finished.err
    lines = finished.err.splitlines()
    assert any(line.startswith("step 6/6  loss ") for line in lines)
    assert any(line.startswith("· step 2: validation ") for line in lines)
    assert f"params_sha256 {finished.result['params_sha256']}" in lines
    assert any(finished.result["run_dir"] in line for line in lines)


def test_stdout_is_empty_without_json(metadist: Callable[..., Any], job: str, tmp_path: Path) -> None:
    ended = metadist("train", job, "--storage", str(tmp_path / "runs"), "--steps", "1")
    assert ended.code == 0, ended.err
    assert ended.out == ""


def test_shorthands(metadist: Callable[..., Any], job: str, tmp_path: Path) -> None:
    """Options win over --set; a name may have spaces, quotes and any letters."""
    name = "ünï cödé 'x' 🦊: #1"
    ended = metadist(
        "train", job, "--set", "steps=9", "--steps", "1", "--workers", "3",
        "--storage", str(tmp_path / "my runs"), "--name", name, "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    run = Path(ended.result["run_dir"])
    assert ended.result["step"] == 1
    assert run.parent == tmp_path / "my runs"
    assert run.name.startswith(f"{name}-")
    again = metadist("evaluate", str(run), "--json")
    assert again.code == 0, again.err


def test_stop_and_resume(metadist: Callable[..., Any], job: str, tmp_path: Path, finished: Any) -> None:
    stopped = metadist("train", job, "--storage", str(tmp_path / "runs"), "--stop-after", "4", "--json")
    assert (stopped.code, stopped.result["outcome"], stopped.result["step"]) == (0, "stopped", 4)
    assert stopped.result["params_sha256"] != finished.result["params_sha256"]
    run = stopped.result["run_dir"]
    assert f"To go on: metadist train --resume {run}" in stopped.err
    ended = metadist("train", "--resume", run, "--json")
    assert ended.code == 0, ended.err
    assert "going on from step 4" in ended.err
    assert ended.result["step"] == 6
    assert ended.result["params_sha256"] == finished.result["params_sha256"]
    assert ended.result["test"] == finished.result["test"]
    assert ended.result["run_dir"] == run


def test_a_named_run_goes_on(metadist: Callable[..., Any], job: str, tmp_path: Path, finished: Any) -> None:
    command = ["train", job, "--storage", str(tmp_path / "runs"), "--run", "mine", "--json"]
    stopped = metadist(*command, "--stop-after", "4")
    assert (stopped.code, stopped.result["run_dir"]) == (0, str(tmp_path / "runs" / "mine"))
    ended = metadist(*command)
    assert "going on from step 4" in ended.err
    assert ended.result["params_sha256"] == finished.result["params_sha256"]
    other = metadist(*command, "--set", "seed=1")
    assert other.code == 2
    assert "--run: got" in other.err
    assert "changed: seed" in other.err
    for checkpoint in (tmp_path / "runs" / "mine" / "checkpoints").iterdir():
        checkpoint.unlink()
    anew = metadist(*command)
    assert anew.result["params_sha256"] == finished.result["params_sha256"]
    assert "going on" not in anew.err


@pytest.mark.parametrize(
    ("options", "message"), [(["--run", "a/b"], "--run: got 'a/b'"), (["--run", ""], "--run: got ''")]
)
def test_a_run_needs_a_name_for_a_folder(
    metadist: Callable[..., Any], job: str, tmp_path: Path, options: list[str], message: str
) -> None:
    ended = metadist("train", job, "--storage", str(tmp_path), *options)
    assert ended.code == 2
    assert message in ended.err
    assert not list(tmp_path.glob("runs/*"))


def test_resume_from_elsewhere(
    metadist: Callable[..., Any], job: str, tmp_path: Path, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative storage is the working folder's; the run goes on from any other one, and by a relative path."""
    monkeypatch.chdir(tmp_path)
    stopped = metadist("train", job, "--stop-after", "2", "--storage", "runs/", "--json")
    assert stopped.code == 0, stopped.err
    run = tmp_path / stopped.result["run_dir"]
    other = tmp_path / "other place"
    other.mkdir()
    monkeypatch.chdir(other)
    ended = metadist("train", "--resume", f"../runs/{run.name}/", "--set", "resources.workers=3", "--json")
    assert ended.code == 0, ended.err
    assert ended.result["params_sha256"] == finished.result["params_sha256"]
    assert not list(other.iterdir())


def test_resume_of_a_finished_run(
    metadist: Callable[..., Any], job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metadist.training.judged.SECONDS", 0.0)
    first = metadist("train", job, "--storage", str(tmp_path / "runs"), "--json")
    assert not Path(first.result["run_dir"], "judged").exists(), "what was kept of the tests is in the summary now"
    again = metadist("train", "--resume", first.result["run_dir"], "--json")
    assert again.code == 0, again.err
    for key in ("step", "params_sha256", "test", "valid", "tested_step"):
        assert again.result[key] == first.result[key]


def test_moved_run(metadist: Callable[..., Any], job: str, tmp_path: Path, finished: Any) -> None:
    stopped = metadist("train", job, "--storage", str(tmp_path / "runs"), "--stop-after", "3", "--json")
    moved = Path(stopped.result["run_dir"]).rename(tmp_path / "archive")
    ended = metadist("train", "--resume", str(moved), "--json")
    assert ended.code == 0, ended.err
    assert ended.result["params_sha256"] == finished.result["params_sha256"]


def test_home_folder(metadist: Callable[..., Any], job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a job file no shell replaces `~`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    ended = metadist("train", job, "--set", "storage=~/runs", "--steps", "1", "--json")
    assert ended.code == 0, ended.err
    assert Path(ended.result["run_dir"]).parent == tmp_path / "home" / "runs"


def test_uri(metadist: Callable[..., Any], job: str, tmp_path: Path) -> None:
    storage = f"file://{tmp_path}/runs"
    stopped = metadist("train", job, "--storage", storage, "--stop-after", "1", "--json")
    assert stopped.code == 0, stopped.err
    assert stopped.result["run_dir"].startswith(f"{storage}/tiny-")
    assert metadist("train", "--resume", stopped.result["run_dir"], "--json").result["step"] == 6


def test_resume_hint_can_be_pasted(metadist: Callable[..., Any], job: str, tmp_path: Path) -> None:
    """Whatever the folder is called, a shell reads the hint as three words after the command."""
    ended = metadist("train", job, "--storage", str(tmp_path / "it's mine"), "--stop-after", "1", "--json")
    (hint,) = (line.partition("To go on: ")[2] for line in ended.err.splitlines() if "To go on: " in line)
    assert shlex.split(hint) == ["metadist", "train", "--resume", ended.result["run_dir"]]


def test_json_has_no_nan(metadist: Callable[..., Any], tmp_path: Path) -> None:
    """A step size that diverges at evaluation only; strict readers of JSON refuse NaN."""
    job = tmp_path / "job.yaml"
    job.write_text(
        "runtime: inprocess\nsteps: 1\ntracking: {uri: none}\nmodel: {kind: mlp, hidden: [8]}\n"
        "tasks: {kind: sinusoid, shots: 3, query: 3, batch: 2, chunk: 2}\n"
        "learner: {inner_lr: 3, inner_steps: 1, eval_steps: 300}\nevaluation: {tasks: 2, test_tasks: 2}\n"
    )
    ended = metadist("train", str(job), "--storage", str(tmp_path / "runs"), "--json")
    assert ended.code == 0, ended.err
    assert "NaN" not in ended.out
    assert "Infinity" not in ended.out
    assert ended.result["test"]["loss"] is None


def test_interrupted_before_it_began(
    metadist: Callable[..., Any], job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing could be resumed, so nothing is left."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("metadist.training.loop._Run._check", interrupt)
    ended = metadist("train", job, "--storage", str(tmp_path / "runs"))
    assert ended.code == 130
    assert not list((tmp_path / "runs").iterdir())
