"""What differs once there are several nodes: places that only one of them sees, and nodes that are lost."""

from __future__ import annotations

import contextlib

from metadist.config import Job
from metadist.errors import UserError
from metadist.tracking import resolve_uri, uri_scheme

#: Ray's own settings, where a cluster's head was given none
HEALTH_CHECK = {"health_check_period_ms": 3000, "health_check_failure_threshold": 5}


def alive_nodes() -> int:
    """Nodes of this session's cluster."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def loss_notice() -> str:
    """How soon this session's cluster notices that a node has died, in a sentence."""
    settings = HEALTH_CHECK
    with contextlib.suppress(Exception):  # only Ray's private parts know what the head was given
        from ray._private.state import state

        settings = HEALTH_CHECK | state.get_system_config()
    seconds = settings["health_check_period_ms"] * settings["health_check_failure_threshold"] / 1000
    return (
        f"{alive_nodes()} nodes; one that dies is missed after about {seconds:g} s "
        "(health_check_period_ms × health_check_failure_threshold, settings of the cluster's head)"
    )


def check_places(job: Job) -> None:
    """Raise `UserError` for a run folder or MLflow store on a node's own disk, where there are several nodes.

    The driver's node may be gone when the results are wanted, or the run is to go on from another one.
    """
    nodes = alive_nodes()
    if nodes > 1 and not job.resources.shared_storage:
        for field, value in local_places(job):
            raise UserError(
                field,
                value,
                f"a place that all {nodes} nodes of the cluster see, for example s3://… or http://…",
                "If they see this one, or it is meant to be the driver's own, say so: --shared-storage.",
            )


def local_places(job: Job) -> list[tuple[str, str]]:
    """The job's places on a node's own disk, as (field, value)."""
    places = [("storage", job.storage)] if local_path(job.storage) is not None else []
    uri = resolve_uri(job.tracking)
    if uri is not None and local_store(uri) is not None:
        places.append(("tracking.uri", uri))
    return places


def local_path(place: str) -> str | None:
    """The path of a place that a node has on a disk of its own; `None` for any other."""
    if place.startswith("file:"):
        return place.removeprefix("file:").removeprefix("//")
    return None if "://" in place else place


def local_store(uri: str) -> str | None:
    """The path of an MLflow store that is a file or a folder; `None` for any other."""
    scheme = uri_scheme(uri)
    if scheme == "sqlite":
        return uri.partition(":///")[2].partition("?")[0]
    return local_path(uri) if scheme in ("file", "") else None
