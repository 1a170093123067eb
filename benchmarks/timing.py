"""Interleaved timing: machines are noisy, so only ratios of runs that took turns are trusted."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Times(NamedTuple):
    """Seconds of one contestant over all rounds."""

    minimum: float
    median: float


def summary(seconds: list[float]) -> Times:
    """The minimum and the median."""
    return Times(min(seconds), float(np.median(seconds)))


def interleave(
    calls: dict[str, Callable[[], Any]], rounds: int, repeat: int = 1
) -> dict[str, Times]:
    """Time every call once a round, A B C A B C ...; each must return when its work is done.

    A call that is too short for the clock is repeated within its turn.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            seconds[name].append((time.perf_counter() - start) / repeat)
    return {name: summary(s) for name, s in seconds.items()}
