"""What the actors of a run print: kept in the run's folder, and its last lines told when the run fails.

    actor: stdout, stderr, whatever wrote there ── its node's log monitor ── GCS ── this driver ── RUN_DIR/logs

Ray streams the lines to the driver and prints them there. `streaming` puts itself in the printer's place, by
two names of Ray's private parts: a run without its logs is better than no run, so nothing here ever raises.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from metadist.errors import UserError
from metadist.training.run_folder import LeaseLost, RunFolder

#: Ray's log monitor takes a line that begins so as the name of the actor that prints the lines after it
NAMES_ACTOR = ":actor_name:"
OURS = "metadist:"
#: lines of a failed run that its message ends with, and the length at which one is cut there
LAST_LINES, LONGEST = 20, 300
#: seconds without a line after which none is expected any more, and how long to wait for that; the stream is
#: about 0.1 s late on a quiet machine
QUIET, PATIENCE = 0.3, 3.0
#: lines kept of a process before it has said its name
UNNAMED_LINES = 200
_HANDLER = "metadist"


def name_this_process(run: str, actor: str) -> None:
    """Called in an actor: what its process has printed and will print belongs to `actor` of `run`."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
            os.write(number, f"{NAMES_ACTOR}{OURS}{run}/{actor}\n".encode())


class RunLogs:
    """The lines of one run's actors, from entering it until it is left.

    An error that passes through it, other than a user's mistake, gets the last lines as a note.

    Args:
        run: id of the run.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._folder: RunFolder | None = None
        self._place: Path | None = None
        self._remote: tempfile.TemporaryDirectory[str] | None = None
        self._waiting: list[tuple[str, list[str]]] = []
        self._recent: deque[tuple[str, str]] = deque(maxlen=1000)

    def keep_in(self, folder: RunFolder) -> None:
        """Write the lines, those before too, to `logs/ACTOR.log` of a folder that this driver holds."""
        with self._lock:
            self._folder = folder
            if folder.local is None:
                self._remote = tempfile.TemporaryDirectory(prefix="metadist-")
            self._place = Path(self._remote.name if self._remote else f"{folder.local}/logs")
            waiting, self._waiting = self._waiting, []
            for name, lines in waiting:
                self._write(name, lines)

    def add(self, name: str, lines: list[str]) -> None:
        """Lines that `name` printed."""
        with self._lock:
            if name != "ray":
                self._recent.extend((name, line) for line in lines)
            if self._place is None:
                self._waiting.append((name, lines))
            else:
                self._write(name, lines)

    def _write(self, name: str, lines: list[str]) -> None:
        assert self._folder is not None
        assert self._place is not None
        if self._remote is None and not self._folder.exists():
            return  # a run that never began was taken away
        with contextlib.suppress(OSError):
            self._place.mkdir(exist_ok=True)
            with (self._place / f"{name}.log").open("a", encoding="utf-8", errors="replace") as file:
                file.write("".join(f"{line}\n" for line in lines))

    def last_lines(self, failure: str = "") -> str:
        """The end of what was printed, for people; by the actors that `failure` names, or by all. May be empty."""
        with self._lock:
            recent = list(self._recent)
        named = {f"worker-{number}" for number in re.findall(r"\bworker[ -](\d+)", failure, re.IGNORECASE)}
        named |= {"server"} if "ServerActor" in failure else set()
        recent = [(name, line) for name, line in recent if name in named] or recent
        if not recent:
            return ""
        shown = [f"  {name} | {line[:LONGEST]}" for name, line in recent[-LAST_LINES:]]
        place = ""
        if self._folder is not None and self._folder.exists("logs" if self._remote is None else ""):
            place = f"\nlogs: {self._folder.location}/logs"
        return "\n".join(["last lines of the actors' logs:", *shown]) + place

    def __enter__(self) -> RunLogs:
        _stream.open(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _stream.close(self)
        if self._remote is not None:
            with contextlib.suppress(UserError, LeaseLost, OSError):
                self._upload(Path(self._remote.name))
            self._remote.cleanup()
        if isinstance(error, Exception) and not isinstance(error, UserError | LeaseLost):
            note = self.last_lines(str(error))
            if note:
                error.add_note(note)

    def _upload(self, place: Path) -> None:
        assert self._folder is not None
        for path in sorted(place.iterdir()):
            name = f"logs/{path.name}"
            before = self._folder.read(name) if self._folder.exists(name) else b""
            self._folder.write(name, before + path.read_bytes())


class _Stream:
    """Ray's stream of lines, given out to the runs that are open."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: dict[str, RunLogs] = {}
        self._names: dict[tuple[str, str], tuple[str, str]] = {}
        self._unnamed: dict[tuple[str, str], deque[str]] = {}
        self._last = 0.0

    def open(self, logs: RunLogs) -> None:
        with self._changed:
            self._open[logs.run] = logs

    def close(self, logs: RunLogs) -> None:
        with self._changed:
            self._open.pop(logs.run, None)

    def take(self, batch: Mapping[str, Any]) -> None:
        """Lines of one process, in Ray's thread, which must live on whatever they are."""
        with contextlib.suppress(Exception), self._changed:
            lines = [str(line) for line in batch.get("lines") or ()]
            if lines:
                self._last = time.monotonic()
                self._give(batch, lines)

    def _give(self, batch: Mapping[str, Any], lines: list[str]) -> None:
        source, name = str(batch.get("pid")), str(batch.get("actor_name") or "")
        if source == "autoscaler":
            return
        if not source.isdigit():  # of Ray's own processes
            for logs in self._open.values():
                logs.add("ray", [f"({source}) {line}" for line in lines])
            return
        process = (str(batch.get("ip")), source)
        if name.startswith(OURS):
            run, _, actor = name.removeprefix(OURS).rpartition("/")
            self._names[process] = (run, actor)
            lines = [*self._unnamed.pop(process, ()), *lines]
        elif process not in self._names:
            self._unnamed.setdefault(process, deque(maxlen=UNNAMED_LINES)).extend(lines)
            return
        run, actor = self._names[process]
        if run in self._open:
            self._open[run].add(actor, lines)

    def settle(self) -> None:
        """Wait until no more lines come, within bounds; at once when nobody would keep them."""
        with self._changed:
            deadline = time.monotonic() + PATIENCE
            self._last = max(self._last, time.monotonic())  # what was printed just now is on its way
            while self._open and (now := time.monotonic()) < min(deadline, self._last + QUIET):
                self._changed.wait(min(deadline, self._last + QUIET) - now)

    def forget(self) -> None:
        """The processes of a session that has ended: their numbers will be given again."""
        with self._changed:
            self._names.clear()
            self._unnamed.clear()


_stream = _Stream()
#: waits for late lines; call it when a run's actors have ended and the session has not
settle = _stream.settle


@contextlib.contextmanager
def streaming() -> Iterator[None]:
    """Within a Ray session of this driver: lines go to the open `RunLogs` instead of the console."""
    undo = contextlib.ExitStack()
    with contextlib.suppress(Exception):
        _divert(undo)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            undo.close()
        _stream.forget()


def _divert(undo: contextlib.ExitStack) -> None:
    from ray._private import ray_logging, worker

    def instead(batch: Mapping[str, Any], ignore_prefix: bool) -> None:
        _stream.take(batch)

    # Lines of processes: their printer is one of the dispatcher's handlers.
    dispatcher = ray_logging.global_worker_stdstream_dispatcher
    dispatcher.add_handler(_HANDLER, _stream.take)
    undo.callback(dispatcher.remove_handler, _HANDLER)
    dispatcher.remove_handler("ray_print_logs")
    # What the raylet tells of dead workers is printed by another thread, which looks the printer up by its name.
    undo.callback(setattr, worker, "print_to_stdstream", worker.print_to_stdstream)
    worker.print_to_stdstream = instead
