"""What the guides tell to type: the commands, options and files in them exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperGroup

from metadist.cli.main import _app
from metadist.config import load_job

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("cluster/README.md", "cluster/SCALING.md", "jobs/README.md")
ENTRY_POINTS = ("cluster/kuberay/base/ray-job.yaml", "cluster/kuberay/overlays/gpu/ray-job.yaml")


def typed(guide: str) -> list[list[str]]:
    """The words of each line to type, without comments and a shell's redirections."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / guide).read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [[word for word in shlex.split(line, comments=True) if word != "&"] for line in lines]


def calls(guide: str) -> list[list[str]]:
    """The arguments of each call of metadist."""
    return [words[1:] for words in typed(guide) if words[:1] == ["metadist"]]


def parse(arguments: list[str]) -> dict[str, object]:
    """The parameters of the command that is called; one that does not exist, or has no such option, is an error."""
    command = typer.main.get_command(_app())
    context = command.make_context("metadist", list(arguments))
    while isinstance(command, TyperGroup):
        _, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found
        context = command.make_context(command.name, rest, parent=context)
    return context.params


@pytest.mark.parametrize("guide", GUIDES)
def test_its_calls_of_metadist_are_understood(guide: str) -> None:
    assert len(calls(guide)) >= 2
    for arguments in calls(guide):
        given = parse(arguments)
        job = given.get("job")
        if job is not None and str(job).endswith(".yaml"):
            load_job(str(ROOT / str(job)), list(given["overrides"]))  # type: ignore[call-overload]


@pytest.mark.parametrize("call", ["train jobs/quickstart.yaml --adress local", "jobs lst", "submitt JOB.yaml"])
def test_a_call_that_is_wrong_is_noticed(call: str) -> None:
    with pytest.raises(Exception, match="No such"):
        parse(call.split())


@pytest.mark.parametrize("guide", [*GUIDES, "README.md"])
def test_the_files_that_it_names_are_there(guide: str) -> None:
    text = (ROOT / guide).read_text()
    linked = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")}
    assert not [link for link in linked if not ((ROOT / guide).parent / link).exists()]
    named = set(re.findall(r"(?<![\w/.~-])(?:cluster|jobs|tests)/[\w./-]*\w", text))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_each_job_file_is_in_the_guide() -> None:
    guide = (ROOT / "jobs/README.md").read_text()
    assert not [file.name for file in (ROOT / "jobs").glob("*.yaml") if f"| `{file.name}` |" not in guide]


@pytest.mark.parametrize("file", ENTRY_POINTS)
def test_the_command_of_a_cluster_job_is_understood(file: str) -> None:
    words = shlex.split(yaml.safe_load((ROOT / file).read_text())["spec"]["entrypoint"])
    assert words[:2] == ["exec", "metadist"], "signals and the exit code are the driver's own"
    given = parse(words[2:])
    assert given["run"]
    load_job(str(ROOT / "cluster/kuberay/base/job.yaml"), list(given["overrides"]))  # type: ignore[call-overload]
