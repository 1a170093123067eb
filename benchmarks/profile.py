"""Profile a compiled GRU: `python -m benchmarks.profile --help`."""

import collections
import dataclasses
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from benchmarks import peers
from experiments.common.machine import machine


@dataclasses.dataclass(frozen=True)
class Config:
    """Print the operations of a compiled GRU that take the most time."""

    batch: int = 32
    """B."""
    steps: int = 1000
    """T."""
    inputs: int = 10
    """I."""
    hidden: int = 128
    """H."""
    kind: Literal["gru_after", "gru_before", "lstm", "elman"] = "gru_after"
    """The cell."""
    contestant: Literal["jaxgru", "flax.linen"] = "jaxgru"
    """The library to profile."""
    members: int = 0
    """Networks side by side, by `vmap` over their weights; one network if 0."""
    gradient: bool = False
    """Profile forward + backward instead of only forward."""
    top: int = 12
    """How many operations to print."""


def operations(run: Callable[..., Any], args: tuple[Any, ...], repeat: int = 3) -> list[Any]:
    """[(milliseconds per run, calls per run, operation)], the longest first."""
    compiled = jax.jit(run).lower(*args).compile()
    pattern = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", re.M)
    text = {m[1]: m[2] for m in pattern.finditer(compiled.as_text() or "")}
    jax.block_until_ready(compiled(*args))
    options = jax.profiler.ProfileOptions()
    options.host_tracer_level = 3
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(repeat):
                jax.block_until_ready(compiled(*args))
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    time, count = collections.Counter(), collections.Counter()
    for event in (e for plane in data.planes for line in plane.lines for e in line.events):
        if event.name in text and " while(" not in text[event.name]:
            time[event.name] += event.duration_ns
            count[event.name] += 1
    return [
        (ns / 1e6 / repeat, count[name] // repeat, f"{name}: {text[name]}")
        for name, ns in time.most_common()
    ]


def main() -> int:
    config = tyro.cli(Config, prog="python -m benchmarks.profile")
    sizes = (config.batch, config.steps, config.inputs, config.hidden)
    problem = peers.problem(config.kind, *sizes)
    if config.contestant == "jaxgru":
        run, weights = peers.batched, problem.params
    else:
        rnn, weights = peers.linen_rnn(problem)
        run = rnn.apply
    args: tuple[Any, ...] = (weights, jnp.asarray(problem.xs))
    if config.gradient:
        run, args = peers.pullback(run), (*args, jnp.asarray(problem.cotangent))
    if config.members:
        copies = lambda a: jnp.broadcast_to(a, (config.members, *a.shape)).copy()  # noqa: E731
        run, args = jax.vmap(run), jax.tree.map(copies, args)
    print(machine())
    found = operations(run, args)
    for milliseconds, times, operation in found[: config.top]:
        print(f"{milliseconds:8.2f} ms {times:6d} x  {operation[:150]}")
    print(f"{sum(ms for ms, *_ in found):8.2f} ms in {len(found)} operations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
