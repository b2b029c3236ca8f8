"""Places that only one node of a cluster sees."""

from __future__ import annotations

import ray

from metadist.config import Job
from metadist.errors import UserError
from metadist.tracking import resolve_uri, uri_scheme


def check_places(job: Job) -> None:
    """Raise `UserError` for a run folder or MLflow store on a node's own disk, where there are several nodes.

    The driver's node may be gone when the results are wanted, or the run is to go on from another one.
    """
    nodes = sum(node["Alive"] for node in ray.nodes())
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
    places = [("storage", job.storage)] if "://" not in job.storage or job.storage.startswith("file://") else []
    uri = resolve_uri(job.tracking)
    if uri is not None and uri_scheme(uri) in ("sqlite", "file"):
        places.append(("tracking.uri", uri))
    return places
