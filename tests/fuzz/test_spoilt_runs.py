"""Run folders: one of their files spoilt, and everything that reads a run made to read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import strategies as st
from mutations import PLAIN_ONLY, cut_up, trees
from outcomes import begin, settles
from torch import Tensor

from metadist import config
from metadist.cli.compare import compare_command
from metadist.cli.runs import list_command, show_command
from metadist.distributed import evaluate, run
from metadist.outer import checkpoint
from metadist.training import run_list
from metadist.training.run_folder import RunFolder
from metadist.training.server import Server
from metadist.training.start_values import read_start


class Silent:
    """An observer of a run that never begins."""

    def say(self, text: str) -> None:
        pass


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs do not begin."""
    monkeypatch.setattr(run, "open_runtime", begin)
    monkeypatch.setattr(evaluate, "open_runtime", begin)


@st.composite
def signed(draw: st.DrawFn, data: bytes) -> bytes:
    """A checkpoint whose content is spoilt, and whose digest is right."""
    header, tensors = checkpoint._read(data)
    about = draw(trees(json.loads(header["about"])))
    if tensors and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(tensors)))
        value = tensors.pop(name)
        others = ["x", "parameters", "/", "optimizer/a", "parameters/", "bad/x", f"{name}/y", "\0"]
        kinds: list[Callable[[Tensor], Tensor]] = [
            lambda t: t.to(torch.bfloat16),
            lambda t: t.to(torch.bool),
            lambda t: t[None],
            lambda t: t.reshape(-1)[:0],
            lambda t: t * float("nan"),
        ]
        if draw(st.booleans()):
            tensors[draw(st.sampled_from(others))] = value
        elif draw(st.booleans()):
            tensors[name] = draw(st.sampled_from(kinds))(value).contiguous()
    header |= {"about": json.dumps(about)}
    header |= {"content_sha256": checkpoint._content_sha256(header["about"], tensors)}
    return bytes(safetensors.torch.save(tensors, header))


def lines(data: bytes) -> st.SearchStrategy[bytes]:
    """JSON lines of which one is spoilt."""
    first, *rest = data.splitlines(keepends=True)
    return trees(json.loads(first)).map(lambda line: b"".join([json.dumps(line).encode(), b"\n", *rest]))


def spoilt(name: str, data: bytes) -> st.SearchStrategy[tuple[str, bytes]]:
    """A file of a run as it is and as it may be found."""
    sensible: dict[str, Callable[[], st.SearchStrategy[bytes]]] = {
        ".json": lambda: trees(json.loads(data)).map(lambda content: json.dumps(content).encode()),
        ".yaml": lambda: trees(yaml.safe_load(data), PLAIN_ONLY).map(lambda c: yaml.safe_dump(c).encode()),
        ".jsonl": lambda: lines(data),
        ".safetensors": lambda: signed(data),
    }
    return st.tuples(st.just(name), sensible[Path(name).suffix]() | cut_up(data))


def readers(folder: Path, other: Path) -> Iterator[Callable[[], object]]:
    """All that reads a run."""
    place, beside, silent, held = str(folder), str(folder.parent), Silent(), RunFolder(str(folder))
    yield lambda: run_list.row_of(run_list.read_files(held))
    yield lambda: run_list.is_finished(held)
    yield lambda: list_command(beside, "none", False)
    yield lambda: list_command(beside, "none", True)
    yield lambda: show_command(place, beside, "none", False)
    yield lambda: show_command(place, beside, "none", True)
    yield lambda: compare_command([place, str(other)], None, beside, "none", True)
    yield lambda: evaluate.evaluate_run(place, evaluate.EvaluationRequest(), silent, run.RunOptions())  # type: ignore[arg-type]
    yield lambda: run.resume_run(place, lambda job: job, silent, run.RunOptions())  # type: ignore[arg-type]
    yield lambda: read_start(place)
    yield lambda: held.acquire().release()


@pytest.mark.usefixtures("never")
def test_readers(search: Callable[..., None], whole: Path, tmp_path: Path) -> None:
    files = [path for path in whole.rglob("*") if path.suffix in (".json", ".yaml", ".jsonl", ".safetensors")]
    assert len(files) == 8
    every = list(readers(tmp_path / "run", whole))
    one = st.one_of([spoilt(str(path.relative_to(whole)), path.read_bytes()) for path in sorted(files)])
    cases = st.tuples(one, st.sampled_from(range(len(every))))

    def holds(case: tuple[tuple[str, bytes], int]) -> None:
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        (name, content), reader = case
        (folder / name).write_bytes(content)
        before = {*folder.rglob("*")}
        settles(every[reader])
        assert {*folder.rglob("*")} == before

    search(cases, holds)


def test_checkpoints_of_a_server(search: Callable[..., None], small: dict[str, Any], whole: Path) -> None:
    job = config.parse_job(small)
    experiment = config.build_experiment(job, "run")
    name = "checkpoints/step-00000001.safetensors"
    data = (whole / name).read_bytes()
    folder = whole.parent / "taken"

    def take() -> None:
        server = Server(experiment)
        server.start(RunFolder(str(folder)), name)

    def holds(content: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        settles(take)

    search(signed(data), holds)
