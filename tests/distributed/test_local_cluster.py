"""Which addresses mean the local cluster, and what using it does to the environment. A socket stands for its head."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from metadist.distributed.local_cluster import find_local_cluster, use_local_cluster
from metadist.errors import UserError


@pytest.fixture
def up(tmp_path: Path) -> Iterator[str]:
    """A state folder whose head accepts connections; its address. The environment is put back afterwards."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = outside | {"RAY_AUTH_TOKEN": "another", "METADIST_CLUSTER": str(tmp_path)}
    with mock.patch.dict(os.environ, environment, clear=True), socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        state = {"address": address, "dashboard": "http://127.0.0.1:8270", "token": str(tmp_path / "token")}
        (tmp_path / "cluster.json").write_text(json.dumps(state))
        yield address


@pytest.mark.parametrize("address", ["local", "auto", "http://127.0.0.1:8270", "http://localhost:8270/", "HEAD"])
def test_its_addresses_bring_the_token(up: str, tmp_path: Path, address: str) -> None:
    cluster = use_local_cluster(up if address == "HEAD" else address)
    assert cluster is not None
    assert cluster.address == up
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_another_cluster_keeps_its_own_token(up: str, address: str) -> None:
    assert use_local_cluster(address) is None
    assert os.environ["RAY_AUTH_TOKEN"] == "another"
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_auto_is_the_cluster_that_ray_was_told_of(up: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert use_local_cluster("auto") is None
    assert use_local_cluster("local") is not None


@pytest.mark.parametrize("state", [None, "{", "[]", '{"address": "127.0.0.1:1"}', "closed"])
def test_one_that_is_not_up_is_none(up: str, tmp_path: Path, state: str | None) -> None:
    file = tmp_path / "cluster.json"
    if state == "closed":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        file.write_text(json.dumps(json.loads(file.read_text()) | {"address": f"127.0.0.1:{port}"}))
    elif state is None:
        file.unlink()
    else:
        file.write_text(state)
    assert find_local_cluster() is None
    assert use_local_cluster("auto") is None
    with pytest.raises(UserError, match=r"cluster/local\.sh up"):
        use_local_cluster("local")
