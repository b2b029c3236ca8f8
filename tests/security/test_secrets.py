"""Passwords of addresses and of the environment: in no message, and in nothing that a run is described by.

tests/tracking shows that they are masked in parameters, tags and texts that are sent to a store.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metadist import config
from metadist.distributed.run import flat_params, run_tags

SECRET = "hunter2-secret"


@pytest.mark.parametrize("debug", [[], ["--debug"]])
@pytest.mark.parametrize(
    "setting",
    [
        f"storage=foo://user:{SECRET}@host/runs",
        f"data={{source: 's3x://key:{SECRET}@bucket/store'}}",
        f"tracking.uri=mysqlx://user:{SECRET}@host/db",
        f"init_from=foo://user:{SECRET}@host/run",
    ],
)
def test_messages(
    metadist: Callable[..., Any], content: dict[str, Any], tmp_path: Path, setting: str, debug: list[str]
) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content | {"tasks": {"ways": 2}, "model": {"kind": "mlp"}}))
    ended = metadist("train", str(tmp_path / "job.yaml"), "--set", setting, *debug)
    assert ended.code == 2, ended.err
    assert SECRET not in ended.err + ended.out


def test_the_environment_is_not_recorded(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    variables = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN")
    for name in variables:
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://user:{SECRET}@host/db")
    job = config.anchored(config.parse_job(content | {"tracking": {}}))
    written = [config.dump_job(job), str(flat_params(config.job_dict(job))), str(run_tags())]
    written.append(str(config.identity(job, None)))
    assert SECRET not in "".join(written)
