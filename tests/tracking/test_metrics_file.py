"""The metrics in the run's folder: torn ends, resumes, odd numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

from metadist.tracking import MetricsFile


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "metrics.jsonl")
    log = MetricsFile(path)
    log.append(1, {"a": 1})
    log.append(2, {"a": 0.5, "b": math.nan, "c": math.inf})
    read = MetricsFile.read(path)  # Without a close before.
    assert read[0] == (1, {"a": 1.0})
    assert math.isnan(read[1][1]["b"])
    assert read[1][1]["c"] == math.inf
    assert set(json.loads(Path(path).read_text().splitlines()[0])) == {"step", "values", "time"}
    log.close()


def test_missing_file_reads_as_empty(tmp_path: Path) -> None:
    assert MetricsFile.read(str(tmp_path / "none")) == []


def test_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(str(path)) as log:
        log.append(1, {"a": 1.0})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "val')
    assert MetricsFile.read(str(path)) == [(1, {"a": 1.0})]
    with MetricsFile(str(path)) as log:
        assert path.read_bytes() == whole
        log.append(2, {"a": 2.0})
    assert MetricsFile.read(str(path)) == [(1, {"a": 1.0}), (2, {"a": 2.0})]


def test_broken_line_in_the_middle_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    odd = [
        '{"st',
        "[]",
        '{"step": 1e999, "values": {}}',
        '{"step": 2, "values": {"a": [1]}}',
        "[" * 100_000,
        "x" * 2**21,
    ]
    lines = ['{"step": 1, "values": {"a": 1}}', *odd, '{"step": 3, "values": {"a": 3}}', ""]
    path.write_text("\n".join(lines))
    assert [step for step, _ in MetricsFile.read(str(path))] == [1, 3]


def test_truncate_after_drops_what_the_resumed_run_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(str(path)) as log:
        for step in range(10):
            log.append(step, {"a": float(step)})
    path.write_bytes(path.read_bytes() + b"torn")
    with MetricsFile(str(path)) as log:
        log.truncate_after(6)
        log.append(7, {"a": 70.0})
    assert MetricsFile.read(str(path)) == [(s, {"a": float(s)}) for s in range(7)] + [(7, {"a": 70.0})]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
