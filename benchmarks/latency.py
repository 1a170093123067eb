"""The time of one step of a served network: `python -m benchmarks.latency --help`."""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.markdown import Markdown

import jaxgru
from benchmarks.report import write_record
from benchmarks.versions import versions
from experiments.common.machine import machine
from experiments.common.settings import as_json, command_line

PERCENTILES = (50, 90, 99, 99.9)
BLOCK = 100  # steps of a contestant in one turn
INPUTS = 32

#: (layers, H)
SIZES = ((1, 32), (1, 128), (1, 512), (2, 128))

#: A step in a server: params, carry, x -> carry.
Serve = Callable[[Any, Any, np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure the latency of `jaxgru.step` in a loop, with one input after another from the host.

    The step is called through `jax.jit` and as a program compiled ahead of time, with and without
    donation of the carry. The contestants take turns of a hundred steps in one process. Every step
    is timed separately, until its result is ready.
    """

    rounds: int = 50
    """Turns that every contestant gets, after one to warm up."""
    out: Path | None = None
    """File for the numbers, JSON; nothing is written if none."""


def main() -> int:
    config = tyro.cli(Config, prog="python -m benchmarks.latency")
    if config.rounds < 1:
        print(f"error: --rounds must be at least 1, got {config.rounds}", file=sys.stderr)
        return 2
    console = Console()
    console.print(f"{machine()}; {versions()}")
    found = {name_of(*size): latencies(*size, config.rounds) for size in SIZES}
    console.print(Markdown(table(found)))
    if config.out is not None:
        record = {
            "command": command_line("python -m benchmarks.latency", config, Config()),
            "settings": as_json(config),
            "machine": machine(),
            "versions": versions(),
            "percentiles": PERCENTILES,
            "microseconds": found,
        }
        write_record(config.out, record)
    return 0


def name_of(layers: int, hidden: int) -> str:
    return f"H={hidden}" + (f", {layers} layers" if layers > 1 else "")


def network(layers: int, hidden: int) -> Any:
    key = jax.random.key(0)
    if layers == 1:
        return jaxgru.gru_init(key, INPUTS, hidden)
    return jaxgru.stack_init(key, INPUTS, hidden, layers)


def contestants(params: Any) -> dict[str, Serve]:
    args = (params, jaxgru.initial_carry(params), np.zeros(INPUTS, np.float32))
    found: dict[str, Serve] = {}
    for name, donated in (("", ()), (", donated", 1)):
        serve = jax.jit(jaxgru.step, donate_argnums=donated)
        found[f"jit{name}"] = serve
        found[f"ahead of time{name}"] = serve.lower(*args).compile()
    return found


def latencies(layers: int, hidden: int, rounds: int) -> dict[str, list[float]]:
    """Percentiles of each contestant, in microseconds."""
    params = network(layers, hidden)
    xs = np.random.default_rng(0).standard_normal((BLOCK, INPUTS)).astype(np.float32)
    serves = contestants(params)
    carries = {name: jaxgru.initial_carry(params) for name in serves}
    taken: dict[str, list[int]] = {name: [] for name in serves}
    for turn in range(rounds + 1):
        for name, serve in serves.items():
            carry, times = carries[name], []
            for x in xs:
                start = time.perf_counter_ns()
                carry, _ = jax.block_until_ready(serve(params, carry, x))
                times.append(time.perf_counter_ns() - start)
            carries[name] = carry
            if turn:  # the first turn is a warm-up
                taken[name] += times
    ends = [jnp.concatenate(jax.tree.leaves(carry)) for carry in carries.values()]
    for end in ends[1:]:  # the same program gives the same numbers
        np.testing.assert_array_equal(end, ends[0])
    return {
        name: [float(p) for p in np.percentile(np.array(times) / 1e3, PERCENTILES)]
        for name, times in taken.items()
    }


def table(found: dict[str, dict[str, list[float]]]) -> str:
    lines = [
        "|  |  | " + " | ".join(f"p{p:g}, us" for p in PERCENTILES) + " |",
        "| --- " * (2 + len(PERCENTILES)) + "|",
    ]
    for size, each in found.items():
        for name, values in each.items():
            lines.append(f"| {size} | {name} | " + " | ".join(f"{v:.0f}" for v in values) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
