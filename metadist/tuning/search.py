"""Which values the next trial gets: those that were drawn beforehand, or what Optuna makes of the trials so far."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from metadist.config import Job
from metadist.errors import UserError
from metadist.tuning.record import ENDED, SweepRecord, TrialRecord
from metadist.tuning.space import Dimension, Values, draw_trials, initial_trials


class Proposer(ABC):
    """Gives the values of new trials."""

    @abstractmethod
    def propose(self, number: int) -> Values | None:
        """Values for a trial with this number; `None` when there are no more."""

    @abstractmethod
    def learn(self, trial: TrialRecord) -> None:
        """A trial ended; told of those of earlier sessions too."""


class Drawn(Proposer):
    """Random search: all values are drawn beforehand, as a function of the seed."""

    def __init__(self, job: Job, space: Sequence[Dimension]) -> None:
        self._trials = draw_trials(job, space)

    def propose(self, number: int) -> Values | None:
        return self._trials[number] if number < len(self._trials) else None

    def learn(self, trial: TrialRecord) -> None:
        pass


class Optuna(Proposer):
    """Optuna's tree-structured Parzen estimator, seeded. What it proposes depends on the order of results.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(self, job: Job, space: Sequence[Dimension], mode: str) -> None:
        self._optuna = import_optuna()
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        self._space, self._initial = space, initial_trials(job, space)
        self._most = len(self._initial) + job.tune.num_samples
        sampler = self._optuna.samplers.TPESampler(seed=job.seed % 2**32)
        direction = "maximize" if mode == "max" else "minimize"
        self._study = self._optuna.create_study(sampler=sampler, direction=direction)
        self._distributions = {dimension.path: self._distribution(dimension) for dimension in space}
        self._asked: dict[int, Any] = {}

    def propose(self, number: int) -> Values | None:
        if number >= self._most:
            return None
        if number < len(self._initial):
            return self._initial[number]
        asked = self._study.ask(self._distributions)
        self._asked[number] = asked
        return {d.path: self._value(d, asked.params[d.path]) for d in self._space}

    def learn(self, trial: TrialRecord) -> None:
        good = trial.best is not None and trial.state in ("finished", "stopped")
        states = self._optuna.trial.TrialState
        asked = self._asked.pop(trial.trial, None)
        if asked is not None:
            self._study.tell(asked, trial.best if good else None, state=states.COMPLETE if good else states.FAIL)
            return
        params = {d.path: self._param(d, trial.values[d.path]) for d in self._space}
        with contextlib.suppress(ValueError):  # an initial trial outside of the space
            made = self._optuna.trial.create_trial(
                params=params,
                distributions=self._distributions,
                value=trial.best if good else None,
                state=states.COMPLETE if good else states.FAIL,
            )
            self._study.add_trial(made)

    def _distribution(self, dimension: Dimension) -> Any:
        kinds = self._optuna.distributions
        if dimension.kind == "choice":
            return kinds.CategoricalDistribution(list(range(len(dimension.values))))
        low, high = dimension.values
        made = kinds.IntDistribution if dimension.whole else kinds.FloatDistribution
        return made(low, high, log=dimension.log)

    def _value(self, dimension: Dimension, param: Any) -> Any:
        if dimension.kind == "choice":
            return dimension.values[param]
        return param if dimension.whole else dimension.tidy(param)

    def _param(self, dimension: Dimension, value: Any) -> Any:
        if dimension.kind == "choice":
            # Initial trials may have values that the space does not offer.
            return dimension.values.index(value) if value in dimension.values else -1
        return value


def import_optuna() -> Any:
    """Optuna.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "tune.search",
            "optuna",
            "random: Optuna is not installed",
            "Install it with pip install 'metadist[optuna]'.",
        ) from error
    return optuna


class Suggestions(Searcher):  # type: ignore[misc]
    """Hands trials to Tune: those of the record that have no result yet, then new ones.

    Args:
        initial: how many of the first trials `tune.initial` asked for.
        close: asked before each trial; true hands out no more.
    """

    def __init__(self, record: SweepRecord, proposer: Proposer, initial: int, close: Callable[[], bool]) -> None:
        super().__init__()
        self._record, self._proposer, self._initial, self._close = record, proposer, initial, close
        self._open = [trial for trial in record.trials if trial.state not in ENDED]
        for trial in record.trials:
            if trial.state in ENDED:
                proposer.learn(trial)

    def suggest(self, trial_id: str) -> Any:
        if self._close():
            return Searcher.FINISHED
        if not self._open:
            number = len(self._record.trials)
            values = self._proposer.propose(number)
            if values is None:
                return Searcher.FINISHED
            self._open.append(TrialRecord(number, values, initial=number < self._initial))
            self._record.trials.append(self._open[0])
        trial = self._open.pop(0)
        return {"trial": trial.trial, "values": trial.values, "initial": trial.initial}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's scheduler stopped it, or it ended; the record is brought up to date by who follows the sweep."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""
