"""What ends bad trials early: Tune's schedulers, told again what a sweep saw before it was resumed."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from metadist.config import Job
from metadist.training.run_folder import RunFolder
from metadist.tuning.record import ENDED, SweepRecord, TrialRecord, read_history


class _SparesInitial:
    """What every scheduler here does: a trial to compare with counts for the others, and is never ended early."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(controller, trial, result)  # type: ignore[misc]
        return TrialScheduler.CONTINUE if getattr(trial, "config", {}).get("initial") else decision


class _Asha(_SparesInitial, ASHAScheduler):  # type: ignore[misc]
    pass


class _Median(_SparesInitial, MedianStoppingRule):  # type: ignore[misc]
    pass


def build_scheduler(job: Job, metric: str, mode: str) -> Any:
    """The scheduler that `tune.scheduler` names; its clock is outer steps."""
    config = job.tune
    grace = min(config.grace or job.evaluation.every, job.steps)
    if config.scheduler == "asha":
        return _Asha(
            time_attr="step",
            metric=metric,
            mode=mode,
            max_t=job.steps,
            grace_period=grace,
            reduction_factor=config.reduction,
        )
    if config.scheduler == "median":
        # Without the last argument it pauses trials while it has few to compare with.
        return _Median(time_attr="step", metric=metric, mode=mode, grace_period=grace, min_time_slice=float("inf"))
    return FIFOScheduler()


class _Past:
    """What a scheduler needs of a trial."""

    def __init__(self, trial: TrialRecord) -> None:
        self.trial_id = trial.folder


def replay(scheduler: TrialScheduler, record: SweepRecord, folder: RunFolder) -> None:
    """Tell a new scheduler of the trials that ended before.

    Trials that are gone on with tell their earlier validations themselves.
    """
    for trial in record.trials:
        if trial.state not in ENDED:
            continue
        past = _Past(trial)
        scheduler.on_trial_add(None, past)
        result: dict[str, float] = {}
        for step, values in read_history(RunFolder(f"{folder.location}/{trial.folder}")):
            if record.metric in values:
                result = {"step": step, record.metric: values[record.metric]}
                scheduler.on_trial_result(None, past, result)
        if result:
            scheduler.on_trial_complete(None, past, result)
