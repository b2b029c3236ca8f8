"""torchvision's networks: the same function, weights from files and names, and what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from metadist.config import Job, anchored, identity, parse_job
from metadist.errors import UserError
from metadist.learners import Maml, MamlConfig, Network
from metadist.models import Norm, TorchvisionConfig, TorchvisionNet
from metadist.outer import check_strategy
from metadist.tasks import Examples, Task

NAME = "shufflenet_v2_x0_5"
SHAPE = (3, 32, 32)


def net(outputs: int | None = 5, shape: tuple[int, ...] = SHAPE, **settings: Any) -> TorchvisionNet:
    return TorchvisionNet(TorchvisionConfig(**{"name": NAME} | settings), shape, outputs)


def theirs() -> dict[str, torch.Tensor]:
    """The state of a network of torchvision's, with weights of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = models.get_model(NAME, weights=None)
        for parameter in module.parameters():
            parameter.data += 0.01 * torch.rand(parameter.shape)
    return module.state_dict()


def initial(model: TorchvisionNet, init: str | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    return model.initial(init, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "head"), [(NAME, "fc"), ("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")])
def test_is_torchvisions_function(name: str, head: str) -> None:
    """In training, where its batch normalisation is of the batch; all dropout is off."""
    module = models.get_model(name, weights=None, num_classes=5).double().train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    weights = {f"trunk.{key}": value for key, value in module.named_parameters() if not key.startswith(head)}
    weights |= {f"head.{part}": module.get_parameter(f"{head}.{part}") for part in ("weight", "bias")}
    ours = net(name=name).double()
    assert set(weights) == {key for key, _ in ours.named_parameters()}
    assert not [key for key, _ in ours.named_buffers()]
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.func.functional_call(ours, weights, (x,))
    assert torch.allclose(found, module(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [NAME, "mobilenet_v3_small"])
def test_has_a_second_derivative(name: str) -> None:
    """Also the activations that torch has in one piece."""
    model = net(name=name, norm="layer")
    learner = Maml(MamlConfig(inner_lr=0.01), Network(model, None, "cross_entropy"))
    x, y = torch.randn(1, 5, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(5)[None]
    batch = Task(Examples(x, y, 5), Examples(x, y, 5))
    meta = learner.init(torch.Generator())
    assert check_strategy(learner, meta, batch, "vectorized", "the rule").reason == "the rule"


def test_eps_is_that_of_the_network() -> None:
    assert {part.eps for part in net(name="mobilenet_v3_small").modules() if isinstance(part, Norm)} == {0.001}


def test_random_weights_are_as_torchvision_draws_them() -> None:
    model = net()
    state = torch.get_rng_state()
    drawn, again, other = initial(model), initial(model), initial(model, seed=1)
    assert list(drawn) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert not torch.equal(drawn["trunk.conv1.0.weight"], other["trunk.conv1.0.weight"])
    assert not torch.equal(drawn["head.weight"], other["head.weight"])
    assert not torch.equal(drawn["trunk.conv1.0.weight"], initial(model, "default")["trunk.conv1.0.weight"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_weights_from_a_file(tmp_path: Path, kind: str) -> None:
    state, path = theirs(), tmp_path / f"weights.{kind}"
    torch.save(state, path) if kind == "pth" else save_file(state, path)
    model = net(weights=str(path))
    drawn = initial(model)
    assert all(torch.equal(value, state[name[6:]]) for name, value in drawn.items() if name.startswith("trunk."))
    assert drawn["head.weight"].shape == (5, 1024)
    assert torch.equal(drawn["head.weight"], initial(model)["head.weight"])
    embedding = initial(net(None, weights=str(path)))
    assert not [name for name in embedding if not name.startswith("trunk.")]


def test_weights_by_name_are_torchvisions_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded here: the file lies where torch keeps those that it has fetched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / models.get_model_weights(NAME).DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(theirs(), file)
    assert torch.equal(initial(net(weights="DEFAULT"))["trunk.conv1.0.weight"], theirs()["conv1.0.weight"])


def test_identity_is_of_the_weights_and_not_of_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"other")):
        Path(name).write_bytes(content)

    def job(weights: str) -> Job:
        return parse_job({"tasks": {"kind": "linear"}, "model": {"kind": "torchvision", "weights": weights}})

    a, b, c = (identity(job(name), None)["model"]["weights"] for name in ("a.pth", "b.pth", "c.pth"))
    assert a == b != c
    assert anchored(job("a.pth")).model.weights == str(tmp_path.resolve() / "a.pth")
    assert identity(anchored(job("a.pth")), None)["model"]["weights"] == a
    assert identity(anchored(job("DEFAULT")), None)["model"]["weights"] == "DEFAULT"


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FileNotFoundError"),
        ("text", "got '.*weights.pth', expected weights that can be had and read"),
        ([1, 2], "a file that holds a state"),
        ({}, rf"weights of {NAME}; it has no conv1\.0\.weight"),
        ({"conv1.0.weight": torch.zeros(3)}, r"it has a conv1\.0\.weight that is not of shape \[24, 3, 3, 3\]"),
        (Harmful(), "UnpicklingError"),
    ],
)
def test_files_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=rf"^model\.weights: .*{message}"):
        initial(net(weights=str(path)))
    assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet19"}, r"^model\.name: got 'resnet19', .* Did you mean 'resnet1"),
        ({"name": "vit_b_16"}, r"^model\.name: .* fused attention"),
        ({"name": "squeezenet1_0"}, r"^model\.name: .* ends in a linear layer"),
        ({"name": "alexnet"}, r"^model\.name: .* a network for images of 32×32; it gives RuntimeError"),
        ({"shape": (1, 32, 32)}, r"^model\.kind: .* images of 1 channels\. Set data\.channels: 3"),
        ({"shape": (32,)}, r"^model\.kind: got 'torchvision', expected a model for inputs of shape \[32\]"),
    ],
)
def test_what_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        net(**settings)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(UserError, match=r"^model\.weights: got 'DEFALT', expected a file .* IMAGENET1K_V1"):
        initial(net(weights="DEFALT"))
