"""No pickle is read from a place that a user names: planted in each of them, it is refused and not executed."""

from __future__ import annotations

import pickle
import sys
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from hostile import Evil

from metadist.config import build_experiment, parse_job
from metadist.data import ClassStore, DataConfig, prepare, resolve_store
from metadist.errors import UserError
from metadist.training.start_values import read_start

#: what the product reads of a run, a pre-training or a sweep
FILES = ["job.yaml", "run.json", "summary.json", "metrics.jsonl", "lease.json", "test-scores.json", "sweep.json"]
FILES += ["checkpoints/step-00000001.safetensors", "checkpoints/step-00000002.safetensors", "frozen.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_run_folders(
    metadist: Callable[..., Any],
    victim: Path,
    readings: list[list[str]],
    evil: bytes,
    sentinel: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin(*_: object, **__: object) -> Any:
        raise SystemExit(0)

    for module in ("run", "evaluate"):
        monkeypatch.setattr(f"metadist.distributed.{module}.open_runtime", begin)
    (victim / name).write_bytes(evil)
    for line in readings:
        ended = metadist(*line)
        assert ended.code in (0, 2), ended.err
        assert "Traceback" not in ended.err
    assert not sentinel.exists()


def test_a_checkpoint_to_evaluate(metadist: Callable[..., Any], victim: Path, evil: bytes, sentinel: Path) -> None:
    for path in (victim / "checkpoints").iterdir():
        path.write_bytes(evil)
        ended = metadist("evaluate", str(path))
        assert ended.code == 2, ended.err
        assert str(path) in ended.err
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["manifest.json", "pixels.arrow"])
def test_stores(tmp_path: Path, evil: bytes, sentinel: Path, name: str) -> None:
    store = prepare("sklearn:digits", tmp_path / "store").path
    (store / name).write_bytes(evil)
    for use in (lambda: ClassStore.open(store), lambda: resolve_store(DataConfig(source=str(store)))):
        with pytest.raises(UserError, match=name):
            use()
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["manifest.json", "pixels.arrow"])
def test_the_cache(tmp_path: Path, evil: bytes, sentinel: Path, name: str) -> None:
    config = DataConfig(cache=str(tmp_path / "cache"))
    (resolve_store(config).path / name).write_bytes(evil)
    with pytest.raises(UserError, match=name):
        resolve_store(config)
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["images.zip", "class/image.png", "model.safetensors"])
def test_images_and_values(tmp_path: Path, evil: bytes, sentinel: Path, name: str) -> None:
    path = tmp_path / "source" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(evil)
    source = str(tmp_path / "source" if path.suffix == ".png" else path)
    read = read_start if path.suffix == ".safetensors" else partial(prepare, store=tmp_path / "store")
    with pytest.raises(UserError, match=name):
        read(source)
    assert not sentinel.exists()


@pytest.mark.parametrize("kind", ["plain.pth", "zip.pth", "old.pth", "weights.safetensors", "weights"])
def test_weights_of_torchvision(tmp_path: Path, evil: bytes, sentinel: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind in ("zip.pth", "old.pth"):
        torch.save({"conv1.weight": Evil(sentinel)}, path, _use_new_zipfile_serialization=kind == "zip.pth")
    else:
        path.write_bytes(evil)
    model = {"kind": "torchvision", "name": "shufflenet_v2_x0_5", "weights": str(path)}
    content: dict[str, Any] = {"data": {"channels": 3, "size": 32}, "model": model}
    with pytest.raises(UserError, match=r"^model\.weights: "):
        build_experiment(parse_job(content | {"tasks": {"ways": 2}}), "run")
    assert not sentinel.exists()


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "MNIST"])
def test_files_of_torchvision(
    tmp_path: Path, evil: bytes, sentinel: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision itself reads pickles of CIFAR, but only ones whose digest it knows."""

    def unreachable(*_: object, **__: object) -> Any:
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    root = tmp_path / "cache" / "torchvision"
    cifar = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    planted = [f"cifar-10-batches-py/{part}" for part in [*cifar, "batches.meta"]]
    planted += [f"cifar-100-python/{part}" for part in ("train", "test", "meta")]
    planted += [f"MNIST/processed/{part}.pt" for part in ("training", "test")]
    planted += ["cifar-10-python.tar.gz", "cifar-100-python.tar.gz"]
    for part in planted:
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        (root / part).write_bytes(evil)
    with pytest.raises(UserError, match=r"^data\.source: "):
        resolve_store(DataConfig(source=f"torchvision:{name}", cache=str(tmp_path / "cache")))
    assert not sentinel.exists()


def test_what_ray_train_left_behind(tmp_path: Path, evil: bytes) -> None:
    """A pre-training's checkpoints are the run folder's own; files of Ray Train's are removed before it starts."""
    from metadist.distributed.pretrain_workers import OWN_FOLDER, _remove_own_files
    from metadist.training.run_folder import RunFolder

    for name in ("trainer.pkl", "checkpoint_manager_snapshot.json", "checkpoint_1/data.pkl"):
        (tmp_path / OWN_FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / OWN_FOLDER / name).write_bytes(evil)
    _remove_own_files(RunFolder(str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_only_known_files_may_unpickle() -> None:
    """Whoever adds another reader of pickles meets this list."""
    root = Path(sys.modules["metadist"].__file__ or "").parent
    words = ("pickle.load", "cloudpickle", "allow_pickle", "torch.load(", "weights_only=False", "yaml.load(", "shelve")
    found = {
        str(path.relative_to(root)): line.strip()
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if any(word in line.replace("safetensors.torch.load", "") for word in words)
    }
    assert found == {"models/torchvision_nets.py": 'state = torch.load(path, map_location="cpu", weights_only=True)'}


def test_the_pickle_is_one_that_does_harm(evil: bytes, sentinel: Path) -> None:
    pickle.loads(evil)
    assert sentinel.exists()
