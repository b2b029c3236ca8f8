"""Job files: from the text to everything that a run is a function of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st
from mutations import PLAIN_ONLY, cut_up, trees
from outcomes import settles

from metadist import config
from metadist.reading_yaml import parse_yaml

SINUSOID = ("maml", "mamlpp", "anil", "boil", "metasgd", "imaml", "cavia", "reptile")
IMAGES = ("maml", "mamlpp", "protonet", "matching", "relation", "finetune")
MODELS = ("mlp", "mnist_net", "lstm", "gru", "transformer")
FAMILIES = ("line", "quadratic", "linear", "waveform")


@pytest.fixture(scope="module")
def contents(small: dict[str, Any]) -> list[dict[str, Any]]:
    """Whole jobs of every kind, with every field."""
    of_learners = [{"tasks": {"kind": "sinusoid"}, "model": {"kind": "mlp"}, "learner": {"kind": k}} for k in SINUSOID]
    of_learners += [small | {"learner": {"kind": k}, "steps": 2 * (k != "finetune")} for k in IMAGES]
    of_models = [small | {"model": {"kind": kind}} for kind in MODELS]
    of_tasks = [{"tasks": {"kind": kind}, "model": {"kind": "mlp", "hidden": [4]}} for kind in FAMILIES]
    jobs = map(config.parse_job, of_learners + of_models + of_tasks)
    return [config.job_dict(job) | {"pretrain": {"epochs": 1}, "tune": {"num_samples": 2}} for job in jobs]


def build(path: Path) -> None:
    """All that is done with a job before anything runs."""
    job = config.load_job(str(path))
    assert isinstance(job.warnings, list)
    store = config.open_data(job)
    config.identity_sha256(config.identity(job, store))
    assert config.parse_job(parse_yaml(config.dump_job(config.anchored(job)), "dump")) == config.anchored(job)
    config.build_experiment(config.with_store(job, store), "run")


def test_changed_values(search: Callable[..., None], contents: list[dict[str, Any]], tmp_path: Path) -> None:
    def holds(content: Any) -> None:
        (tmp_path / "job.yaml").write_bytes(yaml.safe_dump(content).encode())
        settles(lambda: build(tmp_path / "job.yaml"))
        assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]

    search(st.sampled_from(contents).flatmap(lambda content: trees(content, PLAIN_ONLY)), holds)


def test_changed_text(search: Callable[..., None], contents: list[dict[str, Any]], tmp_path: Path) -> None:
    texts = [yaml.safe_dump(content, sort_keys=False).encode() for content in contents]

    def holds(text: bytes) -> None:
        (tmp_path / "job.yaml").write_bytes(text)
        settles(lambda: build(tmp_path / "job.yaml"))
        assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]

    search(st.sampled_from(texts).flatmap(cut_up), holds)
