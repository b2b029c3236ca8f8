"""Every base model that a job can name, built from a job: trains, and to the same bits when stopped on the way."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch

from metadist.config import ModelKind, build_experiment, parse_job
from metadist.outer import Experiment, decode_checkpoint

MODELS: dict[str, dict[str, Any]] = {
    "conv4": {"width": 4, "layers": 2},
    "mlp": {"hidden": [6]},
    "mnist_net": {"filters": [3, 4], "hidden": 5},
    "simple_cnn": {},
    "resnet12": {"widths": [2, 3, 4, 5]},
    "torchvision": {"name": "shufflenet_v2_x0_5"},
    "lstm": {"width": 4},
    "gru": {"width": 4, "layers": 2},
    "transformer": {"width": 4, "heads": 2, "hidden": 5},
}


def test_none_is_left_out() -> None:
    assert list(MODELS) == [config.kind for config in typing.get_args(ModelKind)]


def experiment(kind: str) -> Experiment:
    content = {
        "steps": 3,
        "data": {
            "source": "sklearn:digits",
            "size": 32 if kind == "torchvision" else 16,
            "channels": 3 if kind == "torchvision" else 1,
            "split": {"train": [0, 1, 2, 3], "valid": [4, 5], "test": 4},
        },
        "tasks": {"ways": 2, "shots": 1, "query": 2, "batch": 3, "chunk": 2},
        "model": {"kind": kind, **MODELS[kind]},
        "learner": {"inner_lr": 0.1, "first_order": kind == "torchvision"},  # which takes its time
    }
    return build_experiment(parse_job(content), "run")


@pytest.mark.parametrize("kind", MODELS)
def test_stopped_and_resumed_is_uninterrupted(make_run: Callable[..., Any], kind: str) -> None:
    whole, run = (make_run(experiment(kind), checkpoint_every=1, validate=None) for _ in range(2))
    expected = whole.go()
    assert run.go(stop=lambda: len(run.notes.records) == 2).step == 2
    result = run.go(resume=True)
    assert (result.step, result.params_sha256) == (3, expected.params_sha256)

    name = run.folder.checkpoints()[-1]
    start = run.experiment.initial().parameters
    end = decode_checkpoint(run.folder.read(name), name).state.meta.parameters
    assert [name for name in start if torch.equal(start[name], end[name])] == []
