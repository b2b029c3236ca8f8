"""The `ray up` files against Ray's own schema and preparation, which ray-up itself starts with."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import metadist.distributed  # noqa: F401  sets Ray's environment before it is imported

ROOT = Path(__file__).resolve().parents[2]
FILES = ("aws", "on-premises")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "ray-up" / f"{name}.yaml").read_text())
    return found


def check(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray makes of a file, as far as that needs no cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_it(name: str) -> None:
    prepared = check(read(name))
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert prepared["max_workers"] == {"aws": 4, "on-premises": 2}[name]


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "an unknown key": ("aws", lambda c: c.update(max_worker=3), "max_worker"),
    "text for a number": ("aws", lambda c: c.update(max_workers="four"), "four"),
    "no provider": ("on-premises", lambda c: c["provider"].pop("type"), "type"),
    "a head that is no node type": ("aws", lambda c: c.update(head_node_type="heads"), "head_node_type"),
    "an unknown key of a node type": (
        "aws",
        lambda c: c["available_node_types"]["gpu-worker"].update(spot=True),
        "spot",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused(case: str) -> None:
    name, spoil, said = BROKEN[case]
    config = read(name)
    spoil(config)
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError), match=said):
        check(config)


@pytest.mark.parametrize("name", FILES)
def test_what_is_sent_is_there_and_is_enough(name: str) -> None:
    mounts = read(name)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert set(mounts) == {f"~/metadist/{local}" for local in mounts.values()}
    needed = {"Makefile", "pyproject.toml", "constraints.txt", "README.md", "metadist"}
    assert set(mounts.values()) == needed
    assert all((ROOT / local).exists() for local in needed)


@pytest.mark.parametrize("name", FILES)
def test_the_commands_are_shell_and_their_settings_json(name: str) -> None:
    config = read(name)
    commands = [command for key, part in config.items() if key.endswith("_commands") for command in part]
    assert len(commands) > 5
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True, timeout=10)
    (settings,) = re.findall(r"--system-config='(.*?)'", " ".join(config["head_start_ray_commands"]))
    assert set(json.loads(settings)) == {
        f"health_check_{key}" for key in ("period_ms", "timeout_ms", "failure_threshold")
    }


@pytest.mark.parametrize("name", FILES)
def test_the_shell_start_file_is_changed_once(name: str, tmp_path: Path) -> None:
    (change,) = (command for command in read(name)["setup_commands"] if "bashrc" in command)
    rc = tmp_path / ".bashrc"
    rc.write_text("case $- in *i*) ;; *) return;; esac\n")
    for _ in range(2):
        subprocess.run(
            ["bash", "-c", change], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True, timeout=10
        )
    asked = subprocess.run(
        ["bash", "-c", "source ~/.bashrc; echo $PATH $RAY_AUTH_MODE"],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert asked.stdout.split() == [f"{tmp_path}/metadist/.venv/bin:/usr/bin:/bin", "token"]
    assert rc.read_text().count("metadist") == 1
