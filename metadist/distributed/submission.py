"""What is sent to a cluster: the job file, the user's own modules, metadist itself, and the command to run."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import metadist
from metadist.config import Job
from metadist.distributed.places import local_path, local_store
from metadist.errors import UserError
from metadist.tracking import TrackingConfig, resolve_uri

#: how a cluster keeps what metadist knows of a submission
NAME_KEY, NUMBER_KEY, RUN_KEY = "metadist.name", "metadist.attempt", "metadist.run"
#: Ray's name for the seconds that a stopped job has to end in; it heeds a job's own environment
GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
#: what they are for a job of metadist: a step is to end and a checkpoint to be written
GRACE_SECONDS = 120
#: never part of a working folder; Ray itself leaves out .git, .venv, venv and __pycache__
EXCLUDED = ["__pycache__", "/runs/", "/mlruns/", "/mlartifacts/", "/mlflow.db", "*.egg-info", ".*_cache"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Request:
    """What a user asks to be run on a cluster.

    Attributes:
        file: the job file.
        job: what it says, every change of the command line applied; it has been checked.
        arguments: those changes, and whatever else `metadist train` is to be given.
        name: the job's on the cluster, and of its run's folder.
        environment: variables of its driver and its workers.
        working_folder: the user's own modules; `None` sends the job file alone.
        package: whether this metadist is sent too, and goes before one that the cluster has.
    """

    file: Path
    job: Job
    arguments: Sequence[str]
    name: str
    environment: Mapping[str, str]
    working_folder: Path | None = None
    package: bool = True


@dataclass(frozen=True)
class Submission:
    """What a cluster is given."""

    name: str
    entrypoint: str
    runtime_env: dict[str, Any]
    metadata: dict[str, str]


def check_request(request: Request) -> Request:
    """The request as it can be sent, with the tracking address of this environment in the job's own.

    Raises:
        UserError: something that the job names is on this machine only, or would vanish with the job.
    """
    if not _NAME.fullmatch(request.name):
        hint = "" if request.name != request.job.name else "It is the job's own name; give another one with --name."
        raise UserError("--name", request.name, "at most 100 letters, digits, dots, hyphens and underscores", hint)
    if request.job.runtime != "ray":
        hint = "Add --set runtime=ray: the bits are the same."
        raise UserError("runtime", request.job.runtime, "ray, for a job that runs on a cluster", hint)
    _check_working_folder(request)
    advice = "Name a URI (s3://bucket/runs), or a folder that all nodes share with --shared-storage."
    _check_place(
        "storage", request.job.storage, local_path(request.job.storage), request.job.resources.shared_storage, advice
    )
    _check_data(request)
    return replace(request, environment=_tracked(request))


@contextlib.contextmanager
def packed(request: Request, mode: str) -> Iterator[Submission]:
    """A checked request as a cluster takes it; the folders that it names are there within the block.

    Args:
        mode: the cluster's authentication mode.
    """
    with tempfile.TemporaryDirectory(prefix="metadist-") as scratch:
        if request.working_folder is None:
            folder = Path(scratch)
            file = shutil.copy(request.file, folder / "job.yaml")
        else:
            folder, file = request.working_folder, request.file
        # Ray would install a wheel with all its dependencies, on each node anew, by a pip that may not be there, and
        # know it by its name alone: a changed checkout of the same version would run as it was. A package's folder
        # is known by its content, and put before whatever is installed, in the driver and in every worker.
        modules = {"py_modules": [str(Path(metadist.__file__).parent)]} if request.package else {}
        variables = {GRACE_VARIABLE: str(GRACE_SECONDS), **request.environment}
        if mode == "disabled":
            variables.setdefault("RAY_AUTH_MODE", mode)  # metadist would ask for a token, and the nodes have none
        yield Submission(
            name=request.name,
            entrypoint=command(Path(file).resolve().relative_to(folder.resolve()).as_posix(), request),
            runtime_env={
                "working_dir": str(folder),
                "excludes": EXCLUDED,
                "env_vars": variables,
                **modules,
            },
            metadata={NAME_KEY: request.name, RUN_KEY: f"{request.job.storage.rstrip('/')}/{request.name}"},
        )


def command(file: str, request: Request) -> str:
    """What a shell on the cluster runs, as one process: signals and the exit code are the driver's own."""
    words = ["train", file, "--address", "auto", "--run", request.name, "--json", *request.arguments]
    return f"exec python -m metadist {shlex.join(words)}"


def _check_working_folder(request: Request) -> None:
    folder = request.working_folder
    if folder is None:
        return
    if not folder.is_dir():
        raise UserError("--working-dir", str(folder), "a folder")
    if not request.file.resolve().is_relative_to(folder.resolve()):
        hint = "The folder is all that is sent: copy the job file into it."
        raise UserError("JOB", str(request.file), f"a file in --working-dir {folder}", hint)


def _check_place(field: str, place: str, path: str | None, shared: bool, advice: str) -> None:
    if path is None:
        return
    if not os.path.isabs(os.path.expanduser(path)):
        expected = "a place that outlives the job, whose working folder on the cluster is temporary"
        raise UserError(field, place, expected, advice)
    if not shared:
        hint = f"{advice} If the nodes share this one, or there is but one node, add --shared-storage."
        raise UserError(field, place, "a place that every node of the cluster sees", hint)


def _check_data(request: Request) -> None:
    data, folder = request.job.data, request.working_folder
    if not request.job.tasks.needs_data or data.source.startswith(("torchvision:", "sklearn:")):
        return
    path = local_path(data.source)
    if path is not None and folder is not None and not os.path.isabs(path) and (folder / path).exists():
        return
    advice = "Name a URI (s3://bucket/store), a path within --working-dir, or torchvision:NAME."
    _check_place("data.source", data.source, path, request.job.resources.shared_storage, advice)


def _tracked(request: Request) -> dict[str, str]:
    """The job's environment, with the address to track at where it stands in this process's."""
    environment, variable = dict(request.environment), "MLFLOW_TRACKING_URI"
    given = request.job.tracking.uri
    field, uri = ("tracking.uri", given) if given else (variable, environment.get(variable) or os.environ.get(variable))
    advice = (
        "Give the address of a server that the cluster reaches (--set tracking.uri=http://HOST:5000, or "
        f"--env {variable}=…), or --set tracking.uri=none."
    )
    if not uri:
        raise UserError("tracking.uri", None, "an address: mlflow.db in the job's folder would vanish with it", advice)
    if resolve_uri(TrackingConfig(uri=uri)) is None:
        return environment
    _check_place(field, uri, local_store(uri), request.job.resources.shared_storage, advice)
    if field == variable:
        environment[variable] = uri
    return environment
