"""Supervised pre-training: its steps by torch.optim, and its sums over processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metadist.data import DataConfig, SplitConfig, resolve_store
from metadist.learners import Network
from metadist.models import Mlp, MlpConfig
from metadist.outer import Checkpoint, OptimizerConfig, OuterRule, OuterState, decode_checkpoint
from metadist.tasks import ImageTasks, generator
from metadist.tasks.labelled import LabelledImages
from metadist.testing.together import Pair
from metadist.training.pretraining import EpochRecord, Pretraining, Share, Watch, run_epochs, shared
from metadist.training.run_folder import RunFolder
from metadist.training.stepper import Diverged

CPU = torch.device("cpu")
OPTIMIZER = OptimizerConfig(kind="sgd", lr=0.5, momentum=0.9, weight_decay=0.01, schedule="linear")


@pytest.fixture(scope="module")
def images() -> LabelledImages:
    data = DataConfig(split=SplitConfig(train=["0", "1", "2"], valid=None, test=["9"]))
    return LabelledImages(ImageTasks(resolve_store(data), data), "train", 0.2, seed=0)


def pretraining(images: LabelledImages, epochs: int = 2, batch: int = 100, **settings: Any) -> Pretraining:
    network = Network(Mlp(MlpConfig(hidden=[8]), (1, 8, 8), 3), "xavier", "cross_entropy")
    optimizer = settings.pop("optimizer", OPTIMIZER)
    rule = OuterRule("run", optimizer, epochs * (len(images.train) // batch), batch, batch)
    return Pretraining(images, network, rule, epochs, seed=3, device=CPU)


def test_takes_the_steps_of_torch(images: LabelledImages) -> None:
    made = pretraining(images)
    state = made.initial()
    leaves = {name: value.clone().requires_grad_() for name, value in state.meta.parameters.items()}
    sgd = torch.optim.SGD(leaves.values(), lr=0.5, momentum=0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(sgd, 1.0, 0.0, total_iters=made.rule.steps)
    for epoch in range(2):
        state, record = made.epoch(state, Share(), lambda: None)
        losses = []
        order = generator("epoch", 3, epoch).permutation(images.train)
        assert sorted(order) == images.train.tolist()
        for step in range(made.steps_per_epoch):
            x, y, _ = images.examples(order[100 * step : 100 * (step + 1)], CPU)
            loss = nn.functional.cross_entropy(torch.func.functional_call(made.network.module, leaves, (x,)), y)
            losses.append(float(loss.detach()))
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            schedule.step()
        assert record.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        for name, value in leaves.items():
            assert torch.allclose(state.meta.parameters[name], value, atol=1e-5), name
    x, y, _ = images.examples(images.held, CPU)
    outputs = torch.func.functional_call(made.network.module, leaves, (x,))
    assert (record.epoch, record.version) == (2, made.rule.steps)
    assert record.valid_accuracy == pytest.approx(float((outputs.argmax(1) == y).double().mean()))
    assert record.valid_loss == pytest.approx(nn.functional.cross_entropy(outputs, y).item(), rel=1e-4)


def test_two_processes_take_the_step_of_one(images: LabelledImages) -> None:
    """Also the last batch of the held-out images, of which each sees another one."""
    made = pretraining(images)
    alone, expected = made.epoch(made.initial(), Share(), lambda: None)

    def epoch(share: Share) -> tuple[OuterState, EpochRecord]:
        own = pretraining(images)  # for each thread: a module is called by one at a time
        return own.epoch(own.initial(), share, lambda: None)

    results = Pair().run(epoch)
    for state, record in results:
        for name, value in alone.meta.parameters.items():
            assert torch.allclose(state.meta.parameters[name], value, atol=1e-5), name
        assert record.loss == pytest.approx(expected.loss, rel=1e-5)
        assert record.valid_accuracy == pytest.approx(expected.valid_accuracy)
        assert record.valid_loss == pytest.approx(expected.valid_loss, rel=1e-4)
    assert results[0][1].sha256 == results[1][1].sha256


def test_a_checkpoint_an_epoch_the_best_is_spared(images: LabelledImages, tmp_path: Path) -> None:
    made = pretraining(images, epochs=4, optimizer=OptimizerConfig(kind="adam", lr=0.01))
    folder = RunFolder(str(tmp_path / "run")).acquire()
    records: list[EpochRecord] = []
    run_epochs(made, Share(), folder, None, "identity", 1, Watch(lambda record: bool(records.append(record))))
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    accuracies = [record.valid_accuracy for record in records]
    best = records[accuracies.index(max(accuracies))].version
    versions = [int(name[-20:-12]) for name in folder.checkpoints()]
    assert versions == sorted({best, made.rule.steps})
    newest = decode_checkpoint(folder.read(folder.checkpoints()[-1]), "newest")
    seconds = sum(record.seconds for record in records)
    assert newest.progress == {"best_version": best, "best_score": max(accuracies), "seconds": seconds}


def test_goes_on_with_tensors_where_torch_would_put_them(images: LabelledImages, tmp_path: Path) -> None:
    """Those of a file lie anywhere; a matrix product from another place can have other bits."""
    made = pretraining(images, epochs=2)
    first, _ = made.epoch(made.initial(), Share(), lambda: None)
    moved = {}
    for name, value in first.meta.parameters.items():
        room = torch.zeros(value.numel() + 1)
        moved[name] = room[1:].copy_(value.flatten()).view(value.shape)
    assert all(value.data_ptr() % 64 for value in moved.values())
    state = OuterState(first.version, first.meta._replace(parameters=moved), first.optimizer)
    places: list[int] = []

    class Spy(Pretraining):
        def _sums(self, parameters: dict[str, torch.Tensor], rows: Any, share: Share) -> Any:
            places.extend(value.data_ptr() % 64 for value in parameters.values())
            return super()._sums(parameters, rows, share)

    spied = Spy(made.images, made.network, made.rule, made.epochs, made.seed, made.device)
    folder = RunFolder(str(tmp_path / "run")).acquire()
    newest = Checkpoint(state, "identity", {"best_version": None, "best_score": None, "seconds": 0.0})
    run_epochs(spied, Share(), folder, newest, "identity", 1, Watch(lambda record: False))
    assert places
    assert not any(places)


def test_a_gradient_that_is_no_number_ends_it(images: LabelledImages) -> None:
    made = pretraining(images)
    broken = {name: value * float("nan") for name, value in made.initial().meta.parameters.items()}
    state = OuterState(0, made.initial().meta._replace(parameters=broken), {})
    with pytest.raises(Diverged, match="step 1 is non-finite"):
        made.epoch(state, Share(), lambda: None)


def test_other_hardware_is_refused() -> None:
    assert shared([{"torch": "1"}, {"torch": "1"}]) == {"torch": "1"}
    with pytest.raises(RuntimeError, match="Worker 1 runs on other hardware or software"):
        shared([{"torch": "1"}, {"torch": "2"}])
