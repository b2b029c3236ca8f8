"""Checks of this machine: libraries, processors, memory, devices, and the places that runs read and write."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import metadist
from metadist.config import Job
from metadist.data import DataConfig, find_store
from metadist.data.locations import cache_folder
from metadist.distributed.diagnosis import Finding, State
from metadist.distributed.session import OBJECT_STORE_BYTES
from metadist.tracking import TrackingConfig, resolve_uri
from metadist.training.machine import cpu_name
from metadist.training.run_folder import check_writable

GIB = 2**30
CONTROL_GROUP = Path("/sys/fs/cgroup")
#: bytes that a process with torch takes before it holds a model (measured: 326 MB of its own, and what it shares)
PROCESS_BYTES = GIB // 2
#: bytes left on a disk below which runs will fail, and below which they may
SCARCE, LITTLE = GIB, 5 * GIB
#: share of a disk above which Ray stops to write objects to it
RAY_FULL = 0.95
#: bytes of a store's pixels up to which all of them are read
VERIFY_BYTES = 4 * GIB
#: libraries that are shown though nothing is wrong with them
SHOWN = ("ray", "torch", "torchvision", "mlflow", "numpy", "pyarrow")


def libraries() -> Finding:
    """Python and the libraries against the bounds that the package states."""
    python, requirements = _requirements()
    wrong, found = [], [f"metadist {metadist.__version__}", f"Python {platform.python_version()}"]
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        wrong.append(f"Python {platform.python_version()} is not {python}")
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
        if requirement.name in SHOWN:
            found.append(f"{requirement.name} {version}")
    if wrong:
        advice = "Install the versions of constraints.txt: pip install -c constraints.txt metadist."
        return Finding("libraries", "problem", "; ".join(wrong), advice)
    return Finding("libraries", "ok", ", ".join(found))


def _requirements() -> tuple[str, list[Requirement]]:
    """The Python versions and the libraries that the package needs, as installed or as in its pyproject.toml."""
    try:
        about = importlib.metadata.metadata("metadist")
        python, texts = about["Requires-Python"], about.get_all("Requires-Dist") or []
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((Path(metadist.__file__).parents[1] / "pyproject.toml").read_text())["project"]
        python, texts = project["requires-python"], project["dependencies"]
    every = [Requirement(text) for text in texts]
    return python, [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]


def torch_pair() -> Finding:
    """Whether torch and torchvision belong together: of versions that do not, the second cannot be imported."""
    try:
        import torch
        import torchvision
    except Exception as error:  # a missing symbol, operator or library
        advice = "Install torch and torchvision together, for the same kind of device: see constraints.txt."
        return Finding("torch", "problem", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", advice)
    return Finding("torch", "ok", f"torch {torch.__version__} with torchvision {torchvision.__version__}")


def processors(job: Job | None, embedded: bool) -> Finding:
    """CPU cores that this process may use, against what the job's workers reserve here."""
    usable, limits = usable_cores()
    found = f"{usable:g} of {os.cpu_count()} cores usable{limits}; {cpu_name()}"
    if job is not None and embedded:
        asked = job.resources.most * job.resources.cpus_per_worker
        if asked > usable:
            advice = "They will share cores and be slow: lower resources.workers or resources.cpus_per_worker."
            return Finding("processors", "warning", f"{found}; the job's workers ask for {asked:g}", advice)
    return Finding("processors", "ok", found)


def usable_cores() -> tuple[float, str]:
    """Cores that this process may use, and in words what limits them."""
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = " (affinity)" if cores < (os.cpu_count() or 1) else ""
    allowed = _quota()
    if allowed is not None and allowed < cores:
        cores, limits = allowed, " (limit of the container)"
    return cores, limits


def _quota() -> float | None:
    """Cores that this process's control group, of version 2 or 1, allows it; `None` for no limit."""
    old = f"{_control('cpu/cpu.cfs_quota_us')} {_control('cpu/cpu.cfs_period_us')}"
    quota, _, period = (_control("cpu.max") or old).partition(" ")  # "max 100000" or "-1 100000" for no limit
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _control(name: str) -> str:
    """A value of the control group; empty where there is none."""
    try:
        return (CONTROL_GROUP / name).read_text().strip()
    except OSError:
        return ""


def memory(job: Job | None, embedded: bool) -> Finding:
    """Memory that is free for this process, against what a run takes at least."""
    total, free, limits = _memory()
    processes = 2 + (job.resources.most if job is not None and embedded else 0)  # the driver and the server
    need = processes * PROCESS_BYTES + (OBJECT_STORE_BYTES if embedded else 0)
    found = f"{_bytes(free)} of {_bytes(total)} free{limits}"
    if free < need:
        advice = f"A run takes {_bytes(need)} and more: end other programs, or lower resources.workers."
        return Finding("memory", "warning", found, advice)
    return Finding("memory", "ok", found)


def _memory() -> tuple[int, int, str]:
    """Bytes in all, bytes that are free, and in words what limits them."""
    sizes = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    most = _control("memory.max") or _control("memory/memory.limit_in_bytes")
    if most.isdigit() and int(most) < total:
        used = _control("memory.current") or _control("memory/memory.usage_in_bytes") or "0"
        return int(most), min(free, max(0, int(most) - int(used))), " (limit of the container)"
    return total, free, ""


def gpus(job: Job | None, embedded: bool) -> Finding:
    """GPUs that torch sees on this machine, against what there is and what the job asks for."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    found = f"torch sees {count}: {', '.join(names)}" if count else "torch sees none"
    asked = job.resources.needed * job.resources.gpus_per_worker if job is not None and embedded else 0
    if asked > count:
        advice = "Lower resources.workers or resources.gpus_per_worker, or name a cluster with --address."
        return Finding("GPUs", "problem", f"{found}; the job's workers ask for {asked:g}", advice)
    if not count and Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        advice = "There is an NVIDIA device: install a torch with CUDA, for a version that its driver can run."
        return Finding("GPUs", "warning", f"{found} (torch {torch.__version__})", advice)
    return Finding("GPUs", "ok", found)


def mlflow(job: Job | None) -> Finding:
    """Whether the store that runs are tracked in answers; one that is made by the first run, can be made."""
    from metadist.tracking.run_index import RunIndex
    from metadist.tracking.sqlite_place import StoreUnusable, database_path

    uri = resolve_uri(job.tracking if job is not None else TrackingConfig())
    if uri is None:
        return Finding("MLflow", "ok", "switched off")
    index = RunIndex(uri, seconds=20.0)
    database = database_path(uri)
    if database is not None and not database.exists():
        check_writable(str(database.parent))
        return Finding("MLflow", "ok", f"{index.shown_uri}, made by the first run")
    try:
        experiments = index.check()
    except StoreUnusable as error:
        advice = (
            "Runs go on without it and keep their metrics in their folders. Start the server, mend tracking.uri "
            "or MLFLOW_TRACKING_URI, or switch tracking off (tracking.uri: none)."
        )
        return Finding("MLflow", "problem", str(error), advice)
    return Finding("MLflow", "ok", f"{index.shown_uri}, {experiments} experiments")


def data(job: Job | None) -> Finding:
    """The job's images: whether they are prepared, and whole."""
    if job is None or not job.tasks.needs_data:
        return Finding("data", "ok", "no job was named" if job is None else f"{job.tasks.kind} tasks need none")
    store = find_store(job.data)
    if store is None:
        return Finding("data", "ok", f"{job.data.source} is there to be prepared or fetched, by the first run")
    found = f"{store.path}: {len(store.classes)} classes, {len(store.pixels)} images"
    if store.pixels.nbytes > VERIFY_BYTES:
        return Finding("data", "ok", f"{found}; not read ({_bytes(store.pixels.nbytes)})")
    store.verify()
    return Finding("data", "ok", f"{found}, sha256 {store.sha256[:12]}… as it should be")


def places(job: Job | None) -> Iterator[Finding]:
    """The places that runs write to: whether they can be, and how much room they have."""
    storage = os.path.expanduser((job or Job()).storage)
    check_writable(storage)
    yield Finding("storage", "ok", storage) if "://" in storage else _room("storage", storage)
    cache = str(cache_folder((job.data if job is not None else DataConfig()).cache))
    check_writable(cache)
    yield _room("cache", cache)


def ray_folder() -> Finding:
    """Where an embedded Ray keeps its logs, its sockets and objects for which there is no memory."""
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    check_writable(place)
    room = _room("Ray's folder", place)
    usage = shutil.disk_usage(place)
    if room.state == "ok" and usage.used / usage.total > RAY_FULL:
        advice = f"Above {RAY_FULL:.0%} Ray no longer writes objects there: free some, or set RAY_TMPDIR."
        return Finding(room.name, "warning", f"{room.found}, {usage.used / usage.total:.0%} used", advice)
    return room


def shared_memory() -> Finding:
    """Room for the object store of an embedded Ray."""
    place = Path("/dev/shm")
    if not place.exists():
        return Finding("shared memory", "ok", "no /dev/shm on this system")
    usage = shutil.disk_usage(place)
    found = f"{_bytes(usage.free)} of {_bytes(usage.total)} free in {place}"
    if usage.free < OBJECT_STORE_BYTES:
        advice = (
            f"The object store takes {_bytes(OBJECT_STORE_BYTES)}, and would lie on disk, which is slow: start the "
            "container with --shm-size=1g, or remove what other programs left there."
        )
        return Finding("shared memory", "warning", found, advice)
    return Finding("shared memory", "ok", found)


def _room(name: str, place: str) -> Finding:
    there = next(path for path in (Path(place).absolute(), *Path(place).absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    state: State = "problem" if free < SCARCE else "warning" if free < LITTLE else "ok"
    advice = "" if state == "ok" else "Free some space, or name another place."
    return Finding(name, state, f"{place}, {_bytes(free)} free", advice)


def _bytes(count: float) -> str:
    return f"{count / GIB:.1f} GB" if count >= GIB else f"{count / 2**20:.0f} MB"
