"""The jobs of a cluster, whose dashboard is a stand-in that breaks off as real ones do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from metadist.distributed import cluster_jobs
from metadist.distributed.cluster_jobs import ClusterJobs
from metadist.distributed.dashboard import Unreachable
from metadist.distributed.job_client import Refused
from metadist.distributed.submission import Submission
from metadist.errors import UserError

LOG = "first\nsecond\nthird\n"
LOST = Unreachable("--address", "http://head:8265", "a dashboard that can be reached")


def details(identifier: str, status: str, code: int | None = None, **more: Any) -> SimpleNamespace:
    """A job as the dashboard describes it; `NAME-2` is metadist's second attempt at NAME."""
    name, _, number = identifier.rpartition("-")
    about = {"metadist.name": name, "metadist.attempt": number, "metadist.run": f"s3://b/{name}"} if name else None
    plain = {"message": "", "start_time": 1_000, "end_time": None, "runtime_env": None, "metadata": about}
    return SimpleNamespace(submission_id=identifier, status=status, driver_exit_code=code, **(plain | more))


@dataclass
class Dashboard:
    """Stands in for Ray's client.

    Attributes:
        jobs: as they are listed.
        streams: for each call for the growing log in turn, what happens: texts, an error, a call, or silence (`None`).
        looks: what each look at a job's state finds in turn; the last one stays.
    """

    jobs: list[SimpleNamespace] = field(default_factory=list)
    streams: list[list[Any]] = field(default_factory=list)
    looks: list[Any] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)

    def list_jobs(self) -> list[SimpleNamespace]:
        return self.jobs

    def submit_job(self, **given: Any) -> None:
        if any(job.submission_id == given["submission_id"] for job in self.jobs):
            raise Refused(f"ValueError: Job with submission_id {given['submission_id']} already exists.")
        self.sent.append(given)
        self.jobs.append(details(given["submission_id"], "PENDING", metadata=given["metadata"]))

    def get_job_info(self, identifier: str) -> Any:
        if not self.looks:
            return next(job for job in self.jobs if job.submission_id == identifier)
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return look

    def get_job_logs(self, identifier: str) -> str:
        return LOG

    async def tail_job_logs(self, identifier: str) -> AsyncIterator[str]:
        for event in self.streams.pop(0) if self.streams else []:
            if isinstance(event, Exception):
                raise event
            if event is None:
                await asyncio.Event().wait()
            elif callable(event):
                event()
            else:
                yield event


def submission(name: str = "toy") -> Submission:
    return Submission(name, "exec true", {}, {"metadist.name": name})


def test_attempts_are_numbered() -> None:
    dashboard = Dashboard([details("toy-1", "FAILED", 1), details("toy-2-1", "RUNNING"), details("foreign", "RUNNING")])
    jobs = ClusterJobs(dashboard)
    assert jobs.submit(submission()).id == "toy-2"
    assert jobs.submit(submission("other")).id == "other-1"
    assert [given["metadata"]["metadist.attempt"] for given in dashboard.sent] == ["2", "1"]
    assert jobs.find("toy").id == "toy-2"
    assert jobs.find("toy-1").id == "toy-1"
    assert jobs.find("foreign").name is None


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_one_attempt_at_a_time(status: str) -> None:
    dashboard = Dashboard([details("toy-1", status)])
    with pytest.raises(UserError, match=f"--name: got 'toy', expected a name whose job has ended; toy-1 is {status}"):
        ClusterJobs(dashboard).submit(submission())
    assert not dashboard.sent


def test_two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard = Dashboard([details("toy-1", "RUNNING")])
    monkeypatch.setattr(dashboard, "list_jobs", list)
    with pytest.raises(UserError, match="a name without an attempt 1"):
        ClusterJobs(dashboard).submit(submission())


def test_unknown_job() -> None:
    with pytest.raises(UserError, match=r"JOB: got 'toi', .* Did you mean 'toy'"):
        ClusterJobs(Dashboard([details("toy-1", "RUNNING")])).find("toi")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("RUNNING", None, None),
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 143, 143),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),  # it never began, or its node was lost
        ("STOPPED", None, 143),
    ],
)
def test_the_exit_code_is_the_jobs_own(status: str, code: int | None, expected: int | None) -> None:
    assert ClusterJobs(Dashboard([details("toy-1", status, code)])).find("toy").exit_code == expected


RUNNING, DONE = details("toy-1", "RUNNING"), details("toy-1", "SUCCEEDED", 0)


@pytest.mark.parametrize(
    ("streams", "looks"),
    [
        ([["first\nsec", "ond\nthird\n"]], [DONE]),
        ([["first\n"]], [DONE]),  # the last lines are missing
        ([["first\n"], ["first\nsecond\n"]], [RUNNING, RUNNING, DONE]),  # ends orderly while the job goes on
        ([["first\n", OSError("reset")], [LOG]], [RUNNING, DONE]),
        ([["first\n", OSError("reset")], [LOG]], [LOST, LOST, RUNNING, DONE]),
        ([[None]], [RUNNING, DONE]),  # silent, and nobody would ever know
        ([["first\n", None]], [LOST, DONE]),
        ([], [DONE]),
    ],
)
def test_every_line_is_shown_once(streams: list[list[Any]], looks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_jobs, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(cluster_jobs, "PAUSE_SECONDS", 0.01)
    dashboard = Dashboard([RUNNING], [list(events) for events in streams], list(looks))
    jobs, shown = ClusterJobs(dashboard), []
    assert jobs.follow(jobs.find("toy"), shown.append).exit_code == 0
    assert "".join(shown) == LOG


def test_what_was_shown_before_is_left_out() -> None:
    dashboard = Dashboard([DONE], [[LOG]])
    jobs, shown = ClusterJobs(dashboard), []
    jobs.follow(jobs.find("toy"), shown.append, len("first\nse"))
    assert "".join(shown) == "cond\nthird\n"


def test_a_dashboard_that_stays_lost_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_jobs, "LOST_SECONDS", 0.1)
    monkeypatch.setattr(cluster_jobs, "PAUSE_SECONDS", 0.01)
    dashboard = Dashboard([RUNNING], [["first\n"]], [LOST])
    jobs, shown = ClusterJobs(dashboard), []
    with pytest.raises(Unreachable):
        jobs.follow(jobs.find("toy"), shown.append)
    assert shown == ["first\n"]


def test_the_time_that_a_stopped_job_has_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = details("toy-1", "RUNNING", runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}})
    jobs = ClusterJobs(Dashboard([own, details("foreign", "RUNNING")]))
    assert jobs.find("toy").grace == 600
    assert jobs.find("foreign").grace == 3


def test_waiting_for_the_end_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_jobs, "MARGIN_SECONDS", 0.0)
    monkeypatch.setattr(cluster_jobs, "RAY_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(cluster_jobs, "PAUSE_SECONDS", 0.01)
    jobs = ClusterJobs(Dashboard([RUNNING], looks=[RUNNING]))
    assert not jobs.wait(jobs.find("toy")).over
    jobs = ClusterJobs(Dashboard([RUNNING], looks=[DONE]))
    assert jobs.wait(jobs.find("toy")).over
