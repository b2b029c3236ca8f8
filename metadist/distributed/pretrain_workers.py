"""Pre-training in several processes: Ray Train starts them, joins them to a process group, and starts them again.

    driver ── a thread in TorchTrainer.fit ── Ray Train's controller ── worker 0 … n−1, one process group
       └──────────────── takes records from, says stop to ── desk ◀── worker 0, each epoch

The checkpoints are the run folder's own, written by worker 0 under the driver's lease. When a worker dies, Ray Train
starts all of them anew, and they go on from the folder's newest one.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from metadist.config import Job
from metadist.distributed.blueprint import FaultHook
from metadist.distributed.logs import name_this_process, settle
from metadist.distributed.places import alive_nodes, check_places
from metadist.distributed.pretrain import Prepared, build_pretraining, read_newest, workers
from metadist.distributed.run import RunOptions
from metadist.distributed.session import ray_session
from metadist.distributed.store_place import Parcel, StorePlace, store_place
from metadist.errors import UserError
from metadist.training.machine import fingerprint, make_deterministic, pick_device, set_threads
from metadist.training.pretraining import EpochRecord, Share, Watch, run_epochs, shared
from metadist.training.run_folder import RunFolder
from metadist.training.stepper import Diverged

#: worker groups that may be lost before the run is given up
FAILURES = 3
#: seconds between two looks at the desk
LOOK_EVERY = 0.2
#: seconds within which the desk answers
DESK_SECONDS = 60.0
#: Ray Train's own files, below the run's folder
OWN_FOLDER = "ray-train"


class Desk:
    """Between worker 0 and the driver: records one way, the wish to stop the other."""

    def __init__(self) -> None:
        self._records: list[EpochRecord] = []
        self._error: Exception | None = None
        self._beats = 0
        self._stop = False

    def beat(self) -> None:
        """Worker 0 lives."""
        self._beats += 1

    def report(self, record: EpochRecord) -> bool:
        """An epoch ended; returns whether the driver wants to stop."""
        self._records.append(record)
        return self._stop

    def fail(self, error: Exception) -> None:
        """Something that another try would not mend."""
        self._error = error

    def take(self, stop: bool) -> tuple[list[EpochRecord], Exception | None, int]:
        """Everything since the last call, and the number of signs of life so far."""
        self._stop = stop
        records, self._records = self._records, []
        return records, self._error, self._beats


@dataclass(frozen=True)
class _Part:
    """What every worker is given, by value."""

    job: Job
    run: str
    folder: RunFolder
    identity: str
    stop_after: int | None
    store: StorePlace
    parcel: Parcel | None
    desk: Any
    fault: FaultHook | None


def train_in_parallel(
    prepared: Prepared, folder: RunFolder, epoch: Callable[[EpochRecord], bool], options: RunOptions
) -> None:
    """Run the epochs in worker processes; returns when they have ended, or raises what ended them."""
    job = prepared.placed
    r, count = job.resources, workers(job)
    with ray_session(options.address, count * r.cpus_per_worker, count * r.gpus_per_worker):
        check_places(job)
        store = store_place(job)
        assert store is not None
        parcel = store.pack() if alive_nodes() > 1 else None
        desk = ray.remote(Desk).options(num_cpus=0).remote()
        there = folder.anchored()
        part = _Part(job, prepared.run, there, prepared.sha, options.stop_after, store, parcel, desk, options.fault)
        trainer = TorchTrainer(
            _work,
            train_loop_config={"part": part},
            torch_config=TorchConfig(timeout_s=int(r.timeout)),
            scaling_config=train.ScalingConfig(
                num_workers=count,
                use_gpu=r.gpus_per_worker > 0,
                resources_per_worker={"CPU": r.cpus_per_worker}
                | ({"GPU": r.gpus_per_worker} if r.gpus_per_worker else {}),
            ),
            run_config=train.RunConfig(
                name=OWN_FOLDER,
                storage_path=there.location,
                failure_config=train.FailureConfig(max_failures=FAILURES),
            ),
        )
        _remove_own_files(there)  # a killed driver's: nothing of what Ray Train writes is ever read again
        try:
            _watch(_Fit(trainer), desk, epoch, options, r.timeout)
        finally:
            ray.kill(desk)
            _remove_own_files(there)
            settle()


def _remove_own_files(folder: RunFolder) -> None:
    if folder.local is not None:
        shutil.rmtree(Path(folder.local, OWN_FOLDER), ignore_errors=True)


class _Fit(threading.Thread):
    """`TorchTrainer.fit`, which waits for ever, in a thread of its own."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="pretrain", daemon=True)
        self._trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # told by the driver's thread
            self.error = error


def _watch(fit: _Fit, desk: Any, epoch: Callable[[EpochRecord], bool], options: RunOptions, timeout: float) -> None:
    fit.start()
    last, beats = time.monotonic(), 0
    stop = False
    while True:
        alive = fit.is_alive()
        records, error, seen = ray.get(desk.take.remote(stop or options.stop()), timeout=DESK_SECONDS)
        for record in records:
            stop = epoch(record) or stop
        if error is not None:
            raise error
        if not alive:
            break
        if records or seen != beats:
            last, beats = time.monotonic(), seen
        if time.monotonic() - last > timeout:
            raise TimeoutError(f"no worker did anything within {timeout:g} s (resources.timeout)")
        fit.join(LOOK_EVERY)
    if fit.error is not None:
        raise fit.error


def _work(config: dict[str, Any]) -> None:
    """In each worker."""
    part: _Part = config["part"]
    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    name_this_process(part.run, f"worker-{rank}")
    resources = part.job.resources
    set_threads(resources.threads)
    device = pick_device(resources.gpus_per_worker)
    make_deterministic(device)
    if part.parcel is not None:
        part.store.unpack(part.parcel)
    seen: list[Any] = [None] * world
    torch.distributed.all_gather_object(seen, fingerprint(device))
    shared(seen)
    job = replace(part.job, data=replace(part.job.data, source=str(part.store.here())))
    pretraining = build_pretraining(job, part.run, device)

    def epoch(record: EpochRecord) -> bool:
        stop = bool(ray.get(part.desk.report.remote(record), timeout=DESK_SECONDS))
        if part.fault is not None:
            part.fault("epoch", record.version)
        return stop or record.epoch == part.stop_after

    watch = Watch(epoch, lambda: part.desk.beat.remote())
    try:
        newest, keep = read_newest(part.folder), part.job.checkpoint.keep
        share = Share(rank, world, torch.distributed.all_reduce)
        run_epochs(pretraining, share, part.folder, newest, part.identity, keep, watch)
    except (UserError, Diverged) as error:  # the same in all workers, and in the next ones
        if rank == 0:
            ray.get(part.desk.fail.remote(error), timeout=DESK_SECONDS)
