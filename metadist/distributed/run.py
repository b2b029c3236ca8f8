"""Runs a job from its file to its summary: data, run folder, tracking, runtime, training, report."""

from __future__ import annotations

import datetime
import os
import platform
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import metadist
from metadist import config
from metadist.config import Job, check_name
from metadist.distributed.blueprint import FaultHook
from metadist.distributed.logs import RunLogs
from metadist.distributed.runtime import open_runtime
from metadist.errors import UserError
from metadist.learners import Meta, plain_meta
from metadist.outer import Experiment, OuterState, decode_checkpoint, start_values
from metadist.reading_yaml import MOST_YAML, parse_yaml
from metadist.tasks import Episode
from metadist.tasks.base import Split
from metadist.tracking import VERSION_TAG, RunEnd, Tracker, open_tracker
from metadist.training.comparison import SCORES, dump_scores, task_set
from metadist.training.cost import measure_costs
from metadist.training.evaluation import EvaluationPlan
from metadist.training.loop import Observer, TrainPlan, TrainResult, train
from metadist.training.machine import cpu_name, keep_freed_memory, leave_compiler_out, pick_device, set_threads
from metadist.training.recorder import Recorder, scores
from metadist.training.report import draw_plots, report_page
from metadist.training.run_folder import JUDGED, RunFolder, checkpoint_name, checkpoint_version
from metadist.training.start_values import keep_frozen, read_frozen, read_start

DataProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class RunOptions:
    """How a job is run, beside what its file says.

    Attributes:
        address: a Ray cluster's; `None` starts an embedded one.
        run: name of the run's folder in the job's storage, and its id; a run that is there goes on.
        stop_after: end after this step with a checkpoint.
        stop: asked after every step; true ends the run with a checkpoint.
        fault: called at named points of the actors' work; for tests.
        data_progress: told of images that are being prepared (done, of).
        test: whether to judge the best version on the test tasks at the end.
    """

    address: str | None = None
    run: str | None = None
    stop_after: int | None = None
    stop: Callable[[], bool] = lambda: False
    fault: FaultHook | None = None
    data_progress: DataProgress | None = None
    test: bool = True


@dataclass(frozen=True)
class _Prepared:
    """A job that was checked against its data, ready to run."""

    job: Job
    placed: Job
    experiment: Experiment
    run: str
    identity: dict[str, Any]
    sha: str


def train_job(job: Job, display: Observer, options: RunOptions) -> dict[str, Any]:
    """Train a job in a run folder of its own, from its start or from where `options.run` was; returns the summary."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    run = options.run if options.run is not None else f"{job.name}-{stamp}-{secrets.token_hex(2)}"
    folder = RunFolder(f"{os.path.expanduser(job.storage).rstrip('/')}/{run}")
    job, start = pinned(config.anchored(job))
    job, parts = with_parts(job)
    if options.run is not None:
        check_name("--run", run)
        folder.check_free()
        if folder.exists("run.json") and folder.checkpoints():
            return resume_run(folder.location, lambda _: job, display, options)
    prepared = _prepare(job, run, display, options)
    begun = _begin(prepared.experiment.initial(), job, start, parts)
    prepared = replace(prepared, experiment=replace(prepared.experiment, start=begun))
    about = {
        "run": run,
        "metadist": metadist.__version__,
        "started": time.time(),
        "identity_sha256": prepared.sha,
        "identity": prepared.identity,
    }
    return _run(prepared, folder, display, options, about, None, {})


def resume_run(location: str, place: Callable[[Job], Job], display: Observer, options: RunOptions) -> dict[str, Any]:
    """Go on with the run in a folder, to the same bits as if it had never stopped.

    Args:
        place: changes the job's placement (workers, storage, tracking); whatever else it changes is refused.
    """
    folder, job, about = open_run(location)
    if about.get("kind") == "pretrain":
        hint = "`metadist pretrain` goes on with it; --set init_from.path=RUN_DIR starts a job from it."
        raise UserError("--run" if options.run else "--resume", location, "the run of a meta-training", hint)
    changed = place(job)
    prepared = _prepare(changed, about["run"], display, options)
    prepared = replace(prepared, experiment=replace(prepared.experiment, start=read_frozen(folder)))
    if prepared.sha != about["identity_sha256"]:
        fields = config.changed_fields(about["identity"], prepared.identity)
        raise UserError(
            "--run" if options.run else "--resume",
            location,
            f"the same job; changed: {', '.join(fields) or 'the way identities are made'}",
            "A run goes on with another placement only (resources, storage, tracking, runtime); or start a new one.",
        )
    names = folder.checkpoints()
    if not names:
        raise UserError(location, "no checkpoint", "a run with at least one checkpoint", "Start the job anew.")
    folder.check_free()
    for name in reversed(names):
        try:
            checkpoint = decode_checkpoint(folder.read(name), f"{location}/{name}")
            break
        except UserError as error:
            display.say(f"{error} Trying the one before it.")
    else:
        raise UserError(location, f"{len(names)} unreadable checkpoints", "at least one whole checkpoint")
    if checkpoint.identity != prepared.sha:
        raise UserError(name, checkpoint.identity, f"a checkpoint of this run's job, {prepared.sha}")
    display.say(f"going on from step {checkpoint.state.version} of {location}")
    return _run(prepared, folder, display, options, about, name, checkpoint.progress)


def open_run(location: str) -> tuple[RunFolder, Job, dict[str, Any]]:
    """The folder of a run, its resolved job, and its description.

    Raises:
        UserError: there is no run.
    """
    folder = RunFolder(location)
    if not folder.exists("run.json") or not folder.exists("job.yaml"):
        raise UserError(
            location or "run folder",
            "no run" if folder.exists() else "nothing there",
            "a run folder (with job.yaml and run.json)",
            "Name a folder that `metadist train` made, for example one in runs/.",
        )
    about = folder.read_json("run.json")
    kinds = {"run": str, "identity": dict, "identity_sha256": str}
    if not isinstance(about, dict) or not all(isinstance(about.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"{location}/run.json", "something else", "a run's description", "The file was changed.")
    content = parse_yaml(folder.read("job.yaml", MOST_YAML), f"{location}/job.yaml")
    return folder, config.parse_job(content), about


def pinned(job: Job) -> tuple[Job, dict[str, Tensor]]:
    """The job with the very file that it starts from and its sha256, and the tensors that are there."""
    if job.start is None:
        return job, {}
    found = read_start(os.path.expanduser(job.start.path), job.start.sha256)
    return replace(job, init_from=replace(job.start, path=found.path, sha256=found.sha256)), found.tensors


def with_parts(job: Job) -> tuple[Job, dict[str, dict[str, Tensor]]]:
    """The job with what it must know of the runs that are parts of its learner, and their tensors by part."""
    runs, tensors = {}, {}
    for name, run in config.trained_runs(job).items():
        found = read_start(os.path.expanduser(run.path), run.sha256, f"learner.{name}")
        if not found.folder.exists("job.yaml"):
            hint = "A file of tensors does not say what they mean."
            raise UserError(f"learner.{name}", run.path, "a run folder, or one of its checkpoints", hint)
        content = parse_yaml(found.folder.read("job.yaml", MOST_YAML), f"{found.folder.location}/job.yaml")
        runs[name] = replace(run, path=found.path, sha256=found.sha256, job=config.part_of(content))
        tensors[name] = found.tensors
    return config.with_trained_runs(job, runs), tensors


def _begin(
    own: Meta, job: Job, start: Mapping[str, Tensor], parts: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The values that a run starts with in the place of its initial ones."""
    values: dict[str, Tensor] = {}
    runs = config.trained_runs(job)
    for name, tensors in parts.items():
        place = f"{name}."
        wanted = {key.removeprefix(place): value for key, value in own.frozen.items() if key.startswith(place)}
        taken = start_values(plain_meta(wanted), tensors, [], runs[name].path, f"learner.{name}")
        values |= {place + key: value for key, value in taken.items()}
    if job.start is not None:
        rest = own._replace(frozen={key: value for key, value in own.frozen.items() if key not in values})
        values |= start_values(rest, start, job.start.fresh, job.start.path)
    return values


def _prepare(job: Job, run: str, display: Observer, options: RunOptions) -> _Prepared:
    set_threads(job.resources.threads)
    keep_freed_memory()
    leave_compiler_out()
    for warning in job.warnings:
        display.say(warning)
    store = config.open_data(job, options.data_progress)
    placed = config.with_store(job, store)
    experiment = config.build_experiment(placed, run)
    if not experiment.distribution.has("train"):
        raise UserError("data.split.train", job.data.split.train, "classes to train on")
    identity = config.identity(job, store)
    return _Prepared(job, placed, experiment, run, identity, config.identity_sha256(identity))


def evaluation_plan(job: Job, split: Split, tasks: int, episode: Episode, steps: int) -> EvaluationPlan:
    """The fixed tasks of a split, as the job's `evaluation` section says."""
    return EvaluationPlan(
        split=split,
        seed=job.evaluation.seed,
        tasks=tasks,
        episode=episode,
        steps=steps,
        chunk=job.evaluation.chunk,
        norm=job.model.norm,
    )


def _plan(prepared: _Prepared, options: RunOptions) -> TrainPlan:
    job, experiment = prepared.job, prepared.experiment
    episode = config.evaluation_episode(job)
    steps, test_tasks = experiment.learner.eval_steps, job.evaluation.test_tasks
    valid, tests = None, {}
    if experiment.distribution.has("valid"):
        valid = evaluation_plan(job, "valid", job.evaluation.tasks, episode, steps)
    if options.test and experiment.distribution.has("test"):
        tests["test"] = evaluation_plan(job, "test", test_tasks, episode, steps)
        if job.tasks.query != episode.query:
            # Where a batch normalises itself the number of query examples changes the figure: show both.
            own = replace(episode, query=job.tasks.query)
            tests["test_training_query"] = evaluation_plan(job, "test", test_tasks, own, steps)
    return TrainPlan(
        steps=job.steps,
        validate=valid,
        validate_every=job.evaluation.every,
        tests=tests,
        checkpoint_every=job.checkpoint.every,
        keep=job.checkpoint.keep,
        identity=prepared.sha,
        deadline=job.resources.timeout,
        least=job.resources.least if job.runtime == "ray" else 1,
        stop_after=options.stop_after,
        patience=job.evaluation.patience,
    )


def _run(
    prepared: _Prepared,
    folder: RunFolder,
    display: Observer,
    options: RunOptions,
    about: dict[str, Any],
    resume: str | None,
    progress: dict[str, Any],
) -> dict[str, Any]:
    job, run = prepared.job, prepared.run
    tracker = open_tracker(job.tracking, display.say)
    start = checkpoint_version(resume) if resume else 0
    status: RunEnd = "FAILED"
    runtime = open_runtime(prepared.placed, run, prepared.experiment, options.address, options.fault)
    with tempfile.TemporaryDirectory(prefix="metadist-") as scratch, RunLogs(run) as logs, runtime as seams:
        if options.address is not None:
            from metadist.distributed.places import loss_notice

            display.say(loss_notice())
        # Only now is there anything to write down: a job that cannot start leaves nothing behind.
        held = hold_folder(folder, job, resume)
        if resume is None:
            keep_frozen(held, prepared.experiment.initial().still)
        logs.keep_in(held)
        tracker.start(run, flat_params(config.job_dict(job)), run_tags(), about.get("mlflow_run_id"), lazy=True)
        tracker.text("job.yaml", config.dump_job(job))
        recorder = Recorder(held, tracker, _metered(display, prepared), start, about, job.tasks.batch)
        plan = _plan(prepared, options)
        try:
            result = train(prepared.experiment, plan, *seams, held, recorder, options.stop, resume, progress)
            summary = _summarize(prepared, held, tracker, recorder, result, Path(scratch))
            status = "KILLED" if result.outcome == "stopped" else "FINISHED"
        finally:
            report = tracker.finish(status)
            recorder.close()
            held.release()
            if resume is None and held.local is not None and not held.checkpoints():
                # Training never began, and nothing can be resumed.
                shutil.rmtree(held.local, ignore_errors=True)
    if report.lost or report.lost_files:
        display.say(
            f"{report.lost} metric values and {report.lost_files} files did not reach {report.uri}; "
            f"all metrics are in {folder.location}/metrics.jsonl"
        )
    return summary | {"mlflow_run_id": report.run_id}


def _metered(display: Observer, prepared: _Prepared) -> Observer:
    if prepared.job.runtime != "ray":
        return display
    from metadist.distributed.metrics import MeteredDisplay

    return MeteredDisplay(display, prepared.run, prepared.job.tasks.batch)


def hold_folder(folder: RunFolder, job: Job, resume: str | None) -> RunFolder:
    """The folder with its lease and its job file; a new one that cannot be written is not left half made."""
    try:
        held = folder.acquire()
        held.write("job.yaml", config.dump_job(job).encode())
        return held
    except UserError as error:
        if resume is not None or error.field == "storage":
            raise
        if folder.local is not None:
            shutil.rmtree(folder.local, ignore_errors=True)
        raise UserError(
            "storage",
            job.storage,
            f"a place where a run's folder can be written ({error.value})",
            "Name another one with --storage, or mend its permissions or space.",
        ) from error


def _summarize(
    prepared: _Prepared,
    folder: RunFolder,
    tracker: Tracker,
    recorder: Recorder,
    result: TrainResult,
    scratch: Path,
) -> dict[str, Any]:
    tests = result.tests
    summary: dict[str, Any] = {
        "run_dir": folder.location,
        "mlflow_run_id": tracker.wait_for_run_id(15.0),
        "outcome": result.outcome,
        "step": result.step,
        "params_sha256": result.params_sha256,
        "tasks_per_second": round(result.tasks_per_second, 2),
        "train_seconds": round(result.train_seconds, 2),
        "compute_seconds": round(result.compute_seconds, 2),
        "strategy": result.strategy.strategy,
        "norm": prepared.job.model.norm,
        "worker_losses": result.worker_losses,
        "server_losses": result.server_losses,
        "chunks_redone": result.chunks_redone,
        "chunks_doubled": result.chunks_doubled,
        "steps_skipped": result.skipped,
        "refused": result.refused,
        "workers": {str(worker): share for worker, share in result.workers.items()},
        "tested_step": result.tested,
        "tested_as": result.tested_as,
        "identity_sha256": prepared.sha,
        "valid": result.valid.as_dict() if result.valid else None,
        "test": None,
    } | {name: test.as_dict() for name, test in tests.items()}
    for name, test in tests.items():
        recorder.log(result.step, scores(test, name))
    shares = {f"worker-{worker}/{key}": v for worker, share in result.workers.items() for key, v in share.items()}
    tracker.metrics(result.step, shares)
    if tests:
        assert result.tested is not None
        judged = _tested_state(folder, result.tested).judged
        meta = prepared.experiment.initial()._replace(parameters=judged.parameters, statistics=judged.statistics)
        episode = config.evaluation_episode(prepared.job)
        if prepared.experiment.learner.beside():
            device = pick_device(prepared.job.resources.gpus_per_worker)
            costs = measure_costs(prepared.experiment, meta, episode, device)
            summary["costs"] = {name: asdict(cost) for name, cost in costs.items()}
        drawn = draw_plots(prepared.experiment, meta, recorder.metrics_path, tests, episode, scratch)
        for path in drawn:
            folder.write(f"plots/{path.name}", path.read_bytes())
            tracker.artifact(str(path), "plots")
        page = report_page(prepared.run, summary, tests, drawn)
        folder.write("report.md", page.encode())
        tracker.text("report.md", page)
        folder.write(SCORES, dump_scores([task_set(test, prepared.identity) for test in tests.values()]))
        tracker.text(SCORES, folder.read(SCORES).decode())
        checkpoint = scratch / Path(checkpoint_name(result.tested)).name
        checkpoint.write_bytes(folder.read(checkpoint_name(result.tested)))
        tracker.artifact(str(checkpoint), "checkpoints")
    folder.write_json("summary.json", summary)
    folder.remove(JUDGED)
    tracker.text("summary.json", folder.read("summary.json").decode())
    return summary


def _tested_state(folder: RunFolder, version: int) -> OuterState:
    name = checkpoint_name(version)
    return decode_checkpoint(folder.read(name), f"{folder.location}/{name}").state


def run_tags() -> dict[str, str]:
    """Marks of a run in MLflow: version and machine."""
    return {
        VERSION_TAG: metadist.__version__,
        "metadist.host": socket.gethostname(),
        "metadist.hardware": f"{cpu_name()}, {os.cpu_count()} cores",
        "metadist.python": platform.python_version(),
    }


def flat_params(content: dict[str, Any], path: str = "") -> dict[str, object]:
    """A job's content by dotted path."""
    flat: dict[str, object] = {}
    for key, value in content.items():
        place = f"{path}.{key}" if path else key
        flat |= flat_params(value, place) if isinstance(value, dict) and value else {place: value}
    return flat
