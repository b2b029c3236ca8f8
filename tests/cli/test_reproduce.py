"""`metadist reproduce`: runs a row's seeds, writes their summaries and the page, goes on, and skips."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metadist.config import load_job, pretrain_content_sha256, read_mapping

JOB = """\
name: toy
steps: 4
runtime: inprocess
tasks: {kind: sinusoid, batch: 4, chunk: 2, shots: 5, query: 5}
model: {kind: mlp, hidden: [8]}
learner: {kind: maml, inner_lr: 0.01}
evaluation: {every: 2, tasks: 4, test_tasks: 20, query: 6}
checkpoint: {every: 2}
tracking: {uri: none}
"""
ROWS = """\
waves:
  title: Waves
  queries: [6, 3]
  baselines: [a]
  rows:
    a: {seeds: [0, 1]}
    b: {needs: gpu}
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of two rows in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "jobs" / "paper"
    (folder / "waves").mkdir(parents=True)
    (folder / "rows.yaml").write_text(ROWS)
    for row, rate in (("a", "0.01"), ("b", "0.02")):
        (folder / "waves" / f"{row}.yaml").write_text(JOB.replace("inner_lr: 0.01", f"inner_lr: {rate}"))
    return folder


def states(metadist: Callable[..., Any]) -> dict[str, Any]:
    ended = metadist("reproduce", "--list", "--json")
    assert ended.code == 0, ended.err
    return {row["row"]: row for row in ended.result["rows"]}


def test_a_row_from_its_job_to_the_page(metadist: Callable[..., Any], table: Path) -> None:
    """Every row without a GPU: the first run goes on where it was interrupted, and what is there is skipped."""
    before = states(metadist)
    assert before["waves/a"]["missing"] == [0, 1]
    name = f"waves-a-seed0-{before['waves/a']['job_sha256'][:8]}"
    stopped = metadist("train", str(table / "waves" / "a.yaml"), "--run", name, "--stop-after", "2", "--set", "seed=0")
    assert stopped.code == 0, stopped.err
    ended = metadist("reproduce", "--all", "--json")
    assert ended.code == 0, ended.err
    assert f"going on from step 2 of runs/{name}" in ended.err
    assert [(run["row"], run["seed"], run["run_dir"] is None) for run in ended.result["rows"]] == [
        ("waves/a", 0, False), ("waves/a", 1, False)
    ]  # fmt: skip
    assert states(metadist)["waves/a"]["state"] == "done"
    page = (table / "RESULTS.md").read_text()
    assert "To be run, by seed: b (0)." in page

    run = Path("runs", name)
    content = json.loads((table / "waves" / "a" / "seed-0.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    for key in ("params_sha256", "identity_sha256", "train_seconds", "compute_seconds", "step"):
        assert content[key] == summary[key]
    assert content["compute_seconds"] > 0
    assert content["training_tasks"] == 16
    main, other = content["tests"]
    assert (main["protocol"]["query"], other["protocol"]["query"]) == (6, 3)
    assert np.mean(main["scores"]) == pytest.approx(summary["test"]["loss"], rel=1e-3)
    assert np.mean(main["from_scratch"]) == pytest.approx(summary["test"]["from_scratch"], rel=1e-3)
    judged = metadist("evaluate", str(run), "--query", "3", "--json").result["test"]
    assert np.mean(other["scores"]) == pytest.approx(judged["loss"], rel=1e-3)

    again = metadist("reproduce", "waves/a", "--json")
    assert [run["run_dir"] for run in again.result["rows"]] == [None, None]
    assert "testing version" not in again.err
    (table / "waves" / "a" / "seed-0.json").unlink()
    again = metadist("reproduce", "waves/a", "--seeds", "0", "--json")
    assert "testing version" not in again.err, "the run is finished: its summary alone is made again"
    assert json.loads((table / "waves" / "a" / "seed-0.json").read_text()) == content
    assert (table / "RESULTS.md").read_text() == page
    compared = metadist("compare", name, str(table / "waves" / "a" / "seed-1.json"), "--tracking", "none", "--json")
    assert compared.code == 0, compared.err

    job = table / "waves" / "a.yaml"
    job.write_text(job.read_text().replace("steps: 4", "steps: 5"))
    assert states(metadist)["waves/a"]["state"] == "out of date, to run: 0, 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ROW: got None, expected one row or setting at least, or --all"),
        (["waves", "--all"], "and not both"),
        (["wave"], "ROW: got 'wave', expected a row or a setting (`metadist reproduce --list`). Did you mean 'waves'?"),
        (["waves/a", "--seeds", "0,7"], "--seeds: got '7', expected of the seeds 0, 1 of waves/a"),
        (["waves/a", "--set", "steps=2"], "--set: got 'steps=2', expected a setting of placement"),
        (["waves/a", "--set", "seed=5"], "--set: got 'seed=5', expected a setting of placement"),
        (["waves/a", "--set", "data.size=9"], "--set: got 'data.size=9', expected a setting of placement"),
        (["waves/a", "--set", "resources.wrkers=1"], "resources.wrkers: got 1"),
        (["waves/a", "--table", "elsewhere"], "rows.yaml: got 'No such file or directory'"),
    ],
)
def test_mistakes(metadist: Callable[..., Any], table: Path, arguments: list[str], message: str) -> None:
    ended = metadist("reproduce", *arguments)
    assert ended.code == 2, ended.err
    assert message in ended.err
    assert not Path("runs").exists()
    assert not (table / "RESULTS.md").exists()


def test_a_row_that_judges_another_ones_runs(metadist: Callable[..., Any], table: Path) -> None:
    """It trains that row's job if need be, and its figures are those of `metadist evaluate`."""
    (table / "rows.yaml").write_text(ROWS + """\
longer:
  title: More steps
  queries: [3]
  rows:
    b: {judged: {row: waves/b, set: [learner.eval_steps=5]}}
""")  # fmt: skip
    ended = metadist("reproduce", "longer/b", "--set", "resources.workers=1", "--json")
    assert ended.code == 0, ended.err
    (made,) = ended.result["rows"]
    assert Path(made["run_dir"]).name.startswith("waves-b-seed0-")
    content = json.loads((table / "longer" / "b" / "seed-0.json").read_text())
    judged = metadist("evaluate", made["run_dir"], "--query", "3", "--steps", "5", "--json").result["test"]
    assert content["tests"][0]["steps"] == 5
    assert np.mean(content["tests"][0]["scores"]) == pytest.approx(judged["loss"], rel=1e-3)
    assert content["step"] == 4
    assert states(metadist)["longer/b"]["state"] == "done"
    assert states(metadist)["waves/b"]["missing"] == [0]
    assert "[b](waves/b.yaml)" in (table / "RESULTS.md").read_text()


def test_rows_that_start_from_a_pretraining(metadist: Callable[..., Any], table: Path) -> None:
    """Two rows share one pre-training, which goes on where it stopped, with its own number of workers."""
    (table / "rows.yaml").write_text("""\
digits:
  title: Digits
  queries: [2, 1]
  rows: {head: {pretrain: trunk}, all: {pretrain: trunk}}
""")
    common = """\
runtime: inprocess
data: {source: "sklearn:digits", split: {train: [0, 1, 2], valid: null, test: [6, 7, 8]}}
model: {kind: mlp, hidden: [16]}
tracking: {uri: none}
"""
    (table / "trunk.yaml").write_text(common + "pretrain: {epochs: 2, batch: 64, optimizer: {lr: 0.01}}\n")
    (table / "digits").mkdir()
    tuned = "init_from: {path: runs/trunk, fresh: ['head.*']}\nevaluation: {test_tasks: 20, query: 2}\n"
    for row in ("head", "all"):
        learner = f"learner: {{kind: finetune, layers: {row}, eval_steps: 3}}\ntasks: {{ways: 3, shots: 1}}\nsteps: 0\n"
        (table / "digits" / f"{row}.yaml").write_text(common + tuned + learner)
    sha = pretrain_content_sha256(read_mapping(str(table / "trunk.yaml")))
    name = f"trunk-seed0-{sha[:8]}"
    stopped = metadist("pretrain", str(table / "trunk.yaml"), "--run", name, "--stop-after", "1", "--json")
    assert (stopped.code, stopped.result["outcome"]) == (0, "stopped")
    ended = metadist("reproduce", "digits", "--set", "resources.workers=1", "--json")
    assert ended.code == 0, ended.err
    assert ended.err.count("going on from step") == 1, "the second row takes what the first one has"
    pretrained = json.loads(Path("runs", name, "summary.json").read_text())
    assert pretrained["outcome"] == "finished"
    assert pretrained["step"] == 2 * stopped.result["step"]
    for row in ("head", "all"):
        content = json.loads((table / "digits" / row / "seed-0.json").read_text())
        assert content["pretraining"]["params_sha256"] == pretrained["params_sha256"]
        assert content["pretraining"]["images"] == pretrained["step"] * 64
        (run,) = Path("runs").glob(f"digits-{row}-seed0-*")
        start = load_job(str(run / "job.yaml")).start
        assert start is not None
        assert Path(start.path).parent.parent == Path("runs", name).resolve()
    assert "images" in (table / "RESULTS.md").read_text()
    assert {state["state"] for state in states(metadist).values()} == {"done"}
    again = metadist("reproduce", "digits", "--json")
    assert [run["run_dir"] for run in again.result["rows"]] == [None, None]
    (table / "trunk.yaml").write_text(common + "pretrain: {epochs: 3, batch: 64}\n")
    assert {state["state"] for state in states(metadist).values()} == {"out of date, to run: 0"}
    (table / "trunk.yaml").unlink()
    ended = metadist("reproduce", "digits/all")
    assert ended.code == 2
    assert "trunk.yaml: got 'No such file or directory', expected a job file" in ended.err


def test_a_row_that_takes_another_ones_run(metadist: Callable[..., Any], table: Path) -> None:
    """The teacher is trained first, with the same seed; its job is a part of what the row's figures are of."""
    (table / "rows.yaml").write_text(ROWS.replace("b: {needs: gpu}", "b: {runs: {learner.teacher: waves/a}}"))
    learner = "{kind: distill, teacher: runs/a, student: {kind: maml, inner_lr: 0.01}}"
    job = table / "waves" / "b.yaml"
    job.write_text(JOB.replace("{kind: maml, inner_lr: 0.01}", learner).replace("hidden: [8]", "hidden: [4]"))
    ended = metadist("reproduce", "waves/b", "--json")
    assert ended.code == 0, ended.err
    (run,) = (Path(made["run_dir"]) for made in ended.result["rows"])
    (taken,) = Path("runs").glob("waves-a-seed0-*")
    teacher = load_job(str(run / "job.yaml")).learner.teacher
    assert Path(teacher.path).parent.parent == taken.resolve()
    content = json.loads((table / "waves" / "b" / "seed-0.json").read_text())
    alone = json.loads((taken / "summary.json").read_text())["test"]["loss"]
    assert content["beside"]["teacher"]["loss"] == alone
    assert {name: part["parameters"] for name, part in content["beside"].items()} == {"learner": 13, "teacher": 25}
    page = (table / "RESULTS.md").read_text()
    assert "learner: 13 parameters, " in page
    difference = content["beside"]["teacher"]["difference"]
    assert f" ms a task, error {alone:.4f} (learner less this: {difference:+.4f} ± " in page
    assert states(metadist)["waves/b"]["state"] == "done"
    before = table / "waves" / "a.yaml"
    before.write_text(before.read_text().replace("steps: 4", "steps: 5"))
    assert states(metadist)["waves/b"]["state"] == "out of date, to run: 0"


def test_a_row_without_a_job(metadist: Callable[..., Any], table: Path) -> None:
    (table / "waves" / "b.yaml").unlink()
    ended = metadist("reproduce", "waves/b")
    assert ended.code == 2
    assert "b.yaml: got 'No such file or directory', expected a job file" in ended.err
