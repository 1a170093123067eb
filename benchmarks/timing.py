"""Interleaved timing. Machines are noisy, so only ratios of runs that took turns are reliable."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

#: A pause in seconds. After a call the threads of onnxruntime spin for some 40 ms of processor
#: time, those of torch for 8 ms, and those of XLA not at all (Intel Xeon, 2 cores).
PAUSE = 0.06
FORWARD, BOTH = "forward", "forward + backward"


class Times(NamedTuple):
    """Seconds of one contestant over all rounds."""

    minimum: float
    low: float
    """A quarter of the rounds took no longer."""
    median: float
    high: float
    """Three quarters of the rounds took no longer."""

    @classmethod
    def of(cls, value: float) -> "Times":
        """A number that is the same in every round."""
        return cls(value, value, value, value)


class Row(NamedTuple):
    """One line of a table: a number for each contestant, less is better."""

    suite: str
    case: str
    what: str
    unit: str
    values: dict[str, Times]


def summary(seconds: list[float]) -> Times:
    """The minimum and the quartiles."""
    return Times(min(seconds), *map(float, np.quantile(seconds, (0.25, 0.5, 0.75))))


def wait(run: Callable[..., Any], *args: Any) -> Any:
    """The results, once they are ready."""
    return jax.block_until_ready(run(*args))


def temporary(compiled: Any) -> Times:
    """Temporary memory of a compiled program, in megabytes."""
    return Times.of(compiled.memory_analysis().temp_size_in_bytes / 1e6)


def interleave(
    calls: dict[str, Callable[[], Any]], rounds: int, repeat: int = 1
) -> dict[str, Times]:
    """Time every call once a round; each must return when its work is done.

    Each round draws a new order. Before each turn there is a pause, in which the threads of the
    last call go to sleep. Then one call that is not timed wakes the threads of this contestant, and
    brings its data back into cache. Without them, a contestant appears up to 15% slower after a
    library whose threads spin while they wait for work. A call that is too short for the clock is
    repeated within its turn.
    """
    return by_two_clocks(calls, rounds, repeat)[0]


def by_two_clocks(
    calls: dict[str, Callable[[], Any]], rounds: int, repeat: int = 1
) -> tuple[dict[str, Times], dict[str, Times]]:
    """Like `interleave`, measure the time of every call, and also its total processor time.

    Processor time hardly depends on the other load of the machine. It does not show how well the
    processors share the work.
    """
    for call in calls.values():
        call()
    clocks = (time.perf_counter, time.process_time)
    seconds: tuple[dict[str, list[float]], ...] = tuple(
        {name: [] for name in calls} for _ in clocks
    )
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(calls)):
            call = calls[name]
            time.sleep(PAUSE)
            call()
            starts = [clock() for clock in clocks]
            for _ in range(repeat):
                call()
            for clock, start, found in zip(clocks, starts, seconds, strict=True):
                found[name].append((clock() - start) / repeat)
    wall, processors = ({name: summary(s) for name, s in found.items()} for found in seconds)
    return wall, processors
