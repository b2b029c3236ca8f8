"""rows.yaml: what it lists, and each mistake in one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from metadist.errors import UserError
from metadist.paper.rows import find_rows, read_table

LIST = """\
digits:
  title: Digits
  queries: [15, 1]
  baselines: [plain]
  rows:
    plain:
    maml: {seeds: [0, 2], goal: 97, paper: {value: 98.7 ± 0.4, mark: R, source: "Finn, 2017"}}
waves: {title: Waves, queries: [50], rows: {big: {needs: gpu}}}
"""


def listed(folder: Path, text: str = LIST) -> Path:
    (folder / "rows.yaml").write_text(text)
    return folder


def test_what_is_listed(tmp_path: Path) -> None:
    digits, waves = read_table(listed(tmp_path))
    assert (digits.config.title, digits.config.queries, digits.config.baselines) == ("Digits", [15, 1], ["plain"])
    plain, maml = digits.rows
    assert (plain.id, plain.config.seeds, plain.config.paper) == ("digits/plain", [0], None)
    assert maml.config.seeds == [0, 2]
    assert maml.config.paper is not None
    assert maml.config.paper.value == "98.7 ± 0.4"
    assert maml.job == tmp_path / "digits" / "maml.yaml"
    assert maml.summary(2) == tmp_path / "digits" / "maml" / "seed-2.json"
    assert waves.rows[0].config.needs == "gpu"


def test_rows_whose_runs_a_row_takes(tmp_path: Path) -> None:
    runs = "runs: {learner.teacher: digits/maml, learner.experts: [digits/plain, digits/maml]}"
    digits, waves = read_table(listed(tmp_path, LIST.replace("needs: gpu", runs)))
    plain, maml = digits.rows
    assert waves.rows[0].runs == {"learner.teacher": maml, "learner.experts": (plain, maml)}
    assert waves.rows[0].taken == {"digits/maml": maml, "digits/plain": plain}


def test_rows_by_name(tmp_path: Path) -> None:
    table = read_table(listed(tmp_path))
    assert [row.id for row in find_rows(table, ["waves", "digits/maml"])] == ["digits/maml", "waves/big"]
    with pytest.raises(UserError, match=r"ROW: got 'digits/mamll', .* Did you mean 'digits/maml'\?"):
        find_rows(table, ["digits/mamll"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("goal: 97", "gaol: 97", "digits.rows.maml.gaol: got 97, .* Did you mean 'goal'?"),
        ("goal: 97", "goal: high", "digits.rows.maml.goal: got 'high', expected a number"),
        ("mark: R", "mark: X", "digits.rows.maml.paper.mark: got 'X', expected one of R, S, M"),
        ("mark: R, ", "", "digits.rows.maml.paper: .* expected a section with the key mark"),
        (
            '{value: 98.7 ± 0.4, mark: R, source: "Finn, 2017"}',
            "98.7",
            "digits.rows.maml.paper: got 98.7, expected a sec",
        ),
        ("needs: gpu", "judged: {row: digits/mam}", "waves.rows.big.judged.row: got .* Did you mean 'digits/maml'?"),
        ("needs: gpu", "judged: {row: waves/big}", "waves.rows.big.judged.row: got .* with a job of its own"),
        ("needs: gpu", "needs: tpu", "waves.rows.big.needs: got 'tpu', expected one of cpu, gpu"),
        ("goal: 97", "against: [plan]", "digits.rows.maml.against: got 'plan', .* Did you mean 'plain'?"),
        ("[0, 2]", "[0, 0]", "digits.rows.maml.seeds: got .*, expected different whole numbers"),
        ("[0, 2]", "[]", "digits.rows.maml.seeds: got"),
        ("[15, 1]", "[]", "digits.queries: got"),
        ("[plain]", "[plane]", "digits.baselines: got 'plane', .* Did you mean 'plain'?"),
        ("needs: gpu", "judged: {row: digits/maml}, pretrain: all", "waves.rows.big.pretrain: got 'all', .* nothing"),
        (
            "needs: gpu",
            "runs: {learner.teacher: digits/mam}",
            "big.runs.learner.teacher: .* mean 'digits/maml'?",
        ),
        (
            "needs: gpu",
            "runs: {learner.teacher: waves/big}",
            "runs.learner.teacher: got .* row above this",
        ),
        ("needs: gpu", "runs: {learner.teacher: 3}", "waves.rows.big.runs: got"),
        ("needs: gpu", "judged: {row: digits/maml}, runs: {a: digits/maml}", "waves.rows.big.runs: got .* nothing"),
        ("  title: Digits\n", "", "digits: got .*, expected a section with the key title"),
        ("title: Waves", "titel: Waves", "waves.titel: got 'Waves', .* Did you mean 'title'?"),
        ("    plain:\n", "    plain:\n    plain:\n", "plain: got 'twice"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in LIST
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        read_table(listed(tmp_path, LIST.replace(old, new)))


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.yaml: got 'No such file or directory'"):
        read_table(tmp_path)
