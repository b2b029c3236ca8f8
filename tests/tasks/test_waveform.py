"""Waveforms: what a signal is made of, that classes can be told apart, and that splits share none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metadist.config import build_experiment, parse_job
from metadist.errors import UserError
from metadist.tasks import Episode, WaveformTasks, WaveformTasksConfig, generator

CPU = torch.device("cpu")


def test_a_signal_by_hand() -> None:
    """One harmonic: sin(2π · periods · t + phase + shift), with its envelope and loudness."""
    family = WaveformTasks(WaveformTasksConfig(harmonics=1, noise=0.0, length=50))
    drawn = family.sample("valid", 3, 5, Episode(2, 1, 2))
    assert all(64 <= number < 80 for number in drawn.classes)
    batch = family.gather([drawn], CPU)
    time = (np.arange(50) + 0.5) / 50
    for way, number in enumerate(drawn.classes):
        rng = generator("waveform class", int(number))
        strength = np.sqrt(2) * np.sign(rng.standard_normal())
        shift, peak, width, periods = (rng.uniform(*span) for span in ((0, 2 * np.pi), (0, 1), (0.2, 0.6), (2, 5)))
        envelope = np.exp(-((time - peak) ** 2) / (2 * width**2))
        envelope /= np.sqrt(np.mean(envelope**2))
        for example in range(3):
            angle = 2 * np.pi * periods * time + drawn.phase[example, way] + shift
            expected = drawn.loudness[example, way] * strength * envelope * np.sin(angle)
            found = batch.support.x[0, way] if example == 0 else batch.query.x[0, 2 * (example - 1) + way]
            assert np.abs(found[:, 0].double().numpy() - expected).max() < 1e-5


def test_noise_and_loudness_have_their_size() -> None:
    episode = Episode(5, 10, 10)
    quiet, loud = (WaveformTasks(WaveformTasksConfig(noise=noise)) for noise in (0.0, 0.5))
    signal, noisy = (family.batch("train", 0, range(20), episode, CPU).support.x for family in (quiet, loud))
    assert float((noisy - signal).std()) == pytest.approx(0.5, rel=0.02)
    assert float(signal.square().mean().sqrt()) == pytest.approx((13 / 12) ** 0.5, rel=0.1)  # of 0.5…1.5, squared


def accuracy(features: Any) -> float:
    """Of 1-shot nearest neighbours on test tasks."""
    batch = WaveformTasks(WaveformTasksConfig()).batch("test", 0, range(100), Episode(5, 1, 5), CPU)
    support, query = features(batch.support.x[..., 0]), features(batch.query.x[..., 0])
    return float((torch.cdist(query, support).argmin(-1) == batch.query.y).float().mean())


def test_classes_differ_in_shape_not_in_values() -> None:
    """Spectra, which know nothing of phases, tell classes apart; the signals themselves hardly better than chance."""

    def spectrum(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.fft.rfft(x).abs(), dim=-1)

    assert 0.2 < accuracy(lambda x: x) < 0.4
    assert accuracy(spectrum) > 0.95


def test_splits_share_no_class() -> None:
    family = WaveformTasks(WaveformTasksConfig(train_classes=4, valid_classes=0, test_classes=3))
    assert {split: list(numbers) for split, numbers in family.classes.items()} == {
        "train": [0, 1, 2, 3], "valid": [], "test": [4, 5, 6],
    }  # fmt: skip
    assert [family.has(split) for split in ("train", "valid", "test")] == [True, False, True]
    drawn = [family.sample("test", 0, index, Episode(3, 1, 1)).classes for index in range(5)]
    assert all(sorted(classes) == [4, 5, 6] for classes in drawn)
    family.check("test", Episode(3, 1, 1))
    with pytest.raises(UserError, match=r"^tasks\.test_classes: got 3, expected at least the 5 classes of a task"):
        family.check("test", Episode(5, 1, 1))


@pytest.mark.parametrize(
    "settings", [{"train_classes": -1}, {"test_classes": 0}, {"length": 0}, {"harmonics": 0}, {"noise": -0.1}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{next(iter(settings))}: got"):
        WaveformTasksConfig(**settings)


@pytest.mark.parametrize("model", ["mlp", "lstm", "gru", "transformer"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_in_a_job(model: str, loss: str) -> None:
    content = {"tasks": {"kind": "waveform", "length": 8, "loss": loss}, "model": {"kind": model}}
    made = build_experiment(parse_job(content), "run")
    batch = made.distribution.batch("train", 0, range(1), made.episode, CPU)
    meta = made.initial()
    outcome = made.learner.task_loss(meta, type(batch)(*(part._replace(x=part.x[0], y=part.y[0]) for part in batch)))
    assert outcome.outputs.shape == (5, 5)
    assert outcome.loss.isfinite()
