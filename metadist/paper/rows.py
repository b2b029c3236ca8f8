"""The rows of the results table, as `rows.yaml` in the table's folder lists them.

A setting is a protocol that rows share; a row is the job file `SETTING/ROW.yaml` beside the list, run once for each
of its seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from metadist.config import content_sha256, load_job, parse_section, pretrain_content_sha256, read_mapping
from metadist.errors import UserError, nearest

#: file of a table's folder that lists its rows
ROWS = "rows.yaml"


@dataclass(frozen=True)
class Published:
    """A figure that somebody else published."""

    #: as it is published: % of accuracy, or the error
    value: str | float
    #: R: read in the authors' paper or repository; S: read in a second-hand copy; M: from memory
    mark: Literal["R", "S", "M"]
    #: who published it where
    source: str


@dataclass(frozen=True)
class Judged:
    """A row without a job of its own: the runs of another one, judged on other data or in another way."""

    #: SETTING/ROW whose runs they are
    row: str
    #: source of the images, see `metadist evaluate --data`
    data: str | None = None
    #: normalisation, see `metadist evaluate --norm`
    norm: str | None = None
    #: `dotted.key=value` settings, see `metadist evaluate --set`
    set: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RowConfig:
    """What the table knows of a row beside its job."""

    #: the job is run once with each of them
    seeds: list[int] = field(default_factory=lambda: [0])
    #: judges another row's runs
    judged: Judged | None = None
    #: file of the table's folder, without its `.yaml`, to pre-train with: the job's `init_from.path` becomes that run
    pretrain: str | None = None
    #: fields of the job that name runs, by dotted path: the rows above this one whose runs they are, SETTING/ROW or a
    #: list of them
    runs: dict[str, str | list[str]] = field(default_factory=dict)
    #: rows of the same setting that this one is compared with, beside the setting's baselines
    against: list[str] = field(default_factory=list)
    #: gpu: left out of `--all`
    needs: Literal["cpu", "gpu"] = "cpu"
    #: what the paper reports in this setting
    paper: Published | None = None
    #: the best that an open reproduction reports
    reproduction: Published | None = None
    #: what the row is to reach: at least so many % of accuracy, or at most this error
    goal: float | None = None
    #: what else a reader must know
    note: str = ""

    def __post_init__(self) -> None:
        if not self.seeds or len({*self.seeds}) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError("seeds", self.seeds, "different whole numbers of at least 0, at least one")
        if self.judged is not None and self.pretrain is not None:
            raise UserError("pretrain", self.pretrain, "nothing beside judged", "The row that it judges may have it.")
        if self.judged is not None and self.runs:
            raise UserError("runs", self.runs, "nothing beside judged", "The row that it judges may have them.")


@dataclass(frozen=True)
class SettingConfig:
    """A protocol that rows share."""

    #: heading in the table
    title: str
    rows: dict[str, Any]
    #: query examples per class to judge with, the most important first; where activations are normalised over the query
    #: set the accuracy depends on it
    queries: list[int]
    #: rows that the others are compared with
    baselines: list[str] = field(default_factory=list)
    #: what a reader must know of the setting
    note: str = ""

    def __post_init__(self) -> None:
        if not self.queries or min(self.queries) < 1:
            raise UserError("queries", self.queries, "whole numbers of at least 1, at least one")
        for name in self.baselines:
            if name not in self.rows:
                raise UserError("baselines", name, f"of the rows {', '.join(self.rows)}", nearest(name, self.rows))


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        folder: the table's.
        judges: the row whose runs it judges, if it has none of its own.
        runs: the rows whose runs its job takes, by the fields that name them.
    """

    folder: Path
    setting: str
    name: str
    config: RowConfig
    judges: Row | None = None
    runs: Mapping[str, Row | tuple[Row, ...]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """How the command line names it."""
        return f"{self.setting}/{self.name}"

    @property
    def trained(self) -> Row:
        """The row whose job its runs are of: itself, unless it judges another one's."""
        return self.judges or self

    @property
    def job(self) -> Path:
        """Its job file."""
        trained = self.trained
        return self.folder / trained.setting / f"{trained.name}.yaml"

    @property
    def pretraining(self) -> Path | None:
        """The job file of the pre-training that its job starts from."""
        name = self.trained.config.pretrain
        return None if name is None else self.folder / f"{name}.yaml"

    @property
    def taken(self) -> dict[str, Row]:
        """The rows whose runs its job takes, by their ids."""
        every = (one if isinstance(one, tuple) else (one,) for one in self.trained.runs.values())
        return {row.id: row for rows in every for row in rows}

    def summary(self, seed: int) -> Path:
        """Where the summary of a run is kept."""
        return self.folder / self.setting / self.name / f"seed-{seed}.json"

    def job_sha256(self) -> str:
        """Of what its job file says to compute, and those of what it takes, and of how the runs are judged.

        Raises:
            UserError: one of the files is missing or wrong.
        """
        load_job(str(self.job))
        content = read_mapping(str(self.job))
        if self.pretraining is not None:
            content |= {"pretraining": pretrain_content_sha256(read_mapping(str(self.pretraining)))}
        if self.taken:
            content |= {"runs": {name: row.job_sha256() for name, row in self.taken.items()}}
        if self.config.judged is not None:
            # Its data is named as the data of a job is: the content counts, which is in the protocol.
            content |= {"judged": asdict(replace(self.config.judged, data=None))}
        return content_sha256(content)


@dataclass(frozen=True)
class Setting:
    """A setting with its rows."""

    name: str
    config: SettingConfig
    rows: tuple[Row, ...]


def read_table(folder: Path) -> list[Setting]:
    """The settings that a table's `rows.yaml` lists.

    Raises:
        UserError: it cannot be read, or something in it is wrong; job files are not looked at.
    """
    content = read_mapping(str(folder / ROWS))
    trained: dict[str, Row] = {}
    table = [_setting(folder, name, value, trained) for name, value in content.items()]
    return [replace(one, rows=tuple(_judging(row, trained) for row in one.rows)) for one in table]


def _setting(folder: Path, name: str, content: Any, trained: dict[str, Row]) -> Setting:
    """A setting; `trained` are the rows so far that have a job of their own, and gets those of this one."""
    config = parse_section(SettingConfig, content, name)
    rows = []
    for row, value in config.rows.items():
        place = f"{name}.rows.{row}"
        own = parse_section(RowConfig, value or {}, place)
        for other in own.against:
            if other not in config.rows:
                raise UserError(f"{place}.against", other, "a row of this setting", nearest(other, config.rows))
        runs = {key: _taken(rows_of, trained, f"{place}.runs.{key}") for key, rows_of in own.runs.items()}
        rows.append(Row(folder, name, row, own, runs=runs))
        if own.judged is None:
            trained[rows[-1].id] = rows[-1]
    return Setting(name, config, tuple(rows))


def _taken(names: str | list[str], trained: Mapping[str, Row], place: str) -> Row | tuple[Row, ...]:
    for name in [names] if isinstance(names, str) else names:
        if name not in trained:
            raise UserError(place, name, "a row above this one with a job of its own", nearest(name, trained))
    return trained[names] if isinstance(names, str) else tuple(trained[name] for name in names)


def _judging(row: Row, trained: Mapping[str, Row]) -> Row:
    """The row with the one whose runs it judges, if it says so."""
    if row.config.judged is None:
        return row
    name = row.config.judged.row
    if name not in trained:
        place = f"{row.setting}.rows.{row.name}.judged.row"
        raise UserError(place, name, "a row with a job of its own", nearest(name, trained))
    return replace(row, judges=trained[name])


def find_rows(table: Sequence[Setting], names: Sequence[str]) -> list[Row]:
    """The rows with these names, in the table's order; the name of a setting stands for all its rows.

    Raises:
        UserError: there is no such row or setting.
    """
    rows = [row for setting in table for row in setting.rows]
    known = [*(row.id for row in rows), *(setting.name for setting in table)]
    for name in names:
        if name not in known:
            raise UserError("ROW", name, "a row or a setting (`metadist reproduce --list`)", nearest(name, known))
    return [row for row in rows if row.id in names or row.setting in names]
