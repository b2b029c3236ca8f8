"""`metadist tune`: what is refused before anything starts, what its options change, how its result is shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metadist.cli import tune
from metadist.cli.tune import show_sweep
from metadist.config import Job

REPOSITORY = Path(__file__).parent.parent.parent
RESULT: dict[str, Any] = {
    "sweep_dir": "/runs/a sweep",
    "state": "finished",
    "metric": "valid/accuracy",
    "best": {"trial": 1, "value": 0.98765, "step": 50, "job": "/runs/a sweep/best.yaml"},
    "trials": [
        {"trial": 1, "learner.inner_lr": 0.03, "best valid/accuracy": 0.98765, "at step": 50, "state": "finished"},
        {"trial": 0, "learner.inner_lr": 9.0, "best valid/accuracy": None, "at step": None, "state": "diverged"},
    ],
}


@pytest.mark.parametrize("arguments", [[], ["JOB", "--resume", "x"], ["--resume", "x", "--storage", "y"]])
def test_options_that_do_not_go_together(metadist: Callable[..., Any], job: str, arguments: list[str]) -> None:
    ended = metadist("tune", *(job if argument == "JOB" else argument for argument in arguments))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "--resume" in ended.err


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("tune.sapce={}", "tune.sapce"),
        ("tune.scheduler=ahsa", "tune.scheduler"),
        ("tune.space.learner.inner_lr=0.1", "tune.space.learner.inner_lr"),
        ("tune.space.learner.iner_lr={uniform: [0.1, 0.2]}", "tune.space.learner.iner_lr"),
        ("tune.space.tasks.ways={integers: [2, 30]}", "tune.space.tasks.ways"),
        ("data.split.valid=null", "data.split.valid"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    metadist: Callable[..., Any], job: str, tmp_path: Path, override: str, field: str
) -> None:
    ended = metadist("tune", job, "--storage", str(tmp_path / "runs"), "--set", override)
    assert ended.code == 2
    assert ended.err.startswith(f"metadist: {field}: ")
    assert not (tmp_path / "runs").exists()


def test_shorthands(metadist: Callable[..., Any], job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []

    def start(job: Job, say: Any, options: Any) -> dict[str, Any]:
        jobs.append(job)
        assert options.address == "there:1"
        return RESULT

    monkeypatch.setattr("metadist.tuning.sweep.start_sweep", start)
    more = ["--samples", "7", "--name", "mine", "--storage", "there", "--address", "there:1", "--json"]
    ended = metadist("tune", job, *more)
    assert ended.code == 0, ended.err
    assert (jobs[0].tune.num_samples, jobs[0].name, jobs[0].storage) == (7, "mine", "there")
    assert ended.result == RESULT


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("out of time", 0), ("failed", 1)])
def test_exit_codes(
    metadist: Callable[..., Any], job: str, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    monkeypatch.setattr("metadist.tuning.sweep.start_sweep", lambda *_: RESULT | {"state": state, "best": None})
    ended = metadist("tune", job)
    assert ended.code == code
    assert ("--resume '/runs/a sweep'" in ended.err) == (state == "out of time")


def test_the_result_is_shown_in_percent(capsys: pytest.CaptureFixture[str]) -> None:
    show_sweep(RESULT)
    out, err = capsys.readouterr()
    assert out == ""
    assert "best valid/accuracy (%)" in err
    assert "98.77 " in err
    assert "diverged" in err
    assert "metadist train '/runs/a sweep/best.yaml'" in err


def test_losses_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"trial": 0, "best valid/loss": 0.98765, "state": "finished"}
    best = RESULT["best"] | {"trial": 0}
    show_sweep(RESULT | {"metric": "valid/loss", "trials": [row], "best": best})
    err = capsys.readouterr().err
    assert "0.98765" in err
    assert "%" not in err


def test_keys_tell_of_the_sweep(metadist: Callable[..., Any]) -> None:
    ended = metadist("keys", "tune")
    assert ended.code == 0
    for key in ("space", "initial", "num_samples", "scheduler", "time_budget", "resources"):
        assert f"tune.{key}" in ended.out
    assert "loguniform" in ended.out


def test_the_job_in_the_repository_is_a_sweep() -> None:
    from metadist.config import load_job
    from metadist.tuning.space import draw_trials, read_space

    job = load_job(str(REPOSITORY / "jobs" / "omniglot-maml-sweep.yaml"))
    space = read_space(job)
    assert [dimension.values for dimension in space] == [(0.01, 10.0), (1e-5, 0.1)]
    assert draw_trials(job, space)[0] == {"learner.inner_lr": 0.4, "optimizer.lr": 0.001}


def test_a_second_signal_ends_at_once() -> None:
    talk = tune._Talk()
    talk._handle(2, None)
    assert talk.stopping()
    with pytest.raises(KeyboardInterrupt):
        talk._handle(2, None)
