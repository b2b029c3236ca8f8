"""RESULTS.md: the page of a table, made of its rows and of the summaries of their runs, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metadist.paper.rows import Published, Row, Setting, read_table
from metadist.paper.summary import RunSummary, read_summary
from metadist.training.comparison import TaskSet, differing
from metadist.training.cost import OWN
from metadist.training.evaluation import mean_and_ci95, paired
from metadist.training.report import difference_from, difference_in_words
from metadist.training.run_folder import RunFolder

#: the page, in the table's folder
RESULTS = "RESULTS.md"
#: figures of the summaries that the page shows, and what it calls them
FIGURES = {"recall": "recall", "f1": "F1"} | {f"sight {sight}": f"sight {sight}" for sight in (1, 2, 5, 10)}

HEAD = """\
# Results of the rows

Written by `metadist reproduce` from `rows.yaml` and the summaries of the runs, never by hand.

- A figure is the mean over the seeds that stand beside it, on fixed test tasks of classes that training never saw:
  accuracy in %, or mean squared error, of which less is better. ± is half the width of the 95 % interval over tasks
  (Student's t) of the mean over seeds; *sd* is the standard deviation over seeds.
- All rows of a setting are judged on the same tasks. Gains and differences are paired, task by task. **Bold**: the
  interval does not contain zero. *Random start* is the same net adapted in the same way from weights that no training
  has seen.
- *norm* is how activations are normalised; `batch`, with the statistics of the rows at hand, makes an accuracy depend
  on how many query examples judge a task, which is why their number stands with each figure.
- Published figures are marked: R, read in the authors' paper or repository; S, read in a second-hand copy; M, from
  memory, not checked. They were reached with the papers' own, longer training.
- *time* is that of the training steps on the machine at hand, *processor* that of the meta-gradients, of all workers
  together. *job* is the sha256 of what the job file says to compute. A row that starts from a supervised pre-training
  on all training classes shows the steps, the images and the time of that.
"""


@dataclass(frozen=True)
class Judged:
    """A row's runs on the tasks with one number of query examples, averaged over seeds.

    Attributes:
        values, scratch: means over seeds, of each task.
        seeds: mean over tasks of each run.
    """

    first: TaskSet
    values: np.ndarray
    scratch: np.ndarray
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class RowState:
    """A row and the summaries that there are of its runs, in the order of its seeds."""

    row: Row
    job_sha256: str
    runs: tuple[RunSummary, ...]

    @property
    def missing(self) -> list[int]:
        """Seeds without a summary of the job as it is now."""
        current = {run.seed for run in self.runs if run.job_sha256 == self.job_sha256}
        return [seed for seed in self.row.config.seeds if seed not in current]

    @property
    def outdated(self) -> bool:
        """Whether the summaries are of a job that has changed since."""
        return any(run.job_sha256 != self.job_sha256 for run in self.runs)

    def judged(self, query: int) -> Judged | None:
        """What the runs reach at so many query examples per class; those of other tasks than the first do not count."""
        tests = [test for run in self.runs if (test := run.test(query)) is not None]
        tests = [test for test in tests if not differing(tests[0], test)]
        if not tests:
            return None
        values, scratch = (np.mean([getattr(t, name) for t in tests], axis=0) for name in ("values", "scratch_values"))
        return Judged(tests[0], values, scratch, tuple(float(np.mean(test.values)) for test in tests))


def row_state(row: Row) -> RowState:
    """What there is of a row."""
    found = [read_summary(row.summary(seed)) for seed in row.config.seeds if row.summary(seed).exists()]
    sha = row.job_sha256()
    current = [run for run in found if run.job_sha256 == sha]
    return RowState(row, sha, tuple(current or found))


def write_results(folder: Path) -> Path:
    """Write the page of a table anew."""
    RunFolder(str(folder)).write(RESULTS, results_page(folder).encode())
    return folder / RESULTS


def results_page(folder: Path) -> str:
    """The page of a table."""
    parts = [HEAD, *(_section(setting) for setting in read_table(folder))]
    return "\n".join(parts)


def _section(setting: Setting) -> str:
    states = [row_state(row) for row in setting.rows]
    done = [state for state in states if state.runs]
    lines = [f"## {setting.config.title}", ""]
    if setting.config.note:
        lines += [setting.config.note.strip(), ""]
    if done:
        lines += [*_protocol(setting, done), "", *_reached(setting, done), "", *_gained(setting, done), ""]
        lines += [*_trained(done), ""]
        notes = [f"- {_link(state)}: {note}" for state in done for note in _notes(setting, state, done)]
        lines += [*notes, *([""] if notes else [])]
    missing = [f"{s.row.name} ({', '.join(map(str, s.missing))})" for s in states if s.missing]
    if missing:
        lines += [f"To be run, by seed: {', '.join(missing)}.", ""]
    return "\n".join(lines)


def _protocol(setting: Setting, done: Sequence[RowState]) -> list[str]:
    test = _reference(setting, done, setting.config.queries[0])
    assert test is not None
    p = test.protocol
    family = ", ".join(
        f"{key.removeprefix('tasks.')} {' and '.join(part['kind'] for part in value) if key == 'tasks.of' else value}"
        for key, value in p.items()
        if key.startswith("tasks.") and value is not None
    )
    size = f"{p['ways']}-way {p['shots']}-shot" if test.rows else f"{p['shots']} points to adapt on"
    queries = " and ".join(map(str, setting.config.queries))
    facts = [f"Tasks: {size} ({family}), judged on {queries} query examples{' per class' if test.rows else ''}"]
    facts.append(f"{p['count']:,} fixed test tasks (`{p['set']}`)")
    if "data.sha256" in p:
        split = ", ".join(f"{key.removeprefix('data.split.')} {value}" for key, value in p.items() if "split." in key)
        facts.append(f"classes: {split}; rotations as classes: {p['data.rotations']}")
        facts.append(f"data `{p['data.sha256'][:12]}`")
    return ["; ".join(facts) + "."]


def _reference(setting: Setting, done: Sequence[RowState], query: int) -> TaskSet | None:
    """The tasks that the rows of a setting are compared on: a baseline's, or the first row's that has any."""
    ordered = sorted(done, key=lambda state: state.row.name not in setting.config.baselines)
    return next((judged.first for state in ordered if (judged := state.judged(query)) is not None), None)


def _reached(setting: Setting, done: Sequence[RowState]) -> list[str]:
    queries = setting.config.queries

    def cells(state: RowState) -> list[str]:
        config = state.row.config
        figures = [_figure(state.judged(query)) for query in queries]
        return [*figures, _goal(state, queries), _published(config.paper), _published(config.reproduction)]

    heads = [*(f"{query} query" for query in queries), "goal", "paper", "best open reproduction"]
    return _table(["row", "seeds", *heads], done, lambda state: [_seeds(state), *cells(state)])


def _gained(setting: Setting, done: Sequence[RowState]) -> list[str]:
    queries = setting.config.queries
    bases = [state for state in done if state.row.name in setting.config.baselines]

    def cells(state: RowState) -> list[str]:
        every = {query: state.judged(query) for query in queries}
        shown = ["" if one is None else _difference(one, one.scratch) for one in every.values()]
        scratch = ["" if one is None else _number(float(np.mean(one.scratch)), one.first) for one in every.values()]
        for base in bases:
            shown += [_against(one, base.judged(query), state is base) for query, one in every.items()]
        return [*scratch, *shown]

    heads = [*(f"random start, {query} query" for query in queries), *(f"gain, {query} query" for query in queries)]
    heads += [f"against {base.row.name}, {query} query" for base in bases for query in queries]
    return _table(["row", *heads], done, cells)


def _against(one: Judged | None, base: Judged | None, same: bool) -> str:
    if one is None or base is None or same:
        return ""
    return "other tasks" if differing(base.first, one.first) else _difference(one, base.values)


def _trained(done: Sequence[RowState]) -> list[str]:
    def cells(state: RowState) -> list[str]:
        run = state.runs[0]
        tests, e = run.tests[0], run.episode
        episode = f"{e['ways']}-way {e['shots']}-shot, {e['query']} query" if tests.rows else f"{e['shots']} points"
        inner = "–" if run.inner_steps is None and not tests.steps else f"{run.inner_steps or 0} → {tests.steps}"
        figures = [_mean([run.figures[name] for run in state.runs if name in run.figures]) for name in FIGURES]
        return [episode, inner, tests.norm, *_cost(state.runs), *figures, f"`{run.job_sha256[:12]}`"]

    heads = ["training tasks", "inner steps, training → test", "norm", "steps", "tasks", "time", "processor"]
    return _table(["row", *heads, *FIGURES.values(), "job"], done, cells)


def _cost(runs: Sequence[RunSummary]) -> list[str]:
    """Steps, tasks or images, minutes, minutes of processors: of the first run, and means over the runs."""
    before = [run.pretraining for run in runs if run.pretraining is not None]
    steps, tasks = f"{runs[0].step:,}", f"{runs[0].training_tasks:,}"
    if before:
        steps, tasks = f"{before[0].step + runs[0].step:,}", f"{before[0].images:,} images"
        if runs[0].training_tasks:
            tasks += f", {runs[0].training_tasks:,}"
    seconds = (sum(run.train_seconds for run in runs) + sum(one.train_seconds for one in before)) / len(runs)
    processors = float(np.mean([run.compute_seconds for run in runs]))
    return [steps, tasks, f"{seconds / 60:.1f} min", f"{processors / 60:.1f} min" if processors else ""]


def _notes(setting: Setting, state: RowState, done: Sequence[RowState]) -> Iterable[str]:
    if state.row.config.note:
        yield state.row.config.note.strip()
    yield from _beside(state.runs[0])
    for other in done:
        if other.row.name in state.row.config.against:
            pairs = {q: _against(state.judged(q), other.judged(q), same=False) for q in setting.config.queries}
            shown = ", ".join(f"{pair} at {query} query" for query, pair in pairs.items() if pair)
            yield f"against {other.row.name}: {shown}."
    if state.outdated:
        yield "**out of date**: the job file has changed since these figures."
    reference = _reference(setting, done, setting.config.queries[0])
    judged = state.judged(setting.config.queries[0])
    if reference is not None and judged is not None and (fields := differing(reference, judged.first)):
        yield f"judged on other tasks than the rows above it, and not to be compared with them: {', '.join(fields)}."


def _beside(run: RunSummary) -> Iterable[str]:
    """A learner that has other runs as parts, beside them: of its first run."""
    if run.beside:
        yield "; ".join(f"{name}: {_part_in_words(part)}" for name, part in run.beside.items()) + "."
    if run.said:
        yield "means over the test tasks: " + ", ".join(f"{name} {value:.3f}" for name, value in run.said.items()) + "."


def _part_in_words(part: Mapping[str, float | None]) -> str:
    words = f"{part['parameters']:,} parameters, {part['milliseconds']:.1f} ms a task"
    if part.get("accuracy") is not None:
        words += f", {100 * (part['accuracy'] or 0.0):.2f} %"
    elif part.get("loss") is not None:
        words += f", error {part['loss']:.4f}"
    apart = difference_from(part)
    return f"{words} ({OWN} less this: {apart})" if apart else words


def _table(heads: Sequence[str], states: Sequence[RowState], cells: Callable[[RowState], list[str]]) -> list[str]:
    rows = [[_link(state), *cells(state)] for state in states]
    used = [index for index in range(len(heads)) if any(row[index] for row in rows)]
    lines: list[Sequence[Any]] = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line[index] for index in used)} |" for line in lines]


def _link(state: RowState) -> str:
    mark = " (out of date)" if state.outdated else ""
    return f"[{state.row.name}]({state.row.trained.setting}/{state.row.job.name}){mark}"


def _seeds(state: RowState) -> str:
    return ", ".join(str(run.seed) for run in state.runs)


def _number(value: float, test: TaskSet) -> str:
    return f"{100 * value:.2f}" if test.rows else f"{value:.4f}"


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f}" if values else ""


def _figure(judged: Judged | None) -> str:
    if judged is None:
        return ""
    if lost := int(np.count_nonzero(~np.isfinite(judged.values))):
        return f"diverged on {lost:,} of {len(judged.values):,} tasks"
    mean, ci95 = mean_and_ci95(judged.values)
    shown = f"{_number(mean, judged.first)} ± {_number(ci95, judged.first)}"
    if len(judged.seeds) < 2:
        return shown
    each = ", ".join(_number(value, judged.first) for value in judged.seeds)
    return f"{shown} ({each}; sd {_number(float(np.std(judged.seeds, ddof=1)), judged.first)})"


def _difference(judged: Judged, values: np.ndarray) -> str:
    found = paired(judged.values, values)
    shown = difference_in_words(found, bool(judged.first.rows))
    return f"**{shown}**" if found.excludes_zero else shown


def _goal(state: RowState, queries: Sequence[int]) -> str:
    goal = state.row.config.goal
    if goal is None:
        return ""
    reached, rows = [], 0
    for query in queries:
        judged = state.judged(query)
        if judged is None:
            continue
        rows = judged.first.rows
        mean = float(np.mean(judged.values))
        if 100 * mean >= goal if rows else mean <= goal:
            reached.append(str(query))
    shown = f"{'≥' if rows else '≤'} {goal:g}"
    return f"{shown}: reached at {' and '.join(reached)} query" if reached else f"{shown}: not reached"


def _published(figure: Published | None) -> str:
    return "" if figure is None else f"{figure.value} ({figure.source}; {figure.mark})"
