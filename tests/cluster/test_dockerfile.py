"""The Dockerfile without a container engine: its steps are read from it and run in a new virtual environment.

The step that installs torch and Ray takes minutes and gigabytes. So the environment sees the packages of the one that
runs the tests, and that step finds everything there; with METADIST_TEST_IMAGE=whole it sees nothing and installs all.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import metadist

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
WHOLE = os.environ.get("METADIST_TEST_IMAGE") == "whole"


@dataclass(frozen=True)
class Step:
    """One instruction: its stage's number, its name, and the rest of the line."""

    stage: int
    name: str
    text: str


def steps() -> list[Step]:
    found: list[Step] = []
    stage = -1
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, text = line.partition(" ")
            stage += name == "FROM"
            found.append(Step(stage, name, text))
    return found


def sources() -> list[str]:
    """What is copied from the working copy, from every stage."""
    copies = [step.text.split() for step in steps() if step.name == "COPY"]
    return [word for words in copies if not words[0].startswith("--from=") for word in words[:-1]]


def test_what_is_copied_is_there_and_is_sent() -> None:
    ignore = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert "*" in ignore
    assert set(sources()) == sent
    assert all((ROOT / source).exists() for source in sent)


def test_versions_are_pinned() -> None:
    bases = [step.text.split()[0] for step in steps() if step.name == "FROM"]
    assert len(bases) == 2
    assert all(base.startswith("python:3.11-") for base in bases), "the Python that constraints.txt is made for"
    installs = [step.text for step in steps() if step.name == "RUN" and "pip install" in step.text]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in text or "--no-deps" in text for text in installs)
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert all("==" in line for line in constraints if not line.startswith("#"))


def test_nothing_runs_as_root() -> None:
    last = [step for step in steps() if step.stage == 1]
    users = [number for number, step in enumerate(last) if step.name == "USER"]
    assert len(users) == 1
    uid = last[users[0]].text
    assert uid.isdecimal(), "Kubernetes' runAsNonRoot wants a number"
    assert int(uid) > 0
    assert f"useradd --uid {uid}" in last[users[0] - 1].text
    assert not [step for step in last[users[0] :] if step.name in ("RUN", "COPY")]


@pytest.mark.slow
def test_its_commands_install_a_working_metadist(tmp_path: Path) -> None:
    python = _environment(tmp_path / "venv")
    folders = [tmp_path / "build", tmp_path / "install"]
    for step in steps():
        folder = folders[step.stage] if step.stage >= 0 else tmp_path
        folder.mkdir(exist_ok=True)
        if step.name == "COPY":
            _copy(step.text, folder, folders[0])
        elif step.name == "RUN" and not step.text.startswith(("apt-get", "useradd")):
            _run(step.text, folder, python)
    (wheel,) = (folders[1] / "wheels").glob("*.whl")
    assert wheel.name == f"metadist-{metadist.__version__}-py3-none-any.whl"
    (entry,) = (step.text for step in steps() if step.name == "ENTRYPOINT")
    assert entry == '["metadist"]'
    where = _run('python -c "import metadist; print(metadist.__file__)"', tmp_path, python)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv"), "not the working copy's"
    assert "resources.workers" in _run("metadist keys resources", tmp_path, python)


def _environment(folder: Path) -> Path:
    """A new virtual environment; its folder of programs."""
    pip = [] if WHOLE else ["--without-pip"]  # it comes with the shared packages
    subprocess.run([sys.executable, "-m", "venv", *pip, folder], check=True, timeout=120)
    if not WHOLE:
        (packages,) = folder.glob("lib/python*/site-packages")
        # Paths in such a file are not looked through for others, so an editable install is not seen.
        (packages / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin"


def _copy(text: str, folder: Path, build: Path) -> None:
    words = text.split()
    origin = build if words[0].startswith("--from=") else ROOT
    names = [word.removeprefix("/build/") for word in words if not word.startswith("--")]
    target = folder / names.pop()
    for name in names:
        if (origin / name).is_dir():
            shutil.copytree(origin / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin / name, target / name if target.is_dir() else target)


def _run(command: str, folder: Path, programs: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    if not WHOLE:
        environment["PIP_NO_BUILD_ISOLATION"] = "false"  # means yes: the shared setuptools builds the wheel
    limit = 3600 if WHOLE else 120
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=limit
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
