"""Checks of Ray's token and of the nodes."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from metadist.config import parse_job
from metadist.distributed import cluster_checks
from metadist.distributed.cluster_checks import ray_and_nodes, token
from metadist.distributed.diagnosis import examine


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home without a token. The whole environment is put back afterwards: the local cluster's check changes it."""
    with mock.patch.dict(os.environ, {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}):
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "METADIST_CLUSTER"):
            os.environ.pop(name, None)
        yield tmp_path


def write(path: Path, content: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


def test_no_token(home: Path) -> None:
    assert token(None).state == "ok"
    found = token("10.0.0.1:6379")
    assert (found.state, found.found) == ("problem", f"no file {home}/.ray/auth_token")
    assert "ray get-auth-token" in found.advice


@pytest.mark.parametrize(
    ("content", "mode", "state"),
    [("of the head", 0o600, "ok"), ("of the head", 0o640, "warning"), (" \n", 0o600, "problem")],
)
def test_token_files(home: Path, monkeypatch: pytest.MonkeyPatch, content: str, mode: int, state: str) -> None:
    write(home / ".ray" / "auth_token", content, mode)
    assert token("10.0.0.1:6379").state == state
    other = write(home / "other" / "token", content, mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    found = token(None)
    assert found.state == state
    assert str(other) in found.found
    assert "of the head" not in found.found + found.advice


def test_token_file_that_cannot_be_read(home: Path) -> None:
    (home / ".ray" / "auth_token").mkdir(parents=True)
    found = token(None)
    assert found.state == "problem"
    assert "Is a directory" in found.found


def test_token_in_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    found = token("10.0.0.1:6379")
    assert found.state == "ok"
    assert "secret" not in found.found
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token(None).state == "warning"


def test_token_of_the_local_cluster(home: Path) -> None:
    file = write(home / "cluster" / "token", "of the head")
    with socket.create_server(("127.0.0.1", 0)) as head:
        state = {"address": f"127.0.0.1:{head.getsockname()[1]}", "dashboard": "http://127.0.0.1:1", "token": str(file)}
        (home / "cluster" / "cluster.json").write_text(json.dumps(state))
        os.environ["METADIST_CLUSTER"] = str(home / "cluster")
        assert token("local").found == f"in {file}"
    os.environ["METADIST_CLUSTER"] = str(home)
    del os.environ["RAY_AUTH_TOKEN_PATH"]
    assert token("local").state == "problem"


def test_an_elastic_job_needs_its_fewest_workers(ray: Any) -> None:
    for least, state in ((4, "ok"), (5, "problem")):
        job = parse_job({"resources": {"workers": {"min": least, "max": 9}}})
        assert next(iter(ray_and_nodes("this session", job))).state == state


def test_nodes_of_one_kind(ray: Any) -> None:
    found = list(ray_and_nodes("this session", None))
    assert [(one.name, one.state) for one in found] == [
        ("Ray", "ok"),
        ("nodes' versions", "ok"),
        ("nodes' hardware", "ok"),
    ]
    assert "4 CPUs, 2 GPUs" in found[0].found


def test_more_than_the_cluster_has(ray: Any) -> None:
    found = next(iter(ray_and_nodes("this session", parse_job({"resources": {"workers": 5}}))))
    assert found.state == "problem"
    assert "ask for 5 CPUs" in found.advice


def test_a_node_without_metadist(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def node_facts() -> dict[str, str]:
        import metadist_of_another_world

        return dict(metadist_of_another_world.facts)

    monkeypatch.setattr(cluster_checks, "node_facts", node_facts)
    found = list(ray_and_nodes(None, None))
    assert [one.state for one in found] == ["ok", "problem"]
    assert "is missing" in found[1].found


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    (found,) = examine([("Ray", lambda: ray_and_nodes("127.0.0.1:1", None))])
    assert (found.name, found.state, found.found) == ("Ray", "problem", "no cluster at 127.0.0.1:1")
    assert "token must be here too" in found.advice


FACTS = {"device": "A", "capability": "AVX2", "metadist": "1", "ray": "2"}


def test_nodes_that_differ() -> None:
    facts = {"one": FACTS, "two": FACTS | {"device": "B", "metadist": "0"}, "three": FACTS}
    hardware = cluster_checks._same("hardware", facts, ("device", "capability"))
    assert (hardware.state, hardware.found) == ("warning", "one, three: device A; two: device B")
    versions = cluster_checks._same("versions", facts, ("metadist", "ray"))
    assert (versions.state, versions.found) == ("problem", "one, three: metadist 1; two: metadist 0")
    assert cluster_checks._same("versions", facts, ("ray",)).state == "ok"


def test_only_nodes_for_workers_must_be_alike() -> None:
    head = {"Resources": {"CPU": 0.0}}
    node = {"Resources": {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H200": 1.0}}
    gpus = parse_job({"resources": {"gpus_per_worker": 1}})
    assert [cluster_checks._takes_workers(one, gpus) for one in (head, node)] == [False, True]
    assert [cluster_checks._takes_workers(one, None) for one in (head, node)] == [False, True]
    assert cluster_checks._accelerators(node) == {"accelerators": "H200"}
