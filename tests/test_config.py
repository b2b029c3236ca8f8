"""Reading a job, its identity, and its way to text and back."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from metadist.config import (
    Job,
    changed_fields,
    dump_job,
    identity,
    identity_sha256,
    job_dict,
    load_job,
    open_data,
    parse_job,
    set_value,
)
from metadist.errors import UserError
from metadist.learners import MamlConfig, ProtoNetConfig, ReptileConfig
from metadist.models import Conv4Config, MlpConfig
from metadist.reading_yaml import parse_yaml
from metadist.tasks import SinusoidTasksConfig

REPOSITORY = Path(__file__).parent.parent
JOBS = sorted(path for path in (REPOSITORY / "jobs").rglob("*.yaml") if path.name != "rows.yaml")


def sha(*settings: str) -> str:
    content: dict[str, Any] = {}
    for setting in settings:
        set_value(content, setting)
    return sha_of(parse_job(content))


def sha_of(job: Job) -> str:
    return identity_sha256(identity(job, open_data(job)))


def images(root: Path, first: int = 0) -> Path:
    """Five classes of two images of 4×4 noise."""
    for number in range(10):
        path = root / "abcde"[number // 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(first + number)
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(path)
    return root


def configs(kind: Any = Job) -> Iterator[Any]:
    """All dataclasses of a job."""
    yield kind
    for hint in typing.get_type_hints(kind).values():
        members = typing.get_args(hint) if typing.get_origin(hint) in (list, types.UnionType) else (hint,)
        for member in members:
            if dataclasses.is_dataclass(member):
                yield from configs(member)


# reading


def test_defaults() -> None:
    job = parse_job({})
    assert job == Job()
    assert (job.name, job.seed, job.steps, job.runtime, job.storage) == ("job", 0, 1000, "ray", "runs")
    assert (job.tasks.kind, job.model.kind, job.learner.kind) == ("images", "conv4", "maml")
    assert job.tracking.uri is None


def test_kind_chooses_the_section() -> None:
    content = {"tasks": {"kind": "sinusoid"}, "model": {"kind": "mlp"}, "learner": {"kind": "reptile"}}
    job = parse_job(content)
    assert isinstance(job.tasks, SinusoidTasksConfig)
    assert isinstance(job.model, MlpConfig)
    assert isinstance(job.learner, ReptileConfig)
    # each kind has defaults of its own
    assert (job.tasks.shots, job.tasks.batch) == (10, 25)


def test_section_without_kind_is_the_first_kind() -> None:
    job = parse_job({"learner": {"inner_lr": 0.2}, "model": {"width": 3}})
    assert job.learner == MamlConfig(inner_lr=0.2)
    assert job.model == Conv4Config(width=3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("1.5e+2", 150.0),
        (".5e1", 5.0),
        ("-2e-1", -0.2),
        ("3", 3),
        ("3.0", 3.0),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("[a, 1e-2]", ["a", 0.01]),
        ("{a: 1}", {"a": 1}),
        ("text", "text"),
        ("'3'", "3"),
        ("1e", "1e"),
        ("a=b", "a=b"),
    ],
)
def test_set(text: str, value: object) -> None:
    content: dict[str, Any] = {}
    set_value(content, f"x.y={text}")
    found = content["x"]["y"]
    assert found == value
    assert type(found) is type(value)


def test_set_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("steps: 5\nlearner: {kind: maml, inner_lr: 0.1}\n")
    job = load_job(str(path), ["steps=7", "learner.inner_lr=1e-3", "steps=8", "data.split.train=[a, b]"])
    assert job.steps == 8
    assert job.learner == MamlConfig(inner_lr=0.001)
    assert job.data.split.train == ["a", "b"]


def test_set_replaces_a_broken_value(tmp_path: Path) -> None:
    """Settings are applied before anything is checked."""
    path = tmp_path / "job.yaml"
    path.write_text("steps: many\n")
    assert load_job(str(path), ["steps=7"]).steps == 7


def test_whole_numbers_are_numbers() -> None:
    assert parse_job({"learner": {"inner_lr": 1}}) == parse_job({"learner": {"inner_lr": 1.0}})


def test_count_and_share_stay_apart() -> None:
    assert isinstance(parse_job({"data": {"split": {"train": 1}}}).data.split.train, int)
    assert isinstance(parse_job({"data": {"split": {"train": 1.0}}}).data.split.train, float)


def test_merge_keys_and_anchors() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n"
    assert parse_yaml(text, "text") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_error_names_the_place_in_the_file() -> None:
    with pytest.raises(UserError, match="in line 2, column 4") as caught:
        parse_yaml("a: 1\nb: : x\n", "job.yaml")
    assert caught.value.field == "job.yaml"


def test_more_workers_than_chunks_is_a_warning() -> None:
    assert parse_job({}).warnings == []
    (warning,) = parse_job({"resources": {"workers": 5}}).warnings
    assert "tasks.chunk = 8" in warning
    assert parse_job({"resources": {"workers": 5}, "runtime": "inprocess"}).warnings == []


# text and back


@pytest.mark.parametrize("path", JOBS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_jobs_parse_and_come_back(path: Path) -> None:
    job = load_job(str(path))
    assert parse_job(yaml.safe_load(dump_job(job))) == job
    assert parse_job(parse_yaml(dump_job(job), "dump")) == job
    assert dump_job(parse_job(job_dict(job))) == dump_job(job)


def test_odd_values_come_back() -> None:
    job = parse_job(
        {
            "name": "ünï cödé 🦊: # 'x'",
            "seed": 2**70,
            "optimizer": {"lr": 1e-5, "eps": 1e-12, "groups": [{"match": "head.*", "lr": 1e-7}]},
            "learner": {"kind": "protonet"},
            "data": {"split": {"train": [1, "02", "a b", "*"], "valid": None, "test": 1.0}},
        }
    )
    back = parse_job(parse_yaml(dump_job(job), "dump"))
    assert back == job
    assert back.learner == ProtoNetConfig()


def test_dump_says_everything() -> None:
    sections = {field.name for field in dataclasses.fields(Job)}
    assert set(yaml.safe_load(dump_job(Job()))) == sections - {"pretrain", "tune"}  # only where there is one
    assert set(yaml.safe_load(dump_job(parse_job({"tune": {"num_samples": 3}, "pretrain": {"epochs": 1}})))) == sections


@pytest.mark.parametrize("kind", sorted(set(configs()), key=lambda kind: kind.__name__))
def test_defaults_are_of_their_type(kind: Any) -> None:
    """A whole number as the default of a number would come back from a file as another text, and another sha."""
    for field in dataclasses.fields(kind):
        if typing.get_type_hints(kind)[field.name] is float:
            assert type(field.default) is float, f"{kind.__name__}.{field.name}"


# identity


@pytest.mark.parametrize(
    "setting",
    [
        "name=other",
        "runtime=inprocess",
        "storage=elsewhere",
        "resources.workers=7",
        "resources.gpus_per_worker=0.5",
        "resources.timeout=9",
        "resources.cpus_per_worker=0.5",
        "resources.cpus_per_worker=1.5",
        "tracking.uri=none",
        "tracking.experiment=other",
        "data.cache={tmp_path}/cache",
        "data.skip_bad=true",
    ],
)
def test_placement_is_no_part_of_the_identity(setting: str, tmp_path: Path) -> None:
    assert sha(setting.format(tmp_path=tmp_path)) == sha()


@pytest.mark.parametrize(
    "setting",
    [
        "seed=1",
        "steps=999",
        "resources.cpus_per_worker=2",
        "learner.inner_lr=0.1",
        "learner.kind=reptile",
        "optimizer.lr=0.1",
        "optimizer.groups=[{match: '*', lr: 0.1}]",
        "tasks.chunk=4",
        "tasks.ways=4",
        "model.width=8",
        "evaluation.query=14",
        "server.statistics_momentum=0.5",
        "data.invert=true",
        "data.split.seed=1",
        "data.augment.flip=true",
        "data.rotations=all",
    ],
)
def test_identity(setting: str) -> None:
    assert sha(setting) != sha()


def test_identity_is_of_the_content_of_the_data(tmp_path: Path) -> None:
    here = sha(f"data.source={images(tmp_path / 'here')}")
    assert sha(f"data.source={images(tmp_path / 'there')}") == here
    assert sha(f"data.source={images(tmp_path / 'others', first=1)}") != here


def test_identity_without_data() -> None:
    """The data section means nothing to tasks that need no data."""
    tasks = ("tasks.kind=sinusoid", "model.kind=mlp")
    assert sha(*tasks, "data.invert=true", "data.source=nowhere") == sha(*tasks)
    assert sha(*tasks, "seed=1") != sha(*tasks)


def test_identity_survives_the_file() -> None:
    job = parse_job({"learner": {"inner_lr": 0.1 + 0.2}, "data": {"split": {"train": [0, "1"], "valid": 1, "test": 2}}})
    assert sha_of(parse_job(parse_yaml(dump_job(job), "dump"))) == sha_of(job)


def test_changed_fields() -> None:
    old, new = job_dict(parse_job({})), job_dict(parse_job({"seed": 1, "data": {"split": {"seed": 2}}}))
    assert changed_fields(old, new) == ["data.split.seed", "seed"]
    assert changed_fields({"a": 1}, {"b": {"c": 1}}) == ["a", "b"]
    assert changed_fields(old, old) == []


# every key is explained


@pytest.mark.parametrize("kind", sorted(set(configs()), key=lambda kind: kind.__name__))
def test_every_key_is_explained(kind: Any) -> None:
    """By a `#:` comment right above it; a section, a kind and a default of its own by their class."""
    source = inspect.getsource(kind)
    lines = source.splitlines()
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    hints = typing.get_type_hints(kind)
    inherited = {name for base in kind.__mro__[1:] for name in getattr(base, "__annotations__", {})}
    for node in tree.body:
        if not isinstance(node, ast.AnnAssign):
            continue
        assert isinstance(node.target, ast.Name)
        name = node.target.id
        hint = hints[name]
        members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if name == "kind" and kind.__name__ != "OptimizerConfig":
            assert kind.__doc__
        elif dataclasses.is_dataclass(members[0]):
            assert all(member.__doc__ for member in members)
        elif name not in inherited:
            assert lines[node.lineno - 2].strip().startswith("#:"), f"{kind.__name__}.{name}"
