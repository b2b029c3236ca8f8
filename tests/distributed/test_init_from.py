"""Jobs that start from another run, with and without a part that never changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from metadist.config import Job, identity, parse_job
from metadist.distributed.evaluate import EvaluationRequest, evaluate_run
from metadist.distributed.run import RunOptions, resume_run, train_job
from metadist.outer import decode_checkpoint
from metadist.testing.observers import Notes
from metadist.training.start_values import read_start

FREEZE = ["layers.*"]


def job(tmp_path: Path, **changes: Any) -> Job:
    content: dict[str, Any] = {
        "steps": 4,
        "runtime": "inprocess",
        "storage": str(tmp_path),
        "tasks": {"kind": "linear", "shots": 2, "query": 3, "batch": 4, "chunk": 2},
        "model": {"kind": "mlp", "hidden": [6]},
        "evaluation": {"every": 2, "tasks": 4, "test_tasks": 4},
        "checkpoint": {"every": 2},
        "tracking": {"uri": "none"},
    }
    return parse_job(content | changes)


def run(tmp_path: Path, name: str, stop_after: int | None = None, test: bool = False, **changes: Any) -> dict[str, Any]:
    return train_job(job(tmp_path, **changes), Notes(), RunOptions(run=name, stop_after=stop_after, test=test))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(folder, "first")
    return folder / "first"


def newest(location: Path) -> dict[str, torch.Tensor]:
    path = max((location / "checkpoints").iterdir())
    return decode_checkpoint(path.read_bytes(), str(path)).state.meta.parameters


def test_the_run_begins_where_the_other_was_judged(tmp_path: Path, trained: Path) -> None:
    values = read_start(str(trained))
    last = max((trained / "checkpoints").iterdir())
    best = decode_checkpoint(last.read_bytes(), str(last)).progress["best_version"]
    assert values.path == f"{trained}/checkpoints/step-{best:08d}.safetensors"
    run(tmp_path, "second", init_from=str(trained), optimizer={"lr": 0.0}, steps=1)
    after = newest(tmp_path / "second")
    assert after.keys() == values.tensors.keys()
    assert all(torch.equal(after[name], value) for name, value in values.tensors.items())


def test_path_is_placement_and_content_is_identity(tmp_path: Path, trained: Path) -> None:
    moved = shutil.copytree(trained, tmp_path / "moved")
    jobs = [job(tmp_path, init_from=str(place)) for place in (trained, moved)]
    stopped = run(tmp_path, "one", stop_after=2, init_from=str(trained))
    written = parse_written(tmp_path / "one")
    assert written.start is not None
    assert written.start.sha256 == read_start(str(moved)).sha256
    there = {"path": str(moved), "sha256": written.start.sha256}
    assert identity(job(tmp_path, init_from=there), None) == identity(written, None)
    assert identity(jobs[0], None) == identity(jobs[1], None) != identity(job(tmp_path), None)
    assert "init_from" not in identity(job(tmp_path), None)
    # The same name again goes on, although the other run is elsewhere now.
    ended = train_job(jobs[1], Notes(), RunOptions(run="one", test=False))
    assert (stopped["step"], ended["step"]) == (2, 4)
    assert ended["params_sha256"] == run(tmp_path, "whole", init_from=str(trained))["params_sha256"]


def parse_written(location: Path) -> Job:
    from metadist.distributed.run import open_run

    return open_run(str(location))[1]


@pytest.mark.parametrize(
    "part", [{"freeze": FREEZE}, {"server": {"share": ["*", "!layers.*"]}}], ids=["frozen", "local"]
)
def test_what_no_step_changes_stays_and_is_kept_once(tmp_path: Path, trained: Path, part: dict[str, Any]) -> None:
    source = Path(shutil.copytree(trained, tmp_path / "source"))
    before = read_start(str(source)).tensors
    settings: dict[str, Any] = {"init_from": str(source)} | part
    whole = run(tmp_path, "whole", test=True, **settings)
    run(tmp_path, "half", stop_after=2, **settings)
    shutil.rmtree(source)
    notes = Notes()
    ended = resume_run(str(tmp_path / "half"), lambda old: old, notes, RunOptions())
    assert ended["params_sha256"] == whole["params_sha256"]
    assert ended["test"] == whole["test"]
    kept = safetensors.torch.load_file(tmp_path / "half" / "frozen.safetensors")
    assert kept.keys() == {"layers.0.weight", "layers.0.bias"}
    assert all(torch.equal(value, before[name]) for name, value in kept.items())
    assert newest(tmp_path / "half").keys() == {"head.weight", "head.bias"}
    judged = evaluate_run(str(tmp_path / "half"), EvaluationRequest(), notes, RunOptions())
    assert judged["test"]["per_step"] == whole["test"]["per_step"]
    last = evaluate_run(str(tmp_path / "half"), EvaluationRequest(last_only=True), notes, RunOptions())
    assert last["test"]["per_step"] == judged["test"]["per_step"][-1:]
    assert last["scores"] == judged["scores"]
    # A third run takes both parts.
    run(tmp_path, "third", init_from=str(tmp_path / "half"), optimizer={"lr": 0.0}, steps=1)
    assert newest(tmp_path / "third").keys() == before.keys()
    assert torch.equal(newest(tmp_path / "third")["layers.0.weight"], before["layers.0.weight"])


def test_another_frozen_part_is_refused(tmp_path: Path, trained: Path) -> None:
    run(tmp_path, "half", stop_after=2, init_from=str(trained), freeze=FREEZE)
    path = tmp_path / "half" / "frozen.safetensors"
    changed = {name: value + 1 for name, value in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(changed, path)
    with pytest.raises(ValueError, match="beside frozen parameters of sha256"):
        resume_run(str(tmp_path / "half"), lambda old: old, Notes(), RunOptions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "nowhere"}, r"init_from.path: got 'nowhere'.*There is nothing there"),
        ({"init_from": "RUN/job.yaml"}, "no checkpoint"),
        ({"init_from": {"path": "RUN", "sha256": "0"}}, "init_from.sha256: got '0', expected the sha256 of"),
        ({"init_from": "RUN", "model": {"kind": "mlp", "hidden": [7]}}, r"head.weight \(\[2, 6\], here \[2, 7\]\)"),
        ({"freeze": ["neck.*"]}, r"freeze.0: got 'neck.\*', expected a pattern of head.weight"),
        (
            {"freeze": ["step_sizes.*"], "learner": {"kind": "metasgd"}},
            r"freeze: got .* expected patterns of the base model's parameters; step_sizes.* are the learner's own",
        ),
        (
            {"freeze": ["norms.*"], "model": {"kind": "mlp", "norm": "batch"}, "learner": {"kind": "mamlpp"}},
            r"freeze: got .* patterns of the base model's parameters; norms.0.weight, .* are the learner's own",
        ),
        ({"freeze": ["*"]}, "freeze: got .*, expected patterns that leave some parameters"),
        ({"server": {"share": ["*", "!neck.*"]}}, r"server.share.1: got 'neck.\*', expected a pattern of head.weight"),
        ({"server": {"share": []}}, r"server.share: got \[\], expected patterns that leave some parameters"),
        ({"server": {"share": ["layers.*"]}, "freeze": ["layers.*"]}, "server.share: got .* leave some parameters"),
    ],
)
def test_mistakes(tmp_path: Path, trained: Path, changes: dict[str, Any], message: str) -> None:
    changes = json.loads(json.dumps(changes).replace("RUN", str(trained)))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "wrong", **changes)
    assert not (tmp_path / "wrong").exists()


def test_actors_get_what_they_start_from(ray: Any, tmp_path: Path, trained: Path) -> None:
    """The values travel with the job: the workers never open the other run."""
    settings: dict[str, Any] = {"init_from": str(trained), "freeze": FREEZE}
    alone = run(tmp_path, "alone", test=True, **settings)
    spread = run(tmp_path, "spread", test=True, **settings, runtime="ray", resources={"workers": 2})
    assert spread["params_sha256"] == alone["params_sha256"]
    assert spread["test"] == alone["test"]
