"""Which values meta-parameters begin with, and which of them never change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metadist.errors import UserError
from metadist.learners import AnilConfig, BoilConfig, Learner, MamlConfig, Meta, Network, ReptileConfig, learner_class
from metadist.models import Mlp, MlpConfig
from metadist.outer import Strategy, compute_meta_gradient, start_values
from metadist.tasks import Episode, LinearTasks, Task
from metadist.testing.toys import linear_experiment

CPU = torch.device("cpu")
TRUNK = ("layers.*", "norms.*")


def values(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name.replace("_", "."): torch.full(shape, 7.0) for name, shape in shapes.items()}


def test_values_are_taken_by_name_as_copies() -> None:
    own = Meta(values(a=(2,), head_w=(3,)), values(mean=(1,)), {})
    other = {name: value + 1 for name, value in values(a=(2,), head_w=(4,), mean=(1,)).items()}
    taken = start_values(own, other, ["head.*"], "there")
    assert {name: value.tolist() for name, value in taken.items()} == {"a": [8.0, 8.0], "mean": [8.0]}
    assert taken["a"].data_ptr() != other["a"].data_ptr()
    assert start_values(own, values(a=(2,), mean=(1,)), ["head.*"], "there").keys() == {"a", "mean"}


@pytest.mark.parametrize(
    ("other", "fresh", "field", "expected"),
    [
        (values(a=(2,)), [], "init_from", "missing there: head.w."),
        (values(a=(2,), head_w=(4,)), [], "init_from", r"of another shape: head.w \(\[4\], here \[3\]\)"),
        (values(a=(2,), head_w=(3,), b=(1,)), [], "init_from", "not used here: b"),
        (values(b=(1,)), [], "init_from", "missing there: a, head.w; not used here: b"),
        (values(a=(2,)), ["haed.*"], r"init_from.fresh.0: got 'haed.\*'", "a pattern of a, head.w"),
    ],
)
def test_what_does_not_fit_is_named(
    other: dict[str, torch.Tensor], fresh: list[str], field: str, expected: str
) -> None:
    own = Meta(values(a=(2,), head_w=(3,)), {}, {})
    with pytest.raises(UserError, match=rf"{field}.*{expected}"):
        start_values(own, other, fresh, "there")


def test_an_experiment_begins_with_its_start_and_a_random_start_stays_random() -> None:
    plain = linear_experiment()
    start = {name: torch.full_like(value, 0.5) for name, value in plain.initial().parameters.items()}
    begun = replace(plain, start=start, freeze=TRUNK)
    meta = begun.initial()
    assert meta.parameters.keys() == {"head.weight", "head.bias"}
    assert meta.frozen.keys() == {"layers.0.weight", "layers.0.bias"}
    assert all(bool((value == 0.5).all()) for value in (meta.parameters | meta.frozen).values())
    expected = plain.scratch().parameters
    for name, value in (begun.scratch().parameters | begun.scratch().frozen).items():
        assert torch.equal(value, expected[name])


def double(meta: Meta) -> Meta:
    return Meta(*({name: value.double() for name, value in group.items()} for group in meta))


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize("config", [MamlConfig(inner_lr=0.3, inner_steps=2), ReptileConfig(inner_lr=0.1)])
def test_a_frozen_trunk_is_an_embedding(config: MamlConfig | ReptileConfig, strategy: Strategy) -> None:
    """With the trunk frozen, a learner does to the head what it does to a linear model of the trunk's features."""

    def learner(model: Mlp) -> Learner:
        return learner_class(config.kind)(config, Network(model, "xavier", "cross_entropy"))  # type: ignore[call-arg]

    full = learner(Mlp(MlpConfig(hidden=[6], activation="tanh"), (2,), 2))
    experiment = replace(linear_experiment(), learner=full, freeze=TRUNK)
    meta = double(experiment.initial())
    drawn = LinearTasks(2).batch("train", 0, range(3), Episode(2, 3, 4), CPU)
    task = Task(*(part._replace(x=part.x.double()) for part in drawn))
    found = compute_meta_gradient(full, meta, task, strategy)

    frozen = meta.frozen
    linear = Mlp(MlpConfig(hidden=[6], activation="tanh"), (6,), 2)
    linear.layers, linear.norms = torch.nn.ModuleList(), torch.nn.ModuleList()
    embedded = Task(
        *(part._replace(x=torch.tanh(part.x @ frozen["layers.0.weight"].T + frozen["layers.0.bias"])) for part in task)
    )
    expected = compute_meta_gradient(learner(linear), Meta(meta.parameters, {}, {}), embedded, "loop")
    assert found.gradient.keys() == expected.gradient.keys() == {"head.weight", "head.bias"}
    for name, value in expected.gradient.items():
        assert torch.allclose(found.gradient[name], value, rtol=1e-12, atol=1e-14), name
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-12)


@pytest.mark.parametrize("config", [AnilConfig(inner_lr=0.3), BoilConfig(inner_lr=0.3), MamlConfig(remat=True)])
def test_frozen_parts_of_other_learners(config: AnilConfig | BoilConfig | MamlConfig) -> None:
    """Half of the trunk frozen: the gradient of the rest is that of the whole."""
    network = Network(Mlp(MlpConfig(hidden=[4, 3], activation="tanh"), (2,), 2), "xavier", "cross_entropy")
    learner = learner_class(config.kind)(config, network)  # type: ignore[call-arg]
    whole = replace(linear_experiment(), learner=learner)
    task = LinearTasks(2).batch("train", 0, range(2), Episode(2, 3, 4), CPU)
    task = Task(*(part._replace(x=part.x.double()) for part in task))
    meta = double(replace(whole, freeze=("layers.0.*",)).initial())
    found = compute_meta_gradient(learner, meta, task, "vectorized").gradient
    assert found.keys() == {"layers.1.weight", "layers.1.bias", "head.weight", "head.bias"}
    if config.kind == "anil":  # its inner loop leaves the trunk alone anyway
        expected = compute_meta_gradient(learner, double(whole.initial()), task, "loop").gradient
        for name, value in found.items():
            assert torch.allclose(value, expected[name], rtol=1e-12, atol=1e-14), name
    else:
        again = compute_meta_gradient(learner, meta, task, "loop").gradient
        for name, value in found.items():
            assert torch.allclose(value, again[name], rtol=1e-9, atol=1e-14), name
