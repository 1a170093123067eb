"""Learn a T-maze: `python -m experiments.rollout --help`."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from experiments.common.command import in_one_go
from experiments.common.interrupts import Interrupts, interrupts
from experiments.common.machine import surroundings
from experiments.common.metrics import Writer, begin, read_run
from experiments.common.run import EXIT_CODES, HEADER
from experiments.common.settings import as_json, command_line
from experiments.rollout.learn import make_learner
from experiments.rollout.picture import draw_success
from experiments.rollout.settings import RolloutSettings, check

MODULE = "python -m experiments.rollout"
NAMES = {True: "GRU", False: "GRU, reset at every step"}  # keys: whether it has a memory


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(RolloutSettings, prog=MODULE, args=args)

    def begin(console: Console) -> int:
        with interrupts() as wish:
            return run(console, settings, wish)

    return in_one_go(settings.out, lambda: check(settings), begin)


def run(console: Console, settings: RolloutSettings, wish: Interrupts) -> int:
    """Train both networks in one program, by vmap, and return the exit code."""
    title = f"T-maze, junction {settings.shortest} to {settings.longest} steps after the cue"
    header: dict[str, Any] = {
        "task": "rollout",
        "title": f"{title}, {settings.hidden_size} units",
        "command": command_line(MODULE, settings, RolloutSettings()),
        "settings": as_json(settings),
        "replicas": [{"name": name, "seed": settings.seed} for name in NAMES.values()],
        **surroundings(),
    }
    console.print(f"{header['title']}\n{header['machine']}, jax {header['jax']}", soft_wrap=True)
    path = settings.out / "metrics.jsonl"
    begin(path, header)
    writer = Writer(path, keep=HEADER)
    init, advance = make_learner(settings)
    learners = jax.jit(jax.vmap(init))(jnp.array(list(NAMES)))
    programs: dict[int, Any] = {}  # keyed by the number of updates in a call
    start, done, success = time.perf_counter(), 0, float("nan")
    while done < settings.updates and not wish.asked:
        count = min(settings.eval_every, settings.updates - done)
        if count not in programs:
            programs[count] = jax.jit(jax.vmap(advance(count)), donate_argnums=0)
        learners, found = programs[count](learners)
        done += count
        found = {name: np.asarray(values).tolist() for name, values in found.items()}
        seconds = round(time.perf_counter() - start, 3)
        for replica in range(len(NAMES)):
            line = {name: values[replica] for name, values in found.items()}
            writer.write("eval", replica=replica, update=done, **line, seconds=seconds)
        success = found["success"][0]
        shown = zip(NAMES.values(), found["success"], strict=True)
        told = ", ".join(f"{name} {value:.1%}" for name, value in shown)
        console.print(f"{done:,}/{settings.updates:,} updates: {told}", soft_wrap=True)
    if done < settings.updates:
        writer.close()
        console.print(f"Interrupted; {path} has the updates so far. The run cannot be resumed.")
        return EXIT_CODES["interrupted"]
    verdict = "solved" if success >= settings.solved else "not solved"
    writer.write("result", replica=0, verdict=verdict, success=success)
    writer.close()
    draw_success(read_run(path)).savefig(settings.out / "success.png")
    console.print(
        f"{verdict}: {success:.2%} of the last episodes ended well, after "
        f"{time.perf_counter() - start:.0f} s, compiling included. Wrote metrics.jsonl, "
        f"success.png to {settings.out}",
        soft_wrap=True,
    )
    return EXIT_CODES[verdict]


if __name__ == "__main__":
    sys.exit(main())
