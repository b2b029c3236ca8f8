"""The metrics kept in the run's folder: JSON lines that outlive any tracking server."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from metadist.reading import parse_json

#: bytes of a line that are read at once; none of ours has so many
_LONGEST = 1 << 20


class MetricsFile:
    """Appends one line `{"step": t, "values": {…}, "time": seconds}` for each call.

    A line reaches the operating system as soon as it is written, so a killed process loses none; one
    that the machine's end tore is dropped when the file is read or written again.

    Args:
        path: the file; made, with its folder, when missing.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            _drop_torn_end(self._path)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line; numbers that are none are written as NaN and Infinity."""
        line = {"step": int(step), "values": {k: float(v) for k, v in values.items()}, "time": time.time()}
        # In one write, so that the line buffer never passes on half a line.
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps than `step`: a resumed run writes them again."""
        self._file.close()
        kept = [raw for raw, at, _ in _lines(self._path) if at <= step]
        # Exchanged as a whole: an end of the process in the midst leaves the old file.
        new = self._path.with_name(self._path.name + ".new")
        with new.open("wb") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def read(path: str) -> list[tuple[int, dict[str, float]]]:
        """All whole lines of the file, in order; an empty list when there is no file."""
        file = Path(path)
        return [(step, values) for _, step, values in _lines(file)] if file.exists() else []


def _lines(path: Path) -> Iterator[tuple[bytes, int, dict[str, float]]]:
    with path.open("rb") as file:
        while raw := file.readline(_LONGEST):
            if not raw.endswith(b"\n"):
                continue
            try:
                line = parse_json(raw)
                step, values = int(line["step"]), {str(k): float(v) for k, v in line["values"].items()}
            except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
                continue  # A torn line that something was written behind.
            yield raw, step, values


def _drop_torn_end(path: Path) -> None:
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
