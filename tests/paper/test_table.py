"""The page: the one in the repository is made of its summaries, and its figures are those by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metadist.config import load_job
from metadist.errors import UserError
from metadist.paper.rows import Row, read_table
from metadist.paper.summary import PretrainingSummary, RunSummary, read_summary
from metadist.paper.table import results_page, row_state
from metadist.training.comparison import TaskSet

PAPER = Path(__file__).resolve().parents[2] / "jobs" / "paper"
ROWS = """\
digits:
  title: Digits
  queries: [2, 1]
  baselines: [plain]
  rows:
    plain: {}
    maml: {seeds: [0, 1], goal: 60, paper: {value: 98.7, mark: R, source: Finn}}
    late: {against: [maml]}
"""


def test_the_page_of_the_repository_is_made_of_its_summaries() -> None:
    """`metadist reproduce ROW` writes it anew."""
    assert (PAPER / "RESULTS.md").read_text() == results_page(PAPER)


@pytest.mark.parametrize("row", [row for setting in read_table(PAPER) for row in setting.rows], ids=lambda row: row.id)
def test_each_row_of_the_repository(row: Row) -> None:
    """Its job is valid and of its setting, and its summaries are small enough to be committed."""
    job = load_job(str(row.job))
    if row.pretraining is not None:
        before = load_job(str(row.pretraining))
        assert (before.data, before.model) == (job.data, job.model)
        assert job.start is not None
        assert job.start.fresh == ["head.*"]
    assert job.evaluation.test_tasks >= 1000
    for path in (row.folder / row.setting / row.name).glob("*"):
        assert path.stat().st_size < 25_000  # two values of each of 1,000 tasks, and a learner's own figures
        assert path in [row.summary(seed) for seed in row.config.seeds]
        assert read_summary(path).row == row.id


def test_the_rows_of_a_setting_are_judged_on_the_same_tasks() -> None:
    for setting in read_table(PAPER):
        jobs = [load_job(str(row.job)) for row in setting.rows if row.config.judged is None]
        if not jobs:
            continue
        sames = {
            (
                str(j.data.split),
                j.data.rotations,
                j.data.size,
                j.data.channels,
                j.data.invert,
                j.tasks.kind,
                j.tasks.ways,
            )
            for j in jobs
        }
        assert len({(j.tasks.shots, j.evaluation.seed, j.evaluation.test_tasks) for j in jobs}) == 1, setting.name
        assert len(sames) == 1, setting.name
        assert {job.evaluation.query for job in jobs} == {setting.config.queries[0]}


@pytest.fixture
def add(tmp_path: Path) -> Callable[..., Path]:
    """Adds the summary of a run to a small table."""
    (tmp_path / "rows.yaml").write_text(ROWS)
    for name in ("plain", "maml", "late"):
        path = tmp_path / "digits" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"name: {name}\nsteps: 10\n")

    def summary(name: str, seed: int, counts: list[float], sha: str | None = None, **protocol: Any) -> Path:
        row = next(row for row in read_table(tmp_path)[0].rows if row.name == name)
        sets = []
        for query in (2, 1):
            about = {"set": f"test-4x5w1s{query}q-seed0", "count": 4, "ways": 5, "shots": 1, "query": query}
            scores = [query * count for count in counts]
            sets.append(TaskSet(about | protocol, 3, "batch", 5 * query, scores, [query] * 4))
        path = row.summary(seed)
        path.parent.mkdir(exist_ok=True)
        run = RunSummary(
            row.id, seed, sha or row.job_sha256(), "id", "params", {"torch": "2"}, {"device": "cpu"}, "loop", 2, 10, 8,
            "best on validation", 320, 66.0, 120.0, {"ways": 5, "shots": 1, "query": 2}, 1,
            {"recall": 0.75, "f1": seed},
            sets,
        )  # fmt: skip
        path.write_text(run.dump())
        assert read_summary(path).dump() == run.dump()  # NaN is not equal to itself
        return tmp_path

    return summary


def cells(page: str, row: str) -> list[list[str]]:
    """The cells of each line of the tables that begins with a row."""
    lines = [line for line in page.splitlines() if line.startswith(f"| [{row}]")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_figures_by_hand(add: Callable[..., Path]) -> None:
    """Two seeds: their tasks are averaged before the interval is taken, over four tasks (t is 3.182446305)."""
    add("plain", 0, [1, 2, 2, 1])
    add("maml", 0, [3, 4, 5, 2])
    folder = add("maml", 1, [3, 3, 4, 3])
    reached, gained, trained = cells(page := results_page(folder), "maml")
    mean = np.array([3, 3.5, 4.5, 2.5]) / 5
    interval = 3.182446305 * np.std(mean, ddof=1) / 2 * 100
    figure = f"67.50 ± {interval:.2f} (70.00, 65.00; sd 3.54)"
    assert reached[1:] == ["0, 1", figure, figure, "≥ 60: reached at 2 and 1 query", "98.7 (Finn; R)"]
    gain = f"**+47.50 ± {interval:.2f}**"
    against = 3.182446305 * np.std(mean - np.array([1, 2, 2, 1]) / 5, ddof=1) / 2 * 100
    assert gained[1:] == ["20.00", "20.00", gain, gain, *[f"**+37.50 ± {against:.2f}**"] * 2]
    assert trained[1:-1] == [
        "5-way 1-shot, 2 query", "1 → 3", "batch", "10", "320", "1.1 min", "2.0 min", "0.7500", "0.5000"
    ]  # fmt: skip
    assert cells(page, "plain")[1][-2:] == ["", ""]
    assert "To be run, by seed: late (0)." in page


def test_a_row_against_another_that_is_no_baseline(add: Callable[..., Path]) -> None:
    add("maml", 0, [3, 4, 5, 2])
    page = results_page(add("late", 0, [4, 4, 5, 4]))  # 1, 0, 0 and 2 of five more
    interval = 3.182446305 * np.std([20, 0, 0, 40], ddof=1) / 2
    shown = f"+15.00 ± {interval:.2f}"
    assert f"- [late](digits/late.yaml): against maml: {shown} at 2 query, {shown} at 1 query." in page


def test_a_row_that_diverged_says_so(add: Callable[..., Path]) -> None:
    add("plain", 0, [1, 2, 2, 1])
    reached, gained, _ = cells(page := results_page(add("maml", 0, [3, math.nan, 5, 2])), "maml")
    assert reached[2] == "diverged on 1 of 4 tasks"
    assert "diverged" in gained
    assert "nan" not in page


def test_an_old_summary_is_shown_as_such(add: Callable[..., Path]) -> None:
    folder = add("plain", 0, [1, 2, 2, 1], sha="of another job")
    page = results_page(folder)
    assert "| [plain](digits/plain.yaml) (out of date) |" in page
    assert "the job file has changed since these figures" in page
    state = row_state(read_table(folder)[0].rows[0])
    assert (state.missing, state.outdated) == ([0], True)
    page = results_page(add("plain", 0, [1, 2, 2, 1]))
    assert "out of date" not in page


def test_placement_and_comments_do_not_make_it_old(add: Callable[..., Path]) -> None:
    folder = add("plain", 0, [1, 2, 2, 1])
    job = folder / "digits" / "plain.yaml"
    job.write_text("# more words\nname: other\nsteps: 10\nseed: 7\nruntime: inprocess\ndata: {source: copy.zip}\n")
    assert not row_state(read_table(folder)[0].rows[0]).outdated
    job.write_text("steps: 11\n")
    assert row_state(read_table(folder)[0].rows[0]).outdated


def test_what_a_pretraining_costs(add: Callable[..., Path]) -> None:
    """Its steps and seconds count with the run's, its images stand in the place of tasks; it changes the row's sha."""
    folder = add("plain", 0, [1, 2, 2, 1])
    path = folder / "digits" / "plain" / "seed-0.json"
    before = read_summary(path)
    pretraining = PretrainingSummary("id", "params", 2, 6, 3, 90, 60, 5760, 120.0)
    run = replace(before, step=0, training_tasks=0, compute_seconds=0, train_seconds=0, pretraining=pretraining)
    path.write_text(run.dump())
    assert read_summary(path) == run
    assert cells(results_page(folder), "plain")[2][4:7] == ["90", "5,760 images", "2.0 min"]
    job = folder / "digits" / "all.yaml"
    (folder / "rows.yaml").write_text(ROWS.replace("plain: {}", "plain: {pretrain: digits/all}"))
    shas = []
    for text in ("steps: 1", "steps: 2\nseed: 3\nlearner: {kind: reptile}", "pretrain: {epochs: 3}",
                 "resources: {workers: 3}", "model: {width: 8}"):  # fmt: skip
        job.write_text(f"{text}\n")
        shas.append(read_table(folder)[0].rows[0].job_sha256())
    assert shas[0] == shas[1]
    assert len({*shas, before.job_sha256}) == 5


def test_other_tasks_are_not_compared(add: Callable[..., Path]) -> None:
    add("plain", 0, [1, 2, 2, 1])
    page = results_page(add("maml", 0, [3, 4, 5, 2], shots=5))
    assert cells(page, "maml")[1][-2:] == ["other tasks", "other tasks"]
    assert "not to be compared with them: shots" in page


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"tests": []}'])
def test_a_spoilt_summary(add: Callable[..., Path], text: str) -> None:
    path = add("plain", 0, [1, 2, 2, 1]) / "digits" / "plain" / "seed-0.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"seed-0\.json: got "):
        read_summary(path)
