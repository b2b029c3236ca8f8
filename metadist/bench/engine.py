"""Meta-gradients per second of one process with one thread, beside the peers'.

All implementations of a case are first checked to give the same meta-gradient, then timed in turns. Needs torch
and numpy only: `python -m metadist.bench.engine --json` runs it where the command line cannot be installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from metadist.bench.cases import ALL, JOB_CHUNK, Case, Setting, build_setting, find_cases, in_bf16, in_float64
from metadist.bench.peers import PEERS, Run, absent_peers, has_batch_norm, peer_module
from metadist.bench.timing import REPEATS, SECONDS, Rate, alternate, check_rounds, conditions, ratio
from metadist.learners.gradient import Parameters
from metadist.outer import Strategy, choose_strategy, compute_meta_gradient
from metadist.outer.strategy import TOLERANCE
from metadist.tasks import Task, run_of
from metadist.training.machine import keep_freed_memory, make_deterministic, set_threads


class Mismatch(RuntimeError):
    """An implementation gives another meta-gradient than the others: its speed means nothing."""


@dataclass(frozen=True)
class CaseResult:
    """What was measured of a case.

    Attributes:
        case: its name.
        about: what it is.
        differences: by implementation, relative difference from our loop's meta-gradient in float64; in bfloat16 from
            what the same strategy gives in 32 bits.
        rates: by implementation, meta-gradients of tasks per second.
        rule: the strategy that the rule chooses.
        best_peer: the fastest peer.
        at_job_chunk: rate of the rule's strategy at the job's chunk over the best peer's.
        best: our fastest implementation.
        at_best_chunk: its rate over the best peer's.
        rule_over_other: rate of the rule's strategy over the best other strategy's, at the job's chunk.
        bf16_over_fp32: rate of the rule's strategy in bfloat16 over its rate in 32 bits.
        absent: peers that cannot be imported, and why.
    """

    case: str
    about: str
    differences: dict[str, float]
    rates: dict[str, Rate]
    rule: Strategy
    best_peer: str
    at_job_chunk: float
    best: str
    at_best_chunk: float
    rule_over_other: float
    bf16_over_fp32: float
    absent: dict[str, str]

    def verdict(self) -> str:
        """The ratios, in a sentence."""
        return (
            f"the rule's choice, {self.rule}: {self.at_job_chunk:.2f} times the best peer ({self.best_peer}) "
            f"at chunk {JOB_CHUNK}, {self.rule_over_other:.2f} times the best other strategy; "
            f"{self.at_best_chunk:.2f} times the best peer as {self.best}; "
            f"in bf16 {self.bf16_over_fp32:.2f} times itself"
        )


def ours_name(strategy: Strategy, chunk: int) -> str:
    """The name of one of our implementations."""
    return f"{strategy}, chunk {chunk}"


def our_run(setting: Setting, strategy: Strategy, chunk: int) -> Run:
    """The setting's tasks by `compute_meta_gradient`, chunk by chunk, added up in their order."""
    parts = list(_chunks(setting.batch, chunk))

    def run() -> Parameters:
        total: Parameters = {}
        for part in parts:
            gradient = compute_meta_gradient(setting.learner, setting.meta, part, strategy).gradient
            total = {name: total[name] + value for name, value in gradient.items()} if total else gradient
        return total

    return run


def _chunks(batch: Task, size: int) -> Iterator[Task]:
    for first in range(0, batch.query.x.shape[0], size):
        yield run_of(batch, slice(first, first + size))


def implementations(
    setting: Setting, chunks: Sequence[int], absent: Mapping[str, str]
) -> tuple[list[str], dict[str, Run]]:
    """The names of ours, and the runs of all. The loop's speed does not depend on the chunk: it has the job's only."""
    runs = {ours_name("loop", JOB_CHUNK): our_run(setting, "loop", JOB_CHUNK)}
    runs[ours_name("vectorized", JOB_CHUNK)] = our_run(setting, "vectorized", JOB_CHUNK)
    runs |= {ours_name("captured", chunk): our_run(setting, "captured", chunk) for chunk in chunks}
    ours = list(runs)
    for name, peer in PEERS.items():
        if name not in absent:
            runs[name] = peer(peer_module(setting, torch_norm=False), setting)
            if has_batch_norm(setting):
                runs[f"{name}, nn.BatchNorm2d"] = peer(peer_module(setting, torch_norm=True), setting)
    return ours, runs


def check_equal(runs: Mapping[str, Run]) -> dict[str, float]:
    """Relative difference of each run's meta-gradient from the first one's.

    Raises:
        Mismatch: one differs by more than `TOLERANCE`.
    """
    results = {name: run() for name, run in runs.items()}
    first = next(iter(results))
    differences = {name: _difference(results[first], result) for name, result in results.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise Mismatch(f"{name} differs from {first} by {difference:.1e}, more than {TOLERANCE:g}")
    return differences


def _difference(a: Parameters, b: Parameters) -> float:
    """Euclidean distance over the norm of `a`, in float64; infinite where names or shapes differ."""
    if {name: value.shape for name, value in a.items()} != {name: value.shape for name, value in b.items()}:
        return float("inf")
    distance = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    norm = sum(float(value.double().square().sum()) for value in a.values())
    return float((distance / max(norm, 1e-300)) ** 0.5)


def measure_case(case: Case, seconds: float, repeats: int, device: torch.device) -> CaseResult:
    """Check and time one case.

    Raises:
        Mismatch: see `check_equal`.
    """
    setting, absent = build_setting(case, device), absent_peers()
    # In float64: in float32 rounding turns a ReLU over now and then, which changes a gradient by a part in a thousand.
    _, exact = implementations(in_float64(setting, case.exact), case.chunks, absent)
    differences = check_equal(exact)
    ours, runs = implementations(setting, case.chunks, absent)
    peers = [name for name in runs if name not in ours]
    rule = choose_strategy(setting.learner, device)[0]
    chosen = ours_name(rule, JOB_CHUNK)
    low = f"{chosen}, bf16"
    runs[low] = our_run(in_bf16(setting), rule, JOB_CHUNK)
    differences[low] = _difference(runs[chosen](), runs[low]())
    each = alternate(runs, case.tasks, seconds, repeats, device)
    rates = {name: Rate.of(values) for name, values in each.items()}
    best_peer = max(peers, key=lambda name: rates[name].median)
    best = max(ours, key=lambda name: rates[name].median)
    others = [ours_name(strategy, JOB_CHUNK) for strategy in get_args(Strategy) if strategy != rule]
    other = max(others, key=lambda name: rates[name].median)
    return CaseResult(
        case=case.name,
        about=case.about,
        differences=differences,
        rates=rates,
        rule=rule,
        best_peer=best_peer,
        at_job_chunk=ratio(each[chosen], each[best_peer]),
        best=best,
        at_best_chunk=ratio(each[best], each[best_peer]),
        rule_over_other=ratio(each[chosen], each[other]),
        bf16_over_fp32=ratio(each[low], each[chosen]),
        absent=absent,
    )


def measure_engine(
    cases: Sequence[Case], seconds: float, repeats: int, device: torch.device, show: Callable[[CaseResult], None]
) -> dict[str, Any]:
    """Measure the cases one after the other with one thread; plain data, ready for JSON.

    Args:
        seconds: time per implementation and round.
        repeats: rounds.
        show: called with each case's result as soon as it is there.

    Raises:
        UserError: `seconds` or `repeats` is out of range.
        Mismatch: see `check_equal`.
    """
    check_rounds(seconds, repeats)
    set_threads(1)
    keep_freed_memory()
    make_deterministic(device)
    results = []
    for case in cases:
        result = measure_case(case, seconds, repeats, device)
        show(result)
        results.append(dataclasses.asdict(result))
    return conditions(device, seconds, repeats) | {"tolerance": TOLERANCE, "cases": results}


def lines(result: CaseResult) -> Iterator[str]:
    """A case's result for people."""
    yield f"{result.case}: {result.about}"
    for name, rate in result.rates.items():
        yield f"  {name:<28}{rate.median:>9.1f} tasks/s  ({rate.low:.1f}–{rate.high:.1f})"
    for name, reason in result.absent.items():
        yield f"  {name:<28}{'absent':>9}  ({reason})"
    yield f"  {result.verdict()}"


def main() -> None:
    """`python -m metadist.bench.engine`."""
    parser = argparse.ArgumentParser(prog="python -m metadist.bench.engine", description=__doc__)
    parser.add_argument("--case", default=ALL, help="cases, separated by commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per implementation and round")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="rounds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    given = parser.parse_args()

    def show(result: CaseResult) -> None:
        sys.stderr.write("\n".join([*lines(result), ""]))

    device = torch.device(given.device)
    measured = measure_engine(find_cases(given.case), given.seconds, given.repeats, device, show)
    if given.json:
        sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
