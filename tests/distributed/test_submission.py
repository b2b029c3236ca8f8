"""What is sent to a cluster, and what is refused before anything is sent."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import metadist
from metadist.config import load_job
from metadist.distributed.submission import GRACE_VARIABLE, Request, check_request, packed
from metadist.errors import UserError

JOB = """\
name: toy
storage: s3://bucket/runs/
tasks: {kind: sinusoid}
model: {kind: mlp}
tracking: {uri: none}
"""
IMAGES = ("tasks={kind: images}", "model={kind: conv4}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy job.yaml"
    path.write_text(JOB)
    return path


def request(file: Path, *overrides: str, **given: Any) -> Request:
    job = load_job(str(file), overrides)
    return Request(**{"file": file, "job": job, "arguments": (), "name": job.name, "environment": {}} | given)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["storage=runs"], "storage: got 'runs', expected a place that outlives the job"),
        (["storage=runs", "resources.shared_storage=true"], "storage: got 'runs', expected a place that outlives"),
        (["storage=/data/runs"], "storage: got '/data/runs', expected a place that every node .* --shared-storage"),
        (["storage=~/runs"], "storage: got '~/runs', expected a place that every node"),
        (["storage=file:///data/runs"], "storage: got 'file:///data/runs', expected a place that every node"),
        (["tracking.uri=null"], "tracking.uri: got None, expected an address: mlflow.db .* --env MLFLOW_TRACKING_URI"),
        (["tracking.uri=mlflow.db"], "tracking.uri: got 'mlflow.db', expected a place that outlives"),
        (["tracking.uri=sqlite:///mlflow.db"], "tracking.uri: .*expected a place that outlives"),
        (["tracking.uri=sqlite:////data/mlflow.db"], "tracking.uri: .*expected a place that every node"),
        (["tracking.uri=file:///data/mlruns"], "tracking.uri: .*expected a place that every node"),
        (["tracking.uri=htp://host"], "tracking.uri: .*Did you mean 'http'"),
        ([*IMAGES, "data.source=photos"], "data.source: got 'photos', expected a place that outlives .* --working-dir"),
        ([*IMAGES, "data.source=/data/photos"], "data.source: got '/data/photos', expected a place that every node"),
        (["runtime=inprocess"], "runtime: got 'inprocess', expected ray"),
        (["name=my job"], "--name: got 'my job', expected at most 100 letters.*give another one with --name"),
    ],
)
def test_what_would_be_lost_is_refused(file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_request(request(file, *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["tracking.uri=http://mlflow:5000"],
        ["tracking.uri=postgresql://host/mlflow"],
        ["storage=/data/runs", "tracking.uri=sqlite:////data/mlflow.db", "resources.shared_storage=true"],
        ["storage=~/runs", "resources.shared_storage=true"],
        [*IMAGES, "data.source=sklearn:digits"],
        [*IMAGES, "data.source=torchvision:Omniglot"],
        [*IMAGES, "data.source=s3://bucket/store"],
        [*IMAGES, "data.source=/data/store", "resources.shared_storage=true"],
        ["data.source=photos"],  # sinusoids need no data
    ],
)
def test_what_the_cluster_sees_is_sent(file: Path, overrides: list[str]) -> None:
    assert check_request(request(file, *overrides)).environment == {}


def test_data_may_lie_in_the_working_folder(file: Path) -> None:
    (file.parent / "photos").mkdir()
    assert check_request(request(file, *IMAGES, "data.source=photos", working_folder=file.parent))


def test_the_tracking_address_of_this_environment_goes_along(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here:5000")
    asked = request(file, "tracking.uri=null")
    assert check_request(asked).environment == {"MLFLOW_TRACKING_URI": "http://here:5000"}
    asked = request(file, "tracking.uri=null", environment={"MLFLOW_TRACKING_URI": "http://there:5000"})
    assert check_request(asked).environment == {"MLFLOW_TRACKING_URI": "http://there:5000"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI: .*expected a place that outlives"):
        check_request(request(file, "tracking.uri=null"))


def test_the_job_file_alone_is_sent(file: Path) -> None:
    (file.parent / "secret").touch()
    arguments = ["--set", "learner={kind: maml, inner_lr: 0.1}", "--steps", "5"]
    with packed(request(file, arguments=arguments, environment={"A": "b"}), "token") as sent:
        folder = Path(sent.runtime_env["working_dir"])
        assert [path.name for path in folder.iterdir()] == ["job.yaml"]
        assert (folder / "job.yaml").read_text() == JOB
    assert not folder.exists()
    # One process, so that signals and the exit code are the driver's own; words as a shell reads them.
    shell, *words = shlex.split(sent.entrypoint)
    assert shell == "exec"
    assert words[:4] == ["python", "-m", "metadist", "train"]
    assert words[4:] == ["job.yaml", "--address", "auto", "--run", "toy", "--json", *arguments]
    assert sent.runtime_env["env_vars"] == {GRACE_VARIABLE: "120", "A": "b"}
    assert sent.metadata == {"metadist.name": "toy", "metadist.run": "s3://bucket/runs/toy"}


def test_own_modules_are_sent_with_a_working_folder(file: Path, tmp_path: Path) -> None:
    below = tmp_path / "jobs" / "deep.yaml"
    below.parent.mkdir()
    below.write_text(JOB)
    with packed(check_request(request(below, working_folder=tmp_path)), "token") as sent:
        assert sent.runtime_env["working_dir"] == str(tmp_path)
        assert "train jobs/deep.yaml" in sent.entrypoint
    with pytest.raises(UserError, match=r"JOB: .*expected a file in --working-dir"):
        check_request(request(file, working_folder=below.parent))
    with pytest.raises(UserError, match=r"--working-dir: .*expected a folder"):
        check_request(request(file, working_folder=file))


def test_metadist_itself_is_sent_unless_the_cluster_has_it(file: Path) -> None:
    with packed(request(file), "token") as sent:
        assert sent.runtime_env["py_modules"] == [str(Path(metadist.__file__).parent)]
    with packed(request(file, package=False), "token") as sent:
        assert "py_modules" not in sent.runtime_env  # Ray fails on an empty list


def test_a_cluster_without_tokens_is_not_asked_for_one(file: Path) -> None:
    with packed(request(file), "disabled") as sent:
        assert sent.runtime_env["env_vars"]["RAY_AUTH_MODE"] == "disabled"


def test_the_grace_time_may_be_changed(file: Path) -> None:
    with packed(request(file, environment={GRACE_VARIABLE: "600"}), "token") as sent:
        assert sent.runtime_env["env_vars"][GRACE_VARIABLE] == "600"
