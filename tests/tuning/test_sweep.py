"""Whole sweeps in the shared Ray session: what they leave in their folder and in MLflow, and how they end early."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metadist.config import load_job
from metadist.errors import UserError
from metadist.tuning.follow import Follower
from metadist.tuning.space import draw_trials, read_space
from metadist.tuning.sweep import SweepOptions, resume_sweep, start_sweep

Write = Callable[..., str]

#: a space of drawn values only, and no trials to compare with
DRAWN = ("tune.space={learner.inner_lr: {loguniform: [0.001, 0.1]}}", "tune.initial=[]", "tune.num_samples=2")


def sweep(job: str, *overrides: str, **options: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return start_sweep(load_job(job, overrides), said.append, SweepOptions(**options)), said


def by_number(result: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {row["trial"]: row for row in result["trials"]}


def test_every_trial_has_its_end(swept: Any) -> None:
    rows = by_number(swept.result)
    assert {number: row["state"] for number, row in rows.items()} == {
        0: "finished (given)",
        1: rows[1]["state"],
        2: "stopped",
        3: "diverged",
    }
    assert rows[1]["state"] in ("finished", "stopped")
    assert rows[0]["steps"] == 12
    assert rows[2]["steps"] == 4  # the first rung
    assert rows[3]["best valid/loss"] is None
    assert swept.result["state"] == "finished"


def test_the_table_is_sorted_and_on_the_terminal(swept: Any) -> None:
    losses = [row["best valid/loss"] for row in swept.result["trials"]]
    assert losses[-1] is None
    assert losses[:-1] == sorted(losses[:-1])
    head = next(line for line in swept.err.splitlines() if line.startswith("trial  "))
    for column in ("learner.inner_lr", "optimizer.lr", "best valid/loss", "steps", "state"):
        assert column in head
    assert "finished (given)" in swept.err
    assert swept.out.count("\n") == 1


def test_progress_is_plain_lines(swept: Any) -> None:
    lines = swept.err.splitlines()
    assert "· trial-000 starts: learner.inner_lr 0.01, optimizer.lr 0.001" in lines
    assert any(line.startswith("· trial-000 step 4: validation loss ") for line in lines)
    assert any(line.startswith("· trial-000 finished at step 12: ") for line in lines)
    assert any(line.startswith("· trial-002 stopped by asha at step 4: ") for line in lines)
    assert any(line.startswith("· trial-003 diverged (step 1: ") for line in lines)
    assert not [line for line in lines if "Tune" in line or "╭" in line]


def test_the_folder_holds_the_result(swept: Any, place: Path) -> None:
    names = {path.name for path in place.iterdir()}
    wanted = {"job.yaml", "sweep.json", "table.csv", "best.yaml", "heatmap.png", "curves.png"}
    assert wanted | {f"trial-{n:03d}" for n in range(4)} <= names
    with (place / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in table] == [row["trial"] for row in swept.result["trials"]]
    record = json.loads((place / "sweep.json").read_text())
    assert record["state"] == "finished"
    assert record["best"] == swept.result["trials"][0]["trial"]
    assert (place / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_best_is_a_ready_job(swept: Any, place: Path, metadist: Callable[..., Any]) -> None:
    best = swept.result["best"]
    job = load_job(str(place / "best.yaml"))
    assert job.learner.inner_lr == best["values"]["learner.inner_lr"]  # type: ignore[union-attr]
    assert job.optimizer.lr == best["values"]["optimizer.lr"]
    trained = metadist("train", str(place / "best.yaml"), "--steps", "1", "--set", "tracking.uri=none", "--json")
    assert trained.code == 0, trained.err


def test_trials_are_what_their_seed_says(swept: Any, place: Path) -> None:
    job = load_job(str(place / "job.yaml"))
    drawn = draw_trials(job, read_space(job))
    rows = by_number(swept.result)
    for number, values in enumerate(drawn):
        assert {path: rows[number][path] for path in values} == values


def test_mlflow_has_a_parent_and_its_children(swept: Any, place: Path, runs: Any) -> None:
    store = runs(f"sqlite:///{place.parent.parent}/mlflow.db")
    (parent,) = store.parents
    assert parent.info.run_id == swept.result["mlflow_run_id"]
    assert parent.info.status == "FINISHED"
    children = store.children(parent)
    assert sorted(children) == [f"trial-{n:03d}" for n in range(4)]
    assert len(store.all) == 5
    status = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED"}
    rows = by_number(swept.result)
    for name, child in children.items():
        row = rows[int(name[-3:])]
        assert child.info.status == status[row["state"].split()[0]]
        assert float(child.data.params["learner.inner_lr"]) == row["learner.inner_lr"]
        assert child.data.params["tasks.kind"] == "sinusoid"
        written = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
        expected: dict[str, list[tuple[int, float]]] = {}
        for line in written:
            for key, value in line["values"].items():
                expected.setdefault(key, []).append((line["step"], value))
        history = store.history(child)
        assert history.keys() == expected.keys()
        for key, points in expected.items():
            assert history[key] == points, (name, key)
    found = store.artifacts(parent)
    assert {"best.yaml", "table.csv", "heatmap.png", "curves.png", "job.yaml", "sweep.json"} <= found
    assert any(path.startswith("checkpoints/step-") for path in found)
    assert "plots/training.png" in store.artifacts(children["trial-000"])
    record = json.loads((place / "sweep.json").read_text())
    assert {t["mlflow_run_id"] for t in record["trials"]} == {c.info.run_id for c in children.values()}
    assert all(t["tracked"] for t in record["trials"])


def test_a_finished_sweep_is_told_again(swept: Any, place: Path, metadist: Callable[..., Any], runs: Any) -> None:
    before = (place / "trial-000" / "lease.json").read_text()
    ended = metadist("tune", "--resume", str(place), "--json")
    assert ended.code == 0, ended.err
    assert ended.result["trials"] == swept.result["trials"]
    assert (place / "trial-000" / "lease.json").read_text() == before
    store = runs(f"sqlite:///{place.parent.parent}/mlflow.db")
    assert len(store.all) == 5
    assert [run for run in store.all if run.info.status == "RUNNING"] == []


def test_another_sweep_is_refused(place: Path, metadist: Callable[..., Any]) -> None:
    ended = metadist("tune", "--resume", str(place), "--set", "model.hidden=[9]")
    assert ended.code == 2
    assert "model.hidden" in ended.err


def alive(*names: str) -> list[str]:
    """Actors of these classes that live, as Ray's control store says."""
    from ray._private.state import actors

    return [a["ActorClassName"] for a in actors().values() if a["State"] != "DEAD" and a["ActorClassName"] in names]


@pytest.mark.slow
def test_workers_and_servers_are_in_the_trials_own_placement(
    ray: Any, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial of two workers reserves all four CPUs: a worker outside of its placement would wait for ever."""
    placements: list[list[dict[str, float]]] = []
    during: list[list[str]] = []
    plain = Follower.on_trial_result

    def spy(self: Follower, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        if result["state"] == "running":
            groups = ray.util.placement_group_table().values()
            placements.extend([list(g["bundles"].values()) for g in groups if g["state"] == "CREATED"])
            during.append(alive("WorkerActor", "ServerActor"))
        plain(self, iteration, trials, trial, result, **info)

    monkeypatch.setattr(Follower, "on_trial_result", spy)
    result, _ = sweep(
        write(),
        *DRAWN,
        "runtime=ray",
        "steps=5",
        "tune.num_samples=1",
        "tune.resources={workers: 2, cpus_per_worker: 2}",
        "tracking.uri=none",
        f"storage={tmp_path}/runs",
    )
    assert [row["state"] for row in result["trials"]] == ["finished"]
    assert placements == [[{"CPU": 2.0}, {"CPU": 2.0}]]
    assert [sorted(names) for names in during] == [["ServerActor", "WorkerActor", "WorkerActor"]]
    deadline = time.monotonic() + 30
    while alive("WorkerActor", "ServerActor", "Trial") and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert not alive("WorkerActor", "ServerActor", "Trial")
    assert not [g for g in ray.util.placement_group_table().values() if g["state"] == "CREATED"]


def test_a_trial_whose_process_dies_goes_on_from_its_folder(
    ray: Any, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    struck: list[int] = []
    plain = Follower.on_trial_result

    def strike(self: Follower, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        plain(self, iteration, trials, trial, result, **info)
        if result["step"] == 8 and not struck:
            struck.append(result["pid"])
            os.kill(result["pid"], signal.SIGKILL)

    monkeypatch.setattr(Follower, "on_trial_result", strike)
    overrides = [*DRAWN, "tune.num_samples=1", "tracking.uri=none", "checkpoint.every=4"]
    result, said = sweep(write(), *overrides, f"storage={tmp_path}/runs")
    assert struck
    assert [(row["state"], row["steps"]) for row in result["trials"]] == [("finished", 12)]
    assert any(line.startswith("trial-000 goes on: ") for line in said)
    metrics = Path(result["sweep_dir"], "trial-000", "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 12 + 3
    lease = json.loads(Path(result["sweep_dir"], "trial-000", "lease.json").read_text())
    assert lease["epoch"] == 2


@pytest.mark.slow
def test_asking_to_stop_saves_and_can_be_gone_on_with(ray: Any, write: Write, tmp_path: Path, runs: Any) -> None:
    """The sweep ends soon, its trial with a checkpoint; the rest is done when it goes on."""
    long = [*DRAWN, "steps=4000", "tune.num_samples=1", "tune.scheduler=none", "evaluation.every=20"]
    said: list[str] = []

    def stop() -> bool:
        return any("step 20" in line for line in said)

    job = load_job(write(), [*long, f"storage={tmp_path}/runs"])
    result = start_sweep(job, said.append, SweepOptions(stop=stop))
    assert result["state"] == "interrupted"
    (row,) = result["trials"]
    assert row["state"] == "unfinished"
    assert 20 <= row["steps"] < 4000
    folder = Path(result["sweep_dir"])
    newest = sorted((folder / "trial-000" / "checkpoints").iterdir())[-1].name
    assert newest == f"step-{row['steps']:08d}.safetensors"
    store = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert {run.info.status for run in store.all} == {"KILLED"}

    with pytest.raises(UserError, match=r"--resume.*steps"):
        resume_sweep(str(folder), lambda old: replace(old, steps=60), said.append, SweepOptions())
    said.clear()
    again = resume_sweep(str(folder), lambda old: old, said.append, SweepOptions(stop=lambda: stop_at(said, 60)))
    assert any(line.startswith("trial-000 goes on") for line in said)
    assert again["trials"][0]["steps"] > row["steps"]
    assert len(runs(f"sqlite:///{tmp_path}/mlflow.db").all) == 2


def stop_at(said: list[str], step: int) -> bool:
    return any(f"step {at}:" in line for line in said for at in range(step, 4001, 20))


def test_time_runs_out(ray: Any, write: Write, tmp_path: Path) -> None:
    overrides = [*DRAWN, "steps=100000", "tune.time_budget=1", "tracking.uri=none", "tune.scheduler=none"]
    result, said = sweep(write(), *overrides, "evaluation.every=100000", f"storage={tmp_path}/runs")
    assert result["state"] == "out of time"
    assert any("time budget of 1 s is used up" in line for line in said)
    assert all(row["state"] == "unfinished" for row in result["trials"])


def test_median_stopping(ray: Any, write: Write, tmp_path: Path) -> None:
    good = ", ".join(f"{{learner.inner_lr: {rate}}}" for rate in (0.01, 0.011, 0.012))
    overrides = ["tune.scheduler=median", f"tune.initial=[{good}]", "tracking.uri=none"]
    space = "tune.space={learner.inner_lr: {grid: [5.0]}}"
    result, said = sweep(write(), *overrides, space, f"storage={tmp_path}/runs")
    rows = by_number(result)
    assert [rows[n]["state"] for n in range(4)] == ["finished (given)"] * 3 + ["stopped"]
    assert any("stopped by median" in line for line in said)


@pytest.mark.slow
def test_a_trial_that_fails_is_told_and_the_others_go_on(ray: Any, write: Write, tmp_path: Path, runs: Any) -> None:
    """Its run folder cannot be written."""
    said: list[str] = []
    blocked: list[Path] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("trial-000 starts"):
            (folder,) = (tmp_path / "runs").iterdir()
            blocked.append(folder / "trial-001")
            blocked[0].write_text("no folder")

    job = load_job(write(), [*DRAWN, f"storage={tmp_path}/runs"])
    result = start_sweep(job, say, SweepOptions())
    rows = by_number(result)
    assert blocked
    assert rows[0]["state"] == "finished"
    assert rows[1]["state"] == "failed"
    (told,) = [line for line in said if line.startswith("trial-001 failed (")]
    assert "File exists" in told
    store = runs(f"sqlite:///{tmp_path}/mlflow.db")
    children = store.children(store.parents[0])
    assert children["trial-001"].info.status == "FAILED"
    assert store.parents[0].info.status == "FINISHED"
    blocked[0].unlink()
    again = resume_sweep(result["sweep_dir"], lambda old: old, said.append, SweepOptions())
    assert by_number(again)[1]["state"] in ("finished", "stopped")
    assert len(runs(f"sqlite:///{tmp_path}/mlflow.db").all) == 3


@pytest.mark.slow
def test_a_server_that_is_away_does_not_end_a_sweep(
    ray: Any, write: Write, tmp_path: Path, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        overrides = [*DRAWN, "tune.num_samples=1", f"storage={tmp_path}/runs"]
        result, said = sweep(write(uri=uri), *overrides)
    assert [row["state"] for row in result["trials"]] == ["finished"]
    assert result["mlflow_run_id"] is None
    assert len([line for line in said if "refuses the connection" in line]) == 1
    assert any("not everything reached" in line for line in said)
    # The store is there when the sweep is told again: nothing is lost.
    there = f"sqlite:///{tmp_path}/later.db"
    resume_sweep(
        result["sweep_dir"],
        lambda old: replace(old, tracking=replace(old.tracking, uri=there)),
        said.append,
        SweepOptions(),
    )
    store = runs(there)
    (parent,) = store.parents
    assert [run.info.status for run in store.all] == ["FINISHED", "FINISHED"]
    history = store.history(store.children(parent)["trial-000"])
    assert [step for step, _ in history["train/loss"]] == list(range(1, 13))


def test_nothing_is_written_for_a_sweep_that_cannot_be(write: Write, metadist: Callable[..., Any]) -> None:
    job = Path(write())
    ended = metadist("tune", str(job), "--storage", str(job.parent / "runs"), "--set", "tune.initial=[{a.b: 1}]")
    assert ended.code == 2
    assert "tune.initial.0" in ended.err
    assert "Traceback" not in ended.err
    assert not (job.parent / "runs").exists()
