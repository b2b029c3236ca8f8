"""Which trials a searcher hands out, also after a sweep was resumed."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from metadist.config import Job, parse_job
from metadist.errors import UserError
from metadist.tuning.record import SweepRecord, TrialRecord
from metadist.tuning.schedule import build_scheduler, replay
from metadist.tuning.search import Drawn, Optuna, Proposer, Suggestions
from metadist.tuning.space import draw_trials, read_space

CONTENT: dict[str, Any] = {
    "steps": 16,
    "tasks": {"kind": "sinusoid"},
    "model": {"kind": "mlp"},
    "evaluation": {"every": 2},
    "tune": {
        "space": {
            "learner.inner_lr": {"loguniform": [0.001, 10]},
            "learner.inner_steps": {"integers": [1, 4]},
            "model.hidden": {"choice": [[4], [8, 8]]},
        },
        "initial": [{"learner.inner_lr": 0.4, "model.hidden": [4]}],
        "num_samples": 6,
    },
}


def job(**tune: Any) -> Job:
    return parse_job(CONTENT | {"tune": CONTENT["tune"] | tune})


def hand_out(record: SweepRecord, proposer: Proposer, most: int = 20) -> list[int]:
    searcher = Suggestions(record, proposer, 1, lambda: False)
    found = []
    for number in range(most):
        given = searcher.suggest(f"id{number}")
        if given == Suggestions.FINISHED:
            break
        found.append(given["trial"])
    return found


def test_drawn_trials_are_handed_out_in_order() -> None:
    made = job()
    record = SweepRecord("s", "valid/loss", "min")
    assert hand_out(record, Drawn(made, read_space(made))) == list(range(7))
    assert [trial.values for trial in record.trials] == draw_trials(made, read_space(made))
    assert [trial.initial for trial in record.trials] == [True] + [False] * 6


def test_resumed_trials_come_first_and_ended_ones_never() -> None:
    made = job()
    states = ["finished", "running", "diverged", "failed", "unfinished", "stopped"]
    values = draw_trials(made, read_space(made))
    record = SweepRecord("s", "valid/loss", "min")
    record.trials = [TrialRecord(n, values[n], state=state) for n, state in enumerate(states)]  # type: ignore[arg-type]
    assert hand_out(record, Drawn(made, read_space(made))) == [1, 3, 4, 6]


def test_none_is_handed_out_while_the_sweep_ends() -> None:
    made = job()
    record = SweepRecord("s", "valid/loss", "min")
    searcher = Suggestions(record, Drawn(made, read_space(made)), 1, lambda: True)
    assert searcher.suggest("a") == Suggestions.FINISHED
    assert record.trials == []


def test_the_best_is_whole() -> None:
    record = SweepRecord("s", "valid/accuracy", "max")
    record.trials = [
        TrialRecord(0, {}, state="finished", best=0.8, best_step=2),
        TrialRecord(1, {}, state="diverged", best=0.9, best_step=2),
        TrialRecord(2, {}, state="stopped", best=0.8, best_step=4),
        TrialRecord(3, {}, state="diverged"),
    ]
    chosen = record.choose()
    assert chosen is not None
    assert chosen.trial == record.best == 0
    assert [trial.trial for trial in record.ranked()] == [0, 2, 1, 3]


def test_a_resumed_scheduler_knows_what_was_seen(tmp_path: Any) -> None:
    """A new trial that is worse than all earlier ones is stopped at the first rung, as without the interruption."""
    from metadist.tracking import MetricsFile
    from metadist.training.run_folder import RunFolder

    made = job()
    record = SweepRecord("s", "valid/loss", "min")
    for number, loss in enumerate([1.0, 2.0, 3.0]):
        trial = TrialRecord(number, {}, state="finished")
        record.trials.append(trial)
        with MetricsFile(str(tmp_path / trial.folder / "metrics.jsonl")) as file:
            for step in (2, 4, 6):
                file.append(step, {"valid/loss": loss})

    def decision(scheduler: Any, initial: bool = False) -> str:
        late = type("Late", (), {"trial_id": f"late {initial}", "config": {"initial": initial}})()
        scheduler.on_trial_add(None, late)
        return str(scheduler.on_trial_result(None, late, {"step": 2, "valid/loss": 9.0}))

    forgetful = build_scheduler(made, record.metric, record.mode)
    assert decision(forgetful) == "CONTINUE"
    resumed = build_scheduler(made, record.metric, record.mode)
    replay(resumed, record, RunFolder(str(tmp_path)))
    assert decision(resumed) == "STOP"
    assert decision(resumed, initial=True) == "CONTINUE"


def test_optuna_is_asked_for_by_name_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    made = job(search="optuna")
    with pytest.raises(UserError, match=r"tune\.search.*metadist\[optuna\]"):
        Optuna(made, read_space(made), "min")


def test_optuna_learns_also_from_an_earlier_session() -> None:
    pytest.importorskip("optuna", reason="the extra metadist[optuna] is not installed")
    made = job(search="optuna", num_samples=40)
    space = read_space(made)

    def session(record: SweepRecord, proposer: Optuna, trials: int) -> None:
        searcher = Suggestions(record, proposer, 1, lambda: False)
        for number in range(trials):
            given = searcher.suggest(f"id{number}")
            if given == Suggestions.FINISHED:
                return
            trial = record.trials[given["trial"]]
            trial.state, trial.best = "finished", abs(trial.values["learner.inner_lr"] - 0.05)
            if trial.trial == 3:
                trial.state, trial.best = "diverged", None
            proposer.learn(trial)

    record = SweepRecord("s", "valid/loss", "min")
    session(record, Optuna(made, space, "min"), 15)
    again = Optuna(made, space, "min")
    session(record, again, 100)
    assert len(record.trials) == 41
    assert len(again._study.trials) == 41
    late = [trial.values["learner.inner_lr"] for trial in record.trials[25:]]
    assert sum(0.005 < rate < 0.5 for rate in late) > len(late) / 2  # a quarter of the draws otherwise
    assert {len(trial.values["model.hidden"]) for trial in record.trials} == {1, 2}
    first = SweepRecord("s", "valid/loss", "min")
    session(first, Optuna(made, space, "min"), 15)
    assert [trial.values for trial in first.trials] == [trial.values for trial in record.trials[:15]]
