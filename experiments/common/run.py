"""One training run as the user sees it: header, progress, records, picture, verdict."""

import dataclasses
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from experiments.common.metrics import read_run, write_line
from experiments.common.plots import learning_curves
from experiments.common.progress import progress
from experiments.common.training import TrainChunk, TrainState

EXIT_CODES = {"solved": 0, "not solved": 1, "not finite": 3, "interrupted": 130}


class UsageError(Exception):
    """What the user asked for cannot be done; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs to know of its task; all of it goes into the record's header."""

    title: str
    config: dict[str, Any]
    parameters: int
    updates: int  # the budget
    eval_every: int
    batch_size: int
    baseline: float
    threshold: float  # solved when the test loss is below


class Eval(NamedTuple):
    update: int
    train_loss: float
    test_loss: float
    seconds: float


def make_folder(out: Path) -> None:
    """Create the folder of a run. One that holds anything is refused: no run mixes with another."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UsageError(f"{out} is in use; choose another folder with --out, or remove it")
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {out}: permission denied")


def run(
    console: Console,
    plan: Plan,
    out: Path,
    train_chunk: TrainChunk,
    state: TrainState,
    test_set: Any,
) -> int:
    """Train until solved or until the budget is spent; returns the exit code."""
    device = jax.devices()[0]
    machine = {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    _print_header(console, plan, machine)

    evals: list[Eval] = []
    compile_seconds = 0.0
    verdict = "not solved"
    path = out / "metrics.jsonl"
    with path.open("w") as file:
        write_line(file, "header", **dataclasses.asdict(plan) | machine)
        try:
            compile_start = time.perf_counter()
            compiled = jax.jit(train_chunk).lower(state, jnp.int32(1), test_set).compile()
            compile_seconds = time.perf_counter() - compile_start
            console.print(f"Compiled in {compile_seconds:.1f} s.")
            with progress(console, plan.updates, plan.baseline) as show:
                for line in _train(compiled, state, test_set, plan.updates, plan.eval_every):
                    evals.append(line)
                    write_line(file, "eval", **line._asdict())
                    show(line.update, line.test_loss, line.seconds)
                    if not (math.isfinite(line.train_loss) and math.isfinite(line.test_loss)):
                        verdict = "not finite"
                        break
                    if line.test_loss < plan.threshold:
                        verdict = "solved"
                        break
        except KeyboardInterrupt:
            verdict = "interrupted"
        last = evals[-1] if evals else Eval(0, math.nan, math.nan, 0.0)
        write_line(
            file, "result", verdict=verdict, **last._asdict(), compile_seconds=compile_seconds
        )

    _print_verdict(console, plan, verdict, last, compile_seconds)
    written = [path.name]
    if evals:
        learning_curves(out / "learning_curve.png", [read_run(path)])
        written.append("learning_curve.png")
    console.print(f"Wrote {' and '.join(written)} to {out}", soft_wrap=True)
    return EXIT_CODES[verdict]


def _train(
    train_chunk: Any, state: TrainState, test_set: Any, updates: int, eval_every: int
) -> Iterator[Eval]:
    done, start = 0, time.perf_counter()
    while done < updates:
        count = min(eval_every, updates - done)
        state, losses = train_chunk(state, jnp.int32(count), test_set)
        done += count
        train_loss, test_loss = map(float, jax.device_get(losses))
        yield Eval(done, train_loss, test_loss, time.perf_counter() - start)


def _print_header(console: Console, plan: Plan, machine: dict[str, str]) -> None:
    examples = plan.updates * plan.batch_size
    lines = {
        plan.title: "",
        "parameters": f"{plan.parameters:,}",
        "budget": f"{plan.updates:,} updates of {plan.batch_size} examples, {examples:,} in all",
        "baseline": f"{plan.baseline:.4f}; solved below {plan.threshold:g}",
        "device": f"{machine['device']}, jax {machine['jax']}",
    }
    for name, text in lines.items():
        console.print(f"{name:<12}{text}".rstrip(), soft_wrap=True)


def _print_verdict(
    console: Console, plan: Plan, verdict: str, last: Eval, compile_seconds: float
) -> None:
    what = {
        "solved": f"Solved: test loss {last.test_loss:.2e}, below {plan.threshold:g}.",
        "not solved": f"Not solved: test loss {last.test_loss:.2e}, not below {plan.threshold:g}.",
        "not finite": "Stopped: the loss is no longer finite. A lower --learning-rate may help.",
        "interrupted": "Interrupted.",
    }[verdict]
    console.print(
        f"{what} {last.update:,} updates, {last.update * plan.batch_size:,} examples, "
        f"{last.seconds:.1f} s and {compile_seconds:.1f} s to compile.",
        soft_wrap=True,
    )
