"""How a trained GRU holds what it recalls: `python -m experiments.mechanism --help`."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from experiments.common.command import in_one_go, saved_settings
from experiments.common.loading import load
from experiments.common.machine import surroundings
from experiments.common.metrics import plain
from experiments.common.model import Network
from experiments.common.programs import Programs
from experiments.common.settings import replicas_of
from experiments.common.task import Example, Task
from experiments.common.training import test_keys, train_init
from experiments.copy_task.settings import CopySettings
from experiments.copy_task.task import SYMBOLS, make_task
from experiments.mechanism import figures
from experiments.mechanism.measure import measure
from experiments.mechanism.settings import MechanismSettings, check

MODULE = "python -m experiments.mechanism"


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(MechanismSettings, prog=MODULE, args=args)
    return in_one_go(settings.out, lambda: check(settings), lambda console: run(console, settings))


def run(console: Console, settings: MechanismSettings) -> int:
    """Load, train to the middle, measure and draw, and return the exit code."""
    start = time.perf_counter()
    copying = saved_settings(CopySettings, settings.run)
    task, length = make_task(copying), copying.length
    trained = load(settings.run, seed=settings.seed)
    fresh, middle, updates = train_to_the_middle(task, copying, settings.seed)
    names = ("as drawn", f"at a gap of {task.stages[0].length}", f"at a gap of {length:,}")
    console.print(f"The gap began to grow after {updates:,} updates.")

    keys = test_keys(settings.examples)
    examples = jax.vmap(task.sampler(length), in_axes=(0, None))(keys, jnp.int32(SYMBOLS))
    moments = {}
    with jax.enable_x64(True):
        examples = Example(jnp.asarray(examples.xs, "float64"), examples.targets)
        for name, network in zip(names, (fresh, middle, trained), strict=True):
            wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), network)
            found = measure(wide, examples, length, settings.probes, settings.steps)
            moments[name] = found
            _say(console, name, figures.numbers(found, length), length)

    record: dict[str, Any] = {
        "run": str(settings.run),
        "title": task.title,
        "seed": settings.seed,
        "updates_at_the_shortest_gap": updates,
        "examples": settings.examples,
        "probes": settings.probes,
        **surroundings(),
        "moments": {name: figures.numbers(found, length) for name, found in moments.items()},
        "half_life": {name: found.half_life.tolist() for name, found in moments.items()},
    }
    written = figures.draw(settings.out, moments, length)
    record["seconds"] = time.perf_counter() - start
    (settings.out / "mechanism.json").write_text(json.dumps(plain(record), allow_nan=False) + "\n")
    console.print(f"Wrote mechanism.json, {', '.join(written)} to {settings.out}", soft_wrap=True)
    return 0


def train_to_the_middle(
    task: Task, copying: CopySettings, seed: int
) -> tuple[Network, Network, int]:
    """(the fresh network, the network when its gap begins to grow, its updates).

    They equal those of the run, bit for bit if it had a single seed and the same machine.
    """
    replicas = replicas_of(copying)
    seeds, rates = (jnp.array(column) for column in zip(*replicas, strict=True))
    init = jax.jit(jax.vmap(lambda seed, rate: train_init(task, copying, seed, rate)))
    whole = jax.device_get(init(seeds.astype(jnp.uint32), rates.astype(jnp.float32)))
    place = [own for own, _ in replicas].index(seed)
    states = jax.tree.map(lambda leaf: leaf[[place]], whole)
    fresh = jax.tree.map(lambda leaf: leaf[0], states.network)
    programs = Programs(task, copying, jax.devices()[:1])
    updates = 0
    for stage in task.stages:
        if stage.length > task.stages[0].length:
            break
        passed = False
        while not passed and updates < copying.updates:
            count = min(copying.eval_every, copying.updates - updates)
            states, happened = programs.train(states, count, stage)
            updates += count
            passed = task.passed(stage).reached(
                {name: float(values[0]) for name, values in happened.means.items()}
            )
    middle = jax.tree.map(lambda leaf: leaf[0], states.network)
    return fresh, middle, updates


def _say(console: Console, name: str, found: dict[str, Any], length: int) -> None:
    *_, (lag, gain) = found["log_gain"].items()
    again = found["recall_from_nearest"]
    at_points = f", from the nearest point {again:.2%}" if np.isfinite(again) else ""
    parts = (
        f"{found['units_beyond_gap']} units have a half-life beyond {length:,} steps",
        f"gain {np.exp(np.median(gain)):.2g} at lag {lag}",
        f"{found['exponents_slower_than_gap']} Lyapunov exponents slower than the gap",
        f"{found['fixed_points']} fixed points ({found['stable']} stable), "
        f"{found['slow_points']} slow ones, {found['lost']} starts lost",
        f"recall {found['recall']:.2%}{at_points}",
    )
    console.print(f"{name}: {'; '.join(parts)}.", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
