"""Runs a job's pre-training from its file to its summary: a run folder that `init_from` takes."""

from __future__ import annotations

import dataclasses
import datetime
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import metadist
from metadist import config
from metadist.config import Job, check_name
from metadist.distributed.logs import RunLogs
from metadist.distributed.run import RunOptions, flat_params, hold_folder, open_run, run_tags
from metadist.errors import UserError
from metadist.learners import Network
from metadist.models import cosine_headed
from metadist.outer import Checkpoint, OuterRule, check_groups, decode_checkpoint, meta_sha256
from metadist.tasks import ImageTasks
from metadist.tasks.labelled import LabelledImages
from metadist.tracking import MetricsFile, RunEnd, Tracker, open_tracker, plots
from metadist.training.loop import Observer
from metadist.training.machine import make_deterministic, pick_device, set_threads
from metadist.training.pretraining import EpochRecord, Pretraining, Share, Watch, run_epochs
from metadist.training.recorder import Recorder
from metadist.training.run_folder import RunFolder, checkpoint_name, checkpoint_version

#: what a pre-training's run.json calls it
KIND = "pretrain"


@dataclass(frozen=True)
class Prepared:
    """A pre-training that was checked against its data, ready to run.

    Attributes:
        placed: the job with its data at a place that workers can open.
        identity, sha: what its results are a function of.
    """

    job: Job
    placed: Job
    run: str
    pretraining: Pretraining
    identity: dict[str, Any]
    sha: str


def build_pretraining(job: Job, run: str, device: torch.device) -> Pretraining:
    """What a process of a job's pre-training needs.

    Raises:
        UserError: the job has no images to train on, or too few for a batch.
    """
    distribution = config.build_distribution(job)
    if not isinstance(distribution, ImageTasks):
        raise UserError("tasks.kind", job.tasks.kind, "images: only they have classes that can be trained on at once")
    if not distribution.has("train"):
        raise UserError("data.split.train", job.data.split.train, "classes to train on")
    settings = job.pretrain
    images = LabelledImages(distribution, "train", settings.holdout, job.seed)
    model = config.build_model(job, distribution, images.ways)
    if settings.head == "cosine":
        model = cosine_headed(model, settings.scale)
    if not workers(job) <= settings.batch <= len(images.train):
        expected = f"from the number of workers, {workers(job)}, to the {len(images.train)} training images"
        raise UserError("pretrain.batch", settings.batch, expected)
    network = Network(model.to(device), job.model.init, "cross_entropy")
    steps = settings.epochs * (len(images.train) // settings.batch)
    rule = OuterRule(run, settings.optimizer, steps, settings.batch, settings.batch)
    pretraining = Pretraining(images, network, rule, settings.epochs, job.seed, device)
    try:
        check_groups(settings.optimizer, list(pretraining.initial().meta.parameters))
    except UserError as error:
        raise UserError(f"pretrain.{error.field}", error.value, error.expected, error.hint) from None
    return pretraining


def workers(job: Job) -> int:
    """Processes of a pre-training."""
    if not isinstance(job.resources.workers, int):
        given = dataclasses.asdict(job.resources.workers)
        hint = "A pre-training's bits depend on the number of its workers."
        raise UserError("resources.workers", given, "one number", hint)
    return config.pretrain_workers(job)


def pretrain_job(job: Job, display: Observer, options: RunOptions) -> dict[str, Any]:
    """Pre-train in a run folder of its own, from the start or from where `options.run` was; returns the summary."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    run = options.run if options.run is not None else f"{job.name}-pretrain-{stamp}-{secrets.token_hex(2)}"
    check_name("--run", run)
    folder = RunFolder(f"{os.path.expanduser(job.storage).rstrip('/')}/{run}")
    folder.check_free()
    job = config.anchored(job)
    if folder.exists("run.json") and folder.checkpoints():
        return resume_pretraining(folder.location, lambda _: job, display, options)
    prepared = _prepare(job, run, options)
    about = {
        "run": run,
        "kind": KIND,
        "metadist": metadist.__version__,
        "started": time.time(),
        "identity_sha256": prepared.sha,
        "identity": prepared.identity,
    }
    return _run(prepared, folder, display, options, about, None)


def resume_pretraining(
    location: str, place: Callable[[Job], Job], display: Observer, options: RunOptions
) -> dict[str, Any]:
    """Go on with the pre-training in a folder, to the same bits as if it had never stopped.

    Args:
        place: changes the job's placement (storage, tracking); the number of workers is no placement here.
    """
    folder, job, about = open_run(location)
    if about.get("kind") != KIND:
        hint = "`metadist train --resume` goes on with a meta-training."
        raise UserError("--resume", location, "the run folder of a pre-training", hint)
    prepared = _prepare(place(job), about["run"], options)
    if prepared.sha != about["identity_sha256"]:
        fields = config.changed_fields(about["identity"], prepared.identity)
        raise UserError(
            "--run" if options.run else "--resume",
            location,
            f"the same pre-training; changed: {', '.join(fields)}",
            "It goes on with as many workers as before, and with other storage or tracking only; or start a new one.",
        )
    names = folder.checkpoints()
    if not names:
        raise UserError(location, "no checkpoint", "a run with at least one checkpoint", "Start the job anew.")
    folder.check_free()
    display.say(f"going on from step {checkpoint_version(names[-1])} of {location}")
    return _run(prepared, folder, display, options, about, names[-1])


def _prepare(job: Job, run: str, options: RunOptions) -> Prepared:
    set_threads(job.resources.threads)
    store = config.open_data(job, options.data_progress)
    placed = config.with_store(job, store)
    device = pick_device(job.resources.gpus_per_worker if job.runtime == "inprocess" else 0)
    make_deterministic(device)
    pretraining = build_pretraining(placed, run, device)
    assert store is not None, "build_pretraining refuses tasks without data"
    identity = config.pretrain_identity(job, store, pretraining.rule.steps)
    return Prepared(job, placed, run, pretraining, identity, config.identity_sha256(identity))


def read_newest(folder: RunFolder) -> Checkpoint | None:
    """The last epoch that a folder has."""
    names = folder.checkpoints()
    return decode_checkpoint(folder.read(names[-1]), f"{folder.location}/{names[-1]}") if names else None


@dataclass
class _Watcher:
    """Writes down what the processes report, on the driver."""

    folder: RunFolder
    recorder: Recorder
    display: Observer
    options: RunOptions
    epochs: int
    last: EpochRecord | None = None

    def epoch(self, record: EpochRecord) -> bool:
        """An epoch ended; returns whether the run is to end."""
        if self.last is None or record.version > self.last.version:  # workers that died may report one again
            self._note(record)
        self.last = record
        return self.options.stop() or record.epoch == self.options.stop_after

    def _note(self, record: EpochRecord) -> None:
        values = {
            "train/loss": record.loss,
            "train/accuracy": record.accuracy,
            "train/lr": record.lr,
        }
        text = f"epoch {record.epoch}/{self.epochs}: loss {record.loss:.4f}, accuracy {100 * record.accuracy:.2f} %"
        if record.valid_loss is not None and record.valid_accuracy is not None:
            values |= {"valid/loss": record.valid_loss, "valid/accuracy": record.valid_accuracy}
            text += f"; held out {100 * record.valid_accuracy:.2f} %"
        self.recorder.log(record.version, values)
        self.recorder.saved(record.version, checkpoint_name(record.version))
        self.folder.renew()
        self.display.say(f"{text}; {record.seconds:.1f} s")


def _run(
    prepared: Prepared,
    folder: RunFolder,
    display: Observer,
    options: RunOptions,
    about: dict[str, Any],
    resume: str | None,
) -> dict[str, Any]:
    job, run = prepared.job, prepared.run
    tracker = open_tracker(job.tracking, display.say)
    start = checkpoint_version(resume) if resume else 0
    status: RunEnd = "FAILED"
    with tempfile.TemporaryDirectory(prefix="metadist-") as scratch, RunLogs(run) as logs:
        held = hold_folder(folder, job, resume)
        try:
            logs.keep_in(held)
            params = flat_params(config.job_dict(job))
            tracker.start(run, params, run_tags(), about.get("mlflow_run_id"), lazy=True)
            tracker.text("job.yaml", config.dump_job(job))
            recorder = Recorder(held, tracker, display, start, about, job.pretrain.batch)
            held.write_json("run.json", about)
            watcher = _Watcher(held, recorder, display, options, job.pretrain.epochs)
            _train(prepared, held, watcher, options)
            summary = _summarize(prepared, held, tracker, recorder, watcher, Path(scratch))
            status = "KILLED" if summary["outcome"] == "stopped" else "FINISHED"
        finally:
            report = tracker.finish(status)
            recorder.close()
            held.release()
            if resume is None and held.local is not None and not held.checkpoints():
                shutil.rmtree(held.local, ignore_errors=True)
    return summary | {"mlflow_run_id": report.run_id}


def _train(prepared: Prepared, held: RunFolder, watcher: _Watcher, options: RunOptions) -> None:
    job = prepared.job
    if job.runtime == "ray":
        from metadist.distributed.pretrain_workers import train_in_parallel

        train_in_parallel(prepared, held, watcher.epoch, options)
        return
    if options.address is not None:
        raise UserError("--address", options.address, "no address with runtime: inprocess", "Leave one of them out.")
    watch = Watch(watcher.epoch)
    newest, keep = read_newest(held), job.checkpoint.keep
    run_epochs(prepared.pretraining, Share(), held, newest, prepared.sha, keep, watch)


def _summarize(
    prepared: Prepared, held: RunFolder, tracker: Tracker, recorder: Recorder, watcher: _Watcher, scratch: Path
) -> dict[str, Any]:
    newest = read_newest(held)
    assert newest is not None, "every epoch ends with a checkpoint"
    pretraining, version = prepared.pretraining, newest.state.version
    best = newest.progress["best_version"]
    about = held.read_json("run.json")
    trained = pretraining.rule.tasks * pretraining.steps_per_epoch
    last = watcher.last
    summary: dict[str, Any] = {
        "run_dir": held.location,
        "mlflow_run_id": tracker.wait_for_run_id(15.0),
        "outcome": "finished" if version >= pretraining.rule.steps else "stopped",
        "step": version,
        "epoch": version // pretraining.steps_per_epoch,
        "params_sha256": meta_sha256(newest.state.meta),
        "images_per_second": round(trained / last.seconds, 1) if last and last.seconds else None,
        "train_seconds": round(newest.progress["seconds"], 2),
        "norm": prepared.job.model.norm,
        "workers": workers(prepared.job),
        "classes": pretraining.images.ways,
        "tested_step": version if best is None else best,
        "identity_sha256": about["identity_sha256"],
        "valid": None,
        "test": None,
    }
    if best is not None:
        images = len(pretraining.images.held)
        summary["valid"] = {"accuracy": newest.progress["best_score"], "images": images}
    curves = scratch / "training.png"
    plots.training_curves(MetricsFile.read(str(recorder.metrics_path)), curves)
    held.write("plots/training.png", curves.read_bytes())
    tracker.artifact(str(curves), "plots")
    lines = [f"- {key}: {value}" for key, value in summary.items() if isinstance(value, str | int | float)]
    page = "\n".join([f"# {prepared.run}", "", *lines, "", "![training](plots/training.png)", ""])
    held.write("report.md", page.encode())
    tracker.text("report.md", page)
    held.write_json("summary.json", summary)
    tracker.text("summary.json", held.read("summary.json").decode())
    return summary
