"""Checks of Ray: its token, whether it can be had, and whether the nodes of a cluster are of one kind."""

from __future__ import annotations

import contextlib
import os
import platform
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import metadist
from metadist.config import Job
from metadist.distributed.diagnosis import Finding
from metadist.distributed.local_cluster import use_local_cluster
from metadist.distributed.session import ray_session
from metadist.errors import UserError
from metadist.training.machine import fingerprint

#: seconds within which every node must answer
NODES_SECONDS = 45.0
_COPY = (
    "Copy the token of the cluster's head to ~/.ray/auth_token (there: `ray get-auth-token`), readable by you alone."
)


def token(address: str | None) -> Finding:
    """The token that Ray's ports ask for."""
    if address is not None:
        with contextlib.suppress(UserError):  # that there is none is told when it is connected to
            use_local_cluster(address)
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        advice = "Ray's ports are open to everybody who can reach this machine: unset RAY_AUTH_MODE."
        return Finding("Ray's token", "warning", f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}", advice)
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("Ray's token", "ok", "in RAY_AUTH_TOKEN, which is used before any file")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    if not file.exists():
        if named is None and address is None:
            return Finding("Ray's token", "ok", "none; every embedded Ray gets one of its own")
        return Finding("Ray's token", "problem", f"no file {file}", _COPY)
    try:
        content = file.read_text().strip()
    except OSError as error:
        return Finding("Ray's token", "problem", f"{file}: {error.strerror}", f"Make it readable: chmod 600 {file}")
    if not content:
        return Finding("Ray's token", "problem", f"{file} is empty", _COPY)
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        return Finding("Ray's token", "warning", f"{file} can be read by others (mode {mode:o})", f"chmod 600 {file}")
    return Finding("Ray's token", "ok", f"in {file}")


def ray_and_nodes(address: str | None, job: Job | None) -> Iterator[Finding]:
    """Whether Ray starts, or a cluster is reached, and what its nodes are."""
    try:
        with ray_session(address, cpus=1):
            import ray

            have = ray.cluster_resources()
            size = f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
            if address is None:
                yield Finding("Ray", "ok", f"{ray.__version__}, embedded: starts")
            else:
                yield _room_for(job, f"{ray.__version__} at {address}: {size}", have)
            yield from _nodes(job, embedded=address is None)
    except UserError as error:
        advice = (
            f"{error.hint} If the address is right: the cluster's token must be here too, and its versions of Ray and "
            "Python must be these."
        )
        yield Finding("Ray", "problem", f"no cluster at {address}", advice)


def _room_for(job: Job | None, found: str, have: Mapping[str, float]) -> Finding:
    if job is not None:
        cpus = job.resources.needed * job.resources.cpus_per_worker
        gpus = job.resources.needed * job.resources.gpus_per_worker
        if cpus > have.get("CPU", 0) or gpus > have.get("GPU", 0):
            advice = f"The job's workers ask for {cpus:g} CPUs and {gpus:g} GPUs: add nodes or lower resources.workers."
            return Finding("Ray", "problem", found, advice)
    return Finding("Ray", "ok", found)


def _nodes(job: Job | None, embedded: bool) -> Iterator[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    ask = ray.remote(node_facts)
    asked = {}
    for node in alive:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[ask.options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote()] = node
    ray.wait(list(asked), num_returns=len(asked), timeout=NODES_SECONDS)
    facts: dict[str, dict[str, str]] = {}
    for ref, node in asked.items():
        name = _name(node)
        try:
            facts[name] = ray.get(ref, timeout=1) | _accelerators(node)
        except Exception as error:  # of whatever kind the node's own is
            yield _silent(name, error)
    if not facts:
        return
    places = [_name(node) for node in alive if _name(node) in facts and _takes_workers(node, job)]
    yield _same("versions", facts, ("metadist", "ray", "python", "torch", "numpy"))
    if not embedded or len(facts) > 1:
        yield _same(
            "hardware", {name: facts[name] for name in places}, ("device", "capability", "mkl_cbwr", "accelerators")
        )


def node_facts() -> dict[str, str]:
    """What a node is, as far as it can change bits; run on it."""
    import ray

    about = fingerprint(torch.device("cpu")) | {"metadist": metadist.__version__, "ray": ray.__version__}
    about.pop("threads")  # every run sets its own
    return about | {"python": platform.python_version()}


def _silent(name: str, error: Exception) -> Finding:
    text = str(error)
    if "ModuleNotFoundError" in text or "No module named" in text:
        advice = "Install metadist there, the same version as here."
        return Finding("nodes", "problem", f"{name}: metadist or a library of it is missing", advice)
    kind = type(error).__name__
    advice = "See to that node: `ray status`, and the logs in its temporary folder."
    return Finding("nodes", "problem", f"{name} did not answer within {NODES_SECONDS:g} s ({kind})", advice)


def _same(what: str, facts: Mapping[str, Mapping[str, str]], keys: tuple[str, ...]) -> Finding:
    """Whether the nodes agree in `keys`; which do not, and in what."""
    name = f"nodes' {what}"
    kinds: dict[tuple[str, ...], list[str]] = {}
    for node, about in facts.items():
        kinds.setdefault(tuple(about.get(key, "") for key in keys), []).append(node)
    if len(kinds) <= 1:
        return Finding(name, "ok", f"the same on {len(facts)} node" + ("s" if len(facts) != 1 else ""))
    differing = [index for index in range(len(keys)) if len({kind[index] for kind in kinds}) > 1]
    sides = []
    for kind, nodes in kinds.items():
        values = (f"{keys[index]} {kind[index] or 'none'}" for index in differing)
        sides.append(f"{', '.join(nodes)}: {', '.join(values)}")
    found = "; ".join(sides)
    if what == "versions":
        return Finding(name, "problem", found, "Install the same versions everywhere (constraints.txt).")
    advice = "Workers of one run must be of one kind, or its bits depend on who did what: use nodes of one kind."
    return Finding(name, "warning", found, advice)


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeID'][:6]})"


def _accelerators(node: Mapping[str, Any]) -> dict[str, str]:
    names = sorted(key.partition(":")[2] for key in node["Resources"] if key.startswith("accelerator_type:"))
    return {"accelerators": ", ".join(names)}


def _takes_workers(node: Mapping[str, Any], job: Job | None) -> bool:
    resources: Mapping[str, float] = node["Resources"]
    if job is None:
        return resources.get("CPU", 0) > 0
    enough = resources.get("CPU", 0) >= job.resources.cpus_per_worker
    return enough and resources.get("GPU", 0) >= job.resources.gpus_per_worker
