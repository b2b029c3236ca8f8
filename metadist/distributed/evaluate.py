"""Judges a trained run again: on other tasks, other sizes, another domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from metadist import config
from metadist.config import Job
from metadist.distributed.logs import RunLogs
from metadist.distributed.run import RunOptions, evaluation_plan, open_run
from metadist.distributed.runtime import open_runtime
from metadist.errors import UserError
from metadist.learners import FusionConfig, learner_class
from metadist.outer import StrategyCheck
from metadist.tasks import Episode
from metadist.tasks.base import Split
from metadist.training.comparison import task_set
from metadist.training.dispatch import Dispatcher
from metadist.training.evaluation import evaluate
from metadist.training.loop import Observer
from metadist.training.machine import keep_freed_memory, leave_compiler_out, set_threads
from metadist.training.run_folder import CHECKPOINT, RunFolder, checkpoint_version
from metadist.training.start_values import best_checkpoint, read_frozen
from metadist.training.work import CheckWork


@dataclass(frozen=True)
class EvaluationRequest:
    """What to judge on; `None` takes the job's own setting.

    Attributes:
        data: another source of images, all of whose classes are the test classes unless `overrides` say which.
        overrides: `dotted.key=value` settings of the job, for example `data.invert=false`.
        last_only: judge after the last step only, which is cheaper.
    """

    split: Split = "test"
    tasks: int | None = None
    ways: int | None = None
    shots: int | None = None
    query: int | None = None
    steps: int | None = None
    norm: str | None = None
    data: str | None = None
    overrides: Sequence[str] = ()
    last_only: bool = False


def evaluate_run(location: str, request: EvaluationRequest, display: Observer, options: RunOptions) -> dict[str, Any]:
    """Judge a run's best version on validation, or the checkpoint that `location` names.

    Returns:
        The figures, and as `scores` those of single tasks (a `TaskSet`).
    """
    folder, name = _split_location(location)
    folder, job, _ = open_run(folder.location)
    if name is None:
        name = best_checkpoint(folder)
    job = _changed(job, request)
    set_threads(job.resources.threads)
    keep_freed_memory()
    leave_compiler_out()
    store = config.open_data(job, options.data_progress)
    placed = config.with_store(job, store)
    experiment = config.build_experiment(placed, "evaluation", read_frozen(folder))
    if not experiment.distribution.has(request.split):
        raise UserError("--split", request.split, f"a split with classes; data.split.{request.split} has none")
    episode = Episode(job.tasks.ways, job.tasks.shots, request.query or job.evaluation.query)
    experiment.distribution.check(request.split, episode)
    steps = experiment.learner.eval_steps if request.steps is None else request.steps
    plan = evaluation_plan(job, request.split, request.tasks or job.evaluation.test_tasks, episode, steps)
    runtime = open_runtime(placed, "evaluation", experiment, options.address, options.fault)
    with RunLogs("evaluation"), runtime as (pool, server):
        published = server.read(folder, name)
        dispatcher = Dispatcher(pool, job.resources.timeout, display.say)
        (check,) = dispatcher.run_all([CheckWork(plan.split, plan.seed, episode)], published)
        assert isinstance(check, StrategyCheck)
        beside = experiment.learner.beside()
        result = evaluate(
            dispatcher,
            plan,
            check.strategy,
            published,
            with_scratch=True,
            with_classes=True,
            last_only=request.last_only,
            beside=beside,
            progress=display.testing,
        )
    return {
        "run_dir": folder.location,
        "checkpoint": name,
        "step": checkpoint_version(name),
        "data": request.data or job.data.source if store is not None else None,
        "data_sha256": store.sha256 if store is not None else None,
        request.split: result.as_dict(),
        "scores": task_set(result, config.identity(job, store)),
    }


def _split_location(location: str) -> tuple[RunFolder, str | None]:
    path = PurePosixPath(location)
    if not location.endswith(".safetensors"):
        return RunFolder(location.rstrip("/")), None
    if not CHECKPOINT.fullmatch(path.name) or path.parent.name != "checkpoints":
        raise UserError(
            location,
            path.name,
            "a checkpoint in its run folder (RUN_DIR/checkpoints/step-NNNNNNNN.safetensors)",
            "The run folder holds the job that says what the tensors mean.",
        )
    root = location[: -len(f"/checkpoints/{path.name}")] or "."
    return RunFolder(root), f"checkpoints/{path.name}"


def _changed(job: Job, request: EvaluationRequest) -> Job:
    content = config.job_dict(job)
    if request.data is not None:
        if "data" not in content or not job.tasks.needs_data:
            raise UserError("--data", request.data, f"a job with image tasks; this one's are {job.tasks.kind}")
        content["data"] |= {"source": request.data}
        content["data"]["split"] = {"train": None, "valid": None, "test": ["*"], "seed": 0}
    for override in request.overrides:
        config.set_value(content, override)
    for key in ("ways", "shots"):
        if getattr(request, key) is not None:
            content["tasks"][key] = getattr(request, key)
    if request.norm is not None:
        if isinstance(job.learner, FusionConfig):
            raise UserError("--norm", request.norm, "none of it: each expert has the normalisation of its own run")
        content["model"]["norm"] = request.norm
    changed = config.parse_job(content)
    if changed.tasks.ways != job.tasks.ways and not learner_class(job.predictor.kind).embeds:
        raise UserError(
            "--ways",
            changed.tasks.ways,
            f"{job.tasks.ways}, the number of outputs that this {job.predictor.kind} was trained with",
            f"Only learners without a head ({config.HEADLESS}) can change it.",
        )
    return changed
