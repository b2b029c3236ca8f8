"""The submitted jobs of a cluster: send one, find one, follow it, stop it."""

from __future__ import annotations

import asyncio
import datetime
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from metadist.distributed.dashboard import Unreachable
from metadist.distributed.job_client import Refused
from metadist.distributed.submission import GRACE_VARIABLE, NAME_KEY, NUMBER_KEY, RUN_KEY, Submission
from metadist.errors import UserError, nearest

#: seconds without a word after which a job is asked for its state
QUIET_SECONDS = 15.0
#: seconds for which a dashboard that is lost is tried again
LOST_SECONDS = 60.0
#: seconds between two looks at a job, and the first pause of those for a lost dashboard
PAUSE_SECONDS = 0.5
#: seconds that Ray leaves a job to end in, where the job does not say
RAY_GRACE_SECONDS = 3.0
#: seconds beyond them within which the cluster must have noted the end
MARGIN_SECONDS = 20.0

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Attempt:
    """One submission of a job.

    Attributes:
        id: the submission's, on its cluster.
        name: the job's; `None` for what was not submitted by metadist.
        number: which attempt at the job this is, from 1.
        run: folder of its run.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: what the cluster says of the status.
        driver_code: the exit code of the job's driver, if it had one; below 0 for a signal.
        started, ended: times, as far as they have come.
        grace: seconds that the job has for its end when it is stopped.
    """

    id: str
    name: str | None
    number: int
    run: str | None
    status: str
    message: str
    driver_code: int | None
    started: datetime.datetime | None
    ended: datetime.datetime | None
    grace: float

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in _ENDED

    @property
    def exit_code(self) -> int | None:
        """The job's own exit code, as a shell would see it; `None` while it runs."""
        if not self.over:
            return None
        if self.driver_code is not None:
            return self.driver_code if self.driver_code >= 0 else 128 - self.driver_code
        # Ray keeps no code of a job that it stopped, by SIGTERM; one without a driver never began.
        return {"SUCCEEDED": 0, "STOPPED": 143}.get(self.status, 1)


class ClusterJobs:
    """The jobs of the cluster whose dashboard a client speaks to."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def all(self) -> list[Attempt]:
        """Every submission, oldest first."""
        found = [_attempt(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda attempt: (attempt.started or _BEGINNING, attempt.number))

    def find(self, name: str) -> Attempt:
        """The last attempt at the job of a name, or the submission of an id.

        Raises:
            UserError: there is none.
        """
        attempts = self.all()
        for attempt in reversed(attempts):
            if name in (attempt.id, attempt.name):
                return attempt
        names = [known for attempt in attempts for known in (attempt.id, attempt.name) if known]
        hint = nearest(name, names) or "`metadist jobs list` shows them."
        raise UserError("JOB", name, "the name or the id of a job on the cluster", hint)

    def attempts(self, name: str) -> list[Attempt]:
        """The attempts at the job of a name, oldest first."""
        return [attempt for attempt in self.all() if attempt.name == name]

    def submit(self, submission: Submission) -> Attempt:
        """Send a job.

        Raises:
            UserError: an attempt of the same name has not ended yet, or the files are too many for a dashboard.
        """
        before = self.attempts(submission.name)
        for attempt in before:
            if not attempt.over:
                raise UserError(
                    "--name",
                    submission.name,
                    f"a name whose job has ended; {attempt.id} is {attempt.status}",
                    f"Follow it (metadist jobs logs {attempt.name} --follow), stop it (metadist jobs stop "
                    f"{attempt.name}), or give another --name.",
                )
        number = 1 + max((attempt.number for attempt in before), default=0)
        identifier = f"{submission.name}-{number}"
        try:
            self._client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=identifier,
                runtime_env=submission.runtime_env,
                metadata=submission.metadata | {NUMBER_KEY: str(number)},
            )
        except Refused as error:
            if "already exists" not in str(error):
                raise
            hint = "Somebody else submits it at this moment: see `metadist jobs list`."
            raise UserError("--name", submission.name, f"a name without an attempt {number}", hint) from error
        return _attempt(self._client.get_job_info(identifier))

    def refresh(self, attempt: Attempt) -> Attempt:
        """Its state now."""
        return _attempt(self._client.get_job_info(attempt.id))

    def logs(self, attempt: Attempt) -> str:
        """All that its driver has printed, errors too."""
        return str(self._client.get_job_logs(attempt.id))

    def stop(self, attempt: Attempt) -> None:
        """Send it SIGTERM: it ends its step and saves."""
        self._client.stop_job(attempt.id)

    def wait(self, attempt: Attempt) -> Attempt:
        """Wait for the end of one that was stopped, for as long as it may take.

        The result has not ended where even that was too short.
        """
        deadline = time.monotonic() + attempt.grace + MARGIN_SECONDS
        while not (now := self.refresh(attempt)).over and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
        return now

    def follow(self, attempt: Attempt, write: Callable[[str], None], shown: int = 0) -> Attempt:
        """Hand on what its driver prints until it ends.

        Args:
            write: takes the next characters of the log.
            shown: how many it has taken before.

        Raises:
            Unreachable: the dashboard did not answer for a minute; the job goes on.
        """
        return asyncio.run(self._follow(attempt, write, shown))

    async def _follow(self, attempt: Attempt, write: Callable[[str], None], shown: int) -> Attempt:
        def show(text: str, start: int) -> None:
            # Every stream begins with the first line again.
            nonlocal shown
            if start + len(text) > shown:
                write(text[max(0, shown - start) :])
                shown = start + len(text)

        while True:
            start = 0
            async for text in self._stream(attempt):
                show(text, start)
                start += len(text)
            # The stream may have broken off, or ended orderly, while the job goes on, and before the last lines: what
            # counts is the job's state, and then the whole log.
            now, text = await self._look(attempt)
            show(text, 0)
            if now.over:
                return now
            await asyncio.sleep(PAUSE_SECONDS)

    async def _look(self, attempt: Attempt) -> tuple[Attempt, str]:
        """Its state and its log; a dashboard that is lost is tried again for a while."""
        pause, deadline = PAUSE_SECONDS, time.monotonic() + LOST_SECONDS
        while True:
            try:
                now = self.refresh(attempt)
                break
            except (Unreachable, Refused):
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 10.0)
        try:
            return now, self.logs(now)
        except (Unreachable, Refused):  # of a node that is gone, say
            return now, ""

    async def _stream(self, attempt: Attempt) -> AsyncIterator[str]:
        """The log as it grows, until the connection breaks or falls silent for a job that has ended."""
        stream = self._client.tail_job_logs(attempt.id)
        coming: asyncio.Task[str] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(stream))
                await asyncio.wait([coming], timeout=QUIET_SECONDS)
                if not coming.done():
                    if self.refresh(attempt).over:
                        return
                    continue
                text, coming = coming.result(), None
                yield text
        except Exception:  # of many kinds, all of which mean that no more comes
            return
        finally:
            if coming is not None:
                coming.cancel()


_BEGINNING = datetime.datetime.fromtimestamp(0, datetime.UTC)


def _attempt(details: Any) -> Attempt:
    about = details.metadata or {}
    variables = (details.runtime_env or {}).get("env_vars") or {}
    name, grace = about.get(NAME_KEY), str(variables.get(GRACE_VARIABLE, ""))
    return Attempt(
        id=str(details.submission_id),
        name=name,
        number=int(about[NUMBER_KEY]) if name and re.fullmatch(r"\d+", about.get(NUMBER_KEY, "")) else 0,
        run=about.get(RUN_KEY),
        status=str(getattr(details.status, "value", details.status)),
        message=str(details.message or ""),
        driver_code=details.driver_exit_code,
        started=_time(details.start_time),
        ended=_time(details.end_time),
        grace=float(grace) if re.fullmatch(r"\d+", grace) else RAY_GRACE_SECONDS,
    )


def _time(milliseconds: int | None) -> datetime.datetime | None:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).astimezone() if milliseconds else None
