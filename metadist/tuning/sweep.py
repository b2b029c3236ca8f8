"""Runs a sweep from its job to its result, or goes on with one from its folder."""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import os
import secrets
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from metadist import config
from metadist.config import Job
from metadist.distributed.places import alive_nodes, check_places
from metadist.distributed.run import DataProgress, flat_params, run_tags
from metadist.distributed.session import ray_session
from metadist.distributed.store_place import store_place
from metadist.errors import UserError
from metadist.reading_yaml import MOST_YAML, parse_yaml
from metadist.tracking.sweep_tracker import SweepTracker
from metadist.training.run_folder import RunFolder
from metadist.tuning import results
from metadist.tuning.follow import Ending, Follower, Say
from metadist.tuning.record import ENDED, SweepRecord, TrialRecord, read_record
from metadist.tuning.schedule import build_scheduler, replay
from metadist.tuning.search import Drawn, Optuna, Proposer, Suggestions, import_optuna
from metadist.tuning.space import Dimension, check_space, draw_trials, initial_trials, metric_of, read_space, trial_job
from metadist.tuning.trial import Trial, TrialPlan, placement


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run, beside what its job says.

    Attributes:
        address: a Ray cluster's; `None` starts an embedded one.
        stop: asked all the time; true ends the sweep, resumable.
        data_progress: told of images that are being prepared (done, of).
    """

    address: str | None = None
    stop: Callable[[], bool] = lambda: False
    data_progress: DataProgress | None = None


@dataclass(frozen=True)
class _Sweep:
    job: Job
    space: list[Dimension]
    folder: RunFolder
    record: SweepRecord
    proposer: Proposer


def start_sweep(job: Job, say: Say, options: SweepOptions) -> dict[str, Any]:
    """Sweep a job in a folder of its own; returns the result.

    Raises:
        UserError: a field of the sweep is wrong; nothing is started or written then.
    """
    job = config.anchored(job)
    space, metric, mode = _check(job, options)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    sweep = f"{job.name}-sweep-{stamp}-{secrets.token_hex(2)}"
    storage = os.path.expanduser(job.storage).rstrip("/")
    place = storage if "://" in storage else os.path.abspath(storage)
    folder = RunFolder(f"{place}/{sweep}")
    record = SweepRecord(sweep, metric, mode)
    return _run(job, space, folder, record, say, options)


def resume_sweep(location: str, place: Callable[[Job], Job], say: Say, options: SweepOptions) -> dict[str, Any]:
    """Go on with the sweep in a folder: trials with a result stay as they are, the others go on from theirs.

    Args:
        place: changes the job; what trials are and how they are judged must stay.
    """
    location = location.rstrip("/") if "://" in location else os.path.abspath(os.path.expanduser(location))
    folder = RunFolder(location)
    record = read_record(folder)
    old = config.parse_job(parse_yaml(folder.read("job.yaml", MOST_YAML), f"{location}/job.yaml"))
    job = place(old)
    kept = {"tune.space": (old.tune.space, job.tune.space), "tune.initial": (old.tune.initial, job.tune.initial)}
    kept |= {f: (_of(old, f), _of(job, f)) for f in config.changed_fields(_identity(old), _identity(job))}
    changed = [name for name, (before, after) in kept.items() if before != after]
    if changed:
        raise UserError("--resume", location, f"the same sweep; changed: {', '.join(changed)}", "Start a new one.")
    folder.check_free()
    space, metric, mode = _check(job, options)
    if (metric, mode) != (record.metric, record.mode):
        raise UserError("tune.metric", f"{mode} {metric}", f"{record.mode} {record.metric}, as the sweep began")
    return _run(job, space, folder, record, say, options)


def _identity(job: Job) -> dict[str, Any]:
    return {key: value for key, value in config.job_dict(job).items() if key not in config.PLACEMENT}


def _of(job: Job, path: str) -> Any:
    return flat_params(config.job_dict(job)).get(path)


def _check(job: Job, options: SweepOptions) -> tuple[list[Dimension], str, str]:
    """Everything that can be found wrong before anything starts."""
    space = read_space(job)
    if job.tune.search == "optuna":
        import_optuna()
    config.open_data(job, options.data_progress)
    check_space(job, space)
    distribution = config.build_distribution(job)
    metric, mode = metric_of(job.tune, distribution.classifies)
    for split in ("train", "valid"):
        if not distribution.has(split):
            raise UserError(f"data.split.{split}", 0, "classes: a sweep trains on some and judges by others")
    if job.tune.search == "random":
        for values in draw_trials(job, space):
            trial_job(job, values)
    return space, metric, mode


def _run(
    job: Job, space: list[Dimension], folder: RunFolder, record: SweepRecord, say: Say, options: SweepOptions
) -> dict[str, Any]:
    proposer: Proposer = Drawn(job, space) if job.tune.search == "random" else Optuna(job, space, record.mode)
    tracker = SweepTracker(job.tracking, say, record.sweep)
    trial = trial_job(job, {})
    at_once = _at_once(job, trial)
    workers, r = _workers(trial), trial.resources
    session = ray_session(options.address, workers * r.cpus_per_worker * at_once, workers * r.gpus_per_worker)
    with tempfile.TemporaryDirectory(prefix="metadist-") as scratch, session:
        check_places(job)
        held = _hold(folder, job, record)
        sweep = _Sweep(job, space, held, record, proposer)
        ending = Ending(held, options.stop, job.tune.time_budget, say)
        follower = Follower(job, held, record, tracker, proposer, Path(scratch), say)
        try:
            record.mlflow_run_id = tracker.start(
                record.sweep, flat_params(config.job_dict(job)), run_tags(), record.mlflow_run_id
            )
            record.state = "running"
            record.save(held)
            limit = job.tune.max_concurrent if options.address is not None else at_once
            _fit(sweep, ending, follower, trial, limit, Path(scratch))
            return _finish(sweep, tracker, follower, ending.reason, Path(scratch), say)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            record.state = "interrupted" if interrupted else "failed"
            _settle(record, follower)
            tracker.parent.finish("KILLED" if interrupted else "FAILED")
            tracker.wait()
            with contextlib.suppress(Exception):
                record.save(held)
            raise
        finally:
            held.release()


def _at_once(job: Job, trial: Job) -> int:
    """Trials at a time in an embedded session: as asked for, or as many as this machine has CPUs for."""
    if job.tune.max_concurrent is not None:
        return job.tune.max_concurrent
    return max(1, math.floor((os.cpu_count() or 1) / max(0.01, _workers(trial) * trial.resources.cpus_per_worker)))


def _workers(trial: Job) -> int:
    """Processes of a trial that compute: worker actors, or the trial's own."""
    return trial.resources.most if trial.runtime == "ray" else 1


def _hold(folder: RunFolder, job: Job, record: SweepRecord) -> RunFolder:
    held = folder.acquire()
    held.write("job.yaml", config.dump_job(job).encode())
    record.save(held)
    return held


def _fit(sweep: _Sweep, ending: Ending, follower: Follower, trial: Job, limit: int | None, scratch: Path) -> None:
    """Let Tune run the trials that have no result yet."""
    job, record, folder = sweep.job, sweep.record, sweep.folder
    scheduler = build_scheduler(job, record.metric, record.mode)
    replay(scheduler, record, folder)
    initial = len(initial_trials(job, sweep.space))
    store = store_place(job)
    parcel = store.pack() if store is not None and alive_nodes() > 1 else None
    plan = TrialPlan(job, folder.location, folder.epoch, record.metric, store, parcel)
    with _quiet():
        tune.run(
            tune.with_parameters(Trial, plan=plan),
            resources_per_trial=placement(trial),
            search_alg=Suggestions(record, sweep.proposer, initial, ending.closing),
            scheduler=scheduler,
            num_samples=1_000_000,  # the proposer knows when it is done
            max_concurrent_trials=limit,
            callbacks=[follower],
            stop=ending,
            storage_path=str(scratch),
            name="tune",
            max_failures=1,
            reuse_actors=True,
            raise_on_failed_trial=False,
            verbose=0,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What Tune warns of is said by the sweep itself, in its own words."""
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _settle(record: SweepRecord, follower: Follower) -> None:
    """No trial is under way any more: those without a result are to be gone on with."""
    for trial in record.trials:
        if trial.state == "running":
            trial.state = "unfinished"
            follower.close_run(trial)


def _finish(
    sweep: _Sweep, tracker: SweepTracker, follower: Follower, reason: str | None, scratch: Path, say: Say
) -> dict[str, Any]:
    job, record, folder = sweep.job, sweep.record, sweep.folder
    _settle(record, follower)
    best = record.choose()
    failed = bool(record.trials) and all(trial.state == "failed" for trial in record.trials)
    record.state = reason or ("failed" if failed else "finished")
    for trial in record.trials:
        if trial.state in ENDED and not trial.tracked and not tracker.ended(trial.folder):
            # The driver was killed before its run had everything, or the store was away.
            follower.open_run(trial)
            follower.close_run(trial)
    results.write_table(record, folder)
    if best is not None:
        results.write_best(job, best, folder)
    drawn = results.draw_sweep(record, sweep.space, folder, scratch)
    for path in drawn:
        folder.write(path.name, path.read_bytes())
    tracker.wait()
    record.save(folder)
    _upload(sweep, tracker, best, drawn, scratch)
    report = tracker.parent.finish("KILLED" if reason == "interrupted" else "FAILED" if failed else "FINISHED")
    record.mlflow_run_id = report.run_id
    record.save(folder)
    untracked = [trial.folder for trial in record.trials if not trial.tracked]
    if report.uri is not None and (report.problem is not None or untracked):
        say(f"not everything reached {report.uri}; --resume {folder.location} tries again")
    return _summary(sweep, best)


def _upload(
    sweep: _Sweep, tracker: SweepTracker, best: TrialRecord | None, drawn: Sequence[Path], scratch: Path
) -> None:
    folder, parent = sweep.folder, tracker.parent
    for name in ("job.yaml", "sweep.json", "table.csv", "best.yaml"):
        if folder.exists(name):
            parent.text(name, folder.read(name).decode())
    for path in drawn:
        parent.artifact(str(path))
    found = results.best_checkpoint(best, folder) if best is not None else None
    if found is not None:
        name, content = found
        checkpoint = scratch / "best" / name
        checkpoint.parent.mkdir()
        checkpoint.write_bytes(content)
        parent.artifact(str(checkpoint), "checkpoints")


def _summary(sweep: _Sweep, best: TrialRecord | None) -> dict[str, Any]:
    record, location = sweep.record, sweep.folder.location
    return {
        "sweep_dir": location,
        "state": record.state,
        "mlflow_run_id": record.mlflow_run_id,
        "metric": record.metric,
        "mode": record.mode,
        "best": None
        if best is None
        else {
            "trial": best.trial,
            "values": best.values,
            "value": best.best,
            "step": best.best_step,
            "run_dir": f"{location}/{best.folder}",
            "job": f"{location}/best.yaml",
        },
        "trials": results.table_rows(record),
    }
