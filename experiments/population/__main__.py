"""A map of many small networks: `python -m experiments.population --help`."""

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.adding_task.task import BASELINE
from experiments.common.command import in_one_go
from experiments.common.interrupts import Interrupts, interrupts
from experiments.common.machine import surroundings
from experiments.common.metrics import plain
from experiments.common.programs import make_mesh
from experiments.common.progress import LOG_SECONDS
from experiments.common.run import EXIT_CODES
from experiments.common.settings import as_json, command_line
from experiments.population.picture import draw_map
from experiments.population.settings import PopulationSettings, check
from experiments.population.train import grid, make_population

MODULE = "python -m experiments.population"
SOLVED = 1e-3
CALL_SECONDS = 1.0  # of one call; progress is shown and Ctrl-C handled between calls


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(PopulationSettings, prog=MODULE, args=args)

    def begin(console: Console) -> int:
        with interrupts() as wish:
            return run(console, settings, wish)

    return in_one_go(settings.out, lambda: check(settings, len(jax.devices())), begin)


def run(console: Console, settings: PopulationSettings, wish: Interrupts) -> int:
    """Train, test and write, and return the exit code."""
    devices = jax.devices()
    record: dict[str, Any] = {
        "command": command_line(MODULE, settings, PopulationSettings()),
        "settings": as_json(settings),
        **surroundings(),
        "devices": len(devices),
    }
    console.print(
        f"{settings.size:,} GRUs of {settings.hidden_size} units, adding problem of "
        f"T={settings.length}, {settings.updates:,} updates of {settings.batch_size} examples\n"
        f"{record['machine']}, {len(devices)} devices, jax {record['jax']}",
        soft_wrap=True,
    )
    population = make_population(settings, make_mesh(devices, settings.size))
    rates, biases = grid(settings)
    points = np.meshgrid(rates.astype(np.float32), biases.astype(np.float32), indexing="ij")
    members = population.init(*(each.ravel() for each in points))

    start = told = time.perf_counter()
    done, count = 0, 1
    with _bar(console) as bar:
        line = bar.add_task("compiling", total=settings.updates)
        while done < settings.updates and not wish.asked:
            before = time.perf_counter()
            members, losses = population.advance(members, np.int32(done), np.int32(count))
            text = _describe(np.asarray(losses), done + count, settings.updates)
            now = time.perf_counter()
            done += count
            bar.update(line, completed=done, description=text)
            if not console.is_terminal and now - told > LOG_SECONDS:
                told = now
                console.print(text, soft_wrap=True)
            count = max(1, min(int(count * CALL_SECONDS / (now - before)), settings.updates - done))
    if done < settings.updates:
        console.print(
            f"Interrupted after {done:,} of {settings.updates:,} updates: nothing is written, and "
            f"{time.perf_counter() - start:.0f} s of training are lost.",
            soft_wrap=True,
        )
        return EXIT_CODES["interrupted"]
    losses = np.asarray(population.evaluate(members.network), np.float64)
    record["seconds"] = time.perf_counter() - start
    record["learning_rates"], record["biases"] = rates.tolist(), biases.tolist()
    record["test_loss"] = losses.reshape(settings.rates, settings.biases).tolist()
    _write(settings, plain(record))
    _say(console, settings, losses, [each.ravel() for each in points], record["seconds"])
    return 0


def _bar(console: Console) -> Progress:
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _describe(losses: np.ndarray, done: int, updates: int) -> str:
    fine = losses[np.isfinite(losses)]
    best = f"{fine.min():.2e}" if fine.size else "none"
    return (
        f"{done:,}/{updates:,} updates, training loss: best {best}, "
        f"{np.mean(losses < BASELINE):.0%} below the baseline"
    )


def _write(settings: PopulationSettings, record: dict[str, Any]) -> None:
    """Write both files or none, as far as the file system allows."""
    out = settings.out
    draw_map(record, BASELINE).savefig(out / "map.new", format="png")
    (out / "population.new").write_text(json.dumps(record, allow_nan=False) + "\n")
    os.replace(out / "map.new", out / "map.png")
    os.replace(out / "population.new", out / "population.json")


def _say(
    console: Console,
    settings: PopulationSettings,
    losses: np.ndarray,
    points: list[np.ndarray],
    seconds: float,
) -> None:
    fine = np.isfinite(losses)
    if fine.any():
        best = int(np.nanargmin(np.where(fine, losses, np.nan)))
        console.print(
            f"Best: test loss {losses[best]:.2e} at rate {points[0][best]:.3g}, "
            f"bias {points[1][best]:.2f}."
        )
    console.print(
        f"Of {settings.size:,}: {np.sum(losses < SOLVED):,} below {SOLVED:g}, "
        f"{np.sum(fine & (losses >= BASELINE)):,} not below the baseline, {BASELINE:.3g}, "
        f"{np.sum(~fine):,} not finite.\n"
        f"{seconds:.0f} s, compiling included. Wrote map.png, population.json to {settings.out}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
