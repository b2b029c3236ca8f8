"""`metadist compare`: paired differences, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROTOCOL = {"set": "test-4x5w1s1q-seed0", "count": 4, "ways": 5, "shots": 1, "query": 1}


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a file of scores in the working folder; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, scores: list[int], **protocol: Any) -> str:
        one = {"protocol": PROTOCOL | protocol, "steps": 3, "norm": "batch", "rows": 5, "scores": scores}
        Path(name).write_text(json.dumps({"tests": [one | {"from_scratch": [1, 1, 1, 1]}]}))
        return name

    return write


def test_a_hand_computed_case(metadist: Callable[..., Any], scored: Callable[..., str]) -> None:
    """Against the first: −0.2, 0, −0.4, −0.2, and −0.2, −0.2, −0.4, −0.4; Student's t of 3 is 3.182446305."""
    files = [scored(f"{n}.json", s) for n, s in (("a", [5, 4, 3, 4]), ("b", [4, 4, 1, 3]), ("c", [4, 3, 1, 2]))]
    ended = metadist("compare", *files, "--tracking", "none", "--json")
    assert ended.code == 0, ended.err
    first, second, third = ended.result["runs"]
    assert (first["run"], first["accuracy"]) == ("a.json", pytest.approx(0.8))
    assert "difference" not in first
    assert second["difference"] == pytest.approx(-0.2)
    assert second["difference_ci95"] == pytest.approx(3.182446305 * np.sqrt(0.08 / 3 / 4), rel=1e-8)
    assert second["excludes_zero"] is False
    assert third["difference"] == pytest.approx(-0.3)
    assert third["difference_ci95"] == pytest.approx(3.182446305 * np.sqrt(0.04 / 3 / 4), rel=1e-8)
    assert third["excludes_zero"] is True
    assert "-30.00 ± 18.37" in ended.err
    assert "against a.json" in ended.err


def test_runs_and_files(metadist: Callable[..., Any], run: str, tmp_path: Path) -> None:
    """A run by its folder or its name, against itself with another number of adaptation steps."""
    file = tmp_path / "scores.json"
    assert metadist("evaluate", run, "--steps", "5", "--scores", str(file)).code == 0
    by_folder = metadist("compare", run, str(file), "--json")
    assert by_folder.code == 0, by_folder.err
    own, other = by_folder.result["runs"]
    summary = json.loads(Path(run, "summary.json").read_text())
    assert own["accuracy"] == pytest.approx(summary["test"]["accuracy"])
    assert own["ci95"] == pytest.approx(summary["test"]["ci95"])
    assert (own["steps"], other["steps"]) == (1, 5)
    storage, name = Path(run).parent, Path(run).name
    by_name = metadist("compare", name, str(file), "--storage", str(storage), "--tracking", "none", "--json")
    assert [row["accuracy"] for row in by_name.result["runs"]] == [own["accuracy"], other["accuracy"]]


def test_other_protocols_are_refused(metadist: Callable[..., Any], scored: Callable[..., str], run: str) -> None:
    files = scored("a.json", [5, 4, 3, 4]), scored("b.json", [5, 4, 3, 4], query=15, set="test-4x5w1s15q-seed0")
    ended = metadist("compare", *files, "--json")
    assert (ended.code, ended.out) == (2, "")
    assert "RUN: got 'b.json', expected a run that was judged on the same tasks as a.json" in ended.err
    assert "different: query (1 and 15)." in ended.err
    other = metadist("compare", files[0], run)
    assert other.code == 2
    assert "ways (5 and 2)" in other.err
    assert "data.sha256" in other.err


def test_mistakes(metadist: Callable[..., Any], scored: Callable[..., str], run: str, tmp_path: Path) -> None:
    file = scored("a.json", [5, 4, 3, 4])
    older = Path(shutil.copytree(run, tmp_path / "older"))
    (older / "test-scores.json").unlink()
    Path("no.json").write_text("{")
    for arguments, message in (
        ([file], "RUN: got 'a.json', expected at least two different runs"),
        ([file, file], "expected at least two different runs"),
        ([file, "nowhere"], "RUN: got 'nowhere', expected a run folder, or a run under runs"),
        ([file, "gone.json"], "expected a file of scores (No such file or directory)"),
        ([file, "no.json"], "expected a file of scores (no JSON)"),
        ([file, str(older)], "with test-scores.json in its folder"),
        ([file, str(tmp_path)], "expected a run folder (with run.json)"),
        ([file, run, "--query", "7"], "--query: got 7, expected 1, with which a.json was tested"),
    ):
        ended = metadist("compare", *arguments, "--tracking", "none")
        assert ended.code == 2, (arguments, ended.err)
        assert message in ended.err
        assert "Traceback" not in ended.err
