"""The model of `metadist plan`, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from metadist.bench.model import Load, Rim, predict, saturation

RIM = Rim(worker=0.001, push=0.002, step=0.004)
LOAD = Load(chunks=4, chunk_seconds=0.1, tasks=32, message=1_000_000)


def test_the_rim_is_found_again_in_steps_without_work() -> None:
    nothing = replace(LOAD, chunk_seconds=0.0)
    one, alone, many = (
        predict(RIM, replace(nothing, chunks=chunks), workers).seconds for workers, chunks in ((1, 1), (1, 8), (8, 8))
    )
    assert (one, alone, many) == pytest.approx((0.007, 0.028, 0.021))
    found = Rim.fit(one, many, alone, 8)
    assert (found.worker, found.push, found.step) == pytest.approx((0.001, 0.002, 0.004))


def test_noise_makes_no_negative_time() -> None:
    assert Rim.fit(one=3.0, many=2.0, alone=1.0, chunks=8) == Rim(0.0, 0.0, 3.0)


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [
        (1, 4 * 0.101 + 0.012),
        (2, 2 * 0.101 + 0.012),
        (3, 2 * 0.101 + 0.012),  # one of them has two chunks
        (4, 0.101 + 0.012),
        (64, 0.101 + 0.012),  # and more have none
    ],
)
def test_the_busiest_worker_is_waited_for(workers: int, seconds: float) -> None:
    prediction = predict(RIM, LOAD, workers)
    assert prediction.seconds == pytest.approx(seconds)
    assert prediction.waiting == pytest.approx(0.012 / seconds)


def test_workers_share_the_cores_of_one_machine() -> None:
    two = replace(LOAD, cores=2)
    assert predict(RIM, two, 4).compute == pytest.approx(0.2 + 0.001)
    assert predict(RIM, two, 3).compute == pytest.approx(0.15 + 0.001 + 0.101), "three at once, then one alone"
    assert predict(RIM, two, 1).compute == pytest.approx(4 * 0.101)
    crowded = replace(two, crowded=0.12)
    assert predict(RIM, crowded, 1).compute == pytest.approx(4 * 0.101)
    assert predict(RIM, crowded, 2).compute == pytest.approx(2 * 0.121)
    assert predict(RIM, crowded, 4).compute == pytest.approx(0.24 + 0.001)
    four = replace(crowded, cores=4)  # two of four cores at work: a third of what all of them cost
    assert predict(RIM, four, 2).compute == pytest.approx(2 * (0.1 + 0.02 / 3 + 0.001))


def test_the_servers_line_carries_the_last_round_and_the_new_version() -> None:
    """1 MB takes 10 ms: two workers send their last sums and are sent a version, the others' sums went before."""
    slow = replace(LOAD, bandwidth=1e8)
    prediction = predict(RIM, slow, 2)
    assert prediction.network == pytest.approx(2 * 2 * 0.01)
    assert prediction.compute == pytest.approx(2 * 0.101)
    crawling = replace(LOAD, bandwidth=1e6)  # 1 s each: the first two chunks' sums are not there in time
    assert predict(RIM, crawling, 2).compute == pytest.approx(2.0)


def test_where_the_server_is_full() -> None:
    """At W workers with a chunk each: 0.1 + 0.001 = 0.004 + 0.002 W."""
    workers = saturation(RIM, LOAD)
    assert workers == pytest.approx(48.5)
    full = predict(RIM, replace(LOAD, chunks=1000), 1000)
    assert full.waiting > 0.5
    assert saturation(RIM, replace(LOAD, bandwidth=1e9)) == pytest.approx(97 / 4)
    assert saturation(replace(RIM, push=0.0), LOAD) == math.inf
    assert saturation(RIM, replace(LOAD, chunk_seconds=0.0)) == 1.0
