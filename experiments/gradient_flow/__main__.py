"""Measure how far gradients reach: `python -m experiments.gradient_flow --help`."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from experiments.adding_task.task import make_task
from experiments.common.command import in_one_go
from experiments.common.machine import surroundings
from experiments.common.metrics import plain
from experiments.common.model import Network
from experiments.common.progress import progress
from experiments.common.settings import as_json, command_line
from experiments.common.task import Example, Task
from experiments.common.training import make_evaluate, make_train_chunk, test_keys, train_init
from experiments.gradient_flow import figures
from experiments.gradient_flow.measure import flow, sweep, term_shares
from experiments.gradient_flow.settings import CELLS, Cell, GradientFlowSettings, check
from jaxgru.diagnostics import gate_statistics

MODULE = "python -m experiments.gradient_flow"


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(GradientFlowSettings, prog=MODULE, args=args)
    return in_one_go(settings.out, lambda: check(settings), lambda console: run(console, settings))


def run(console: Console, settings: GradientFlowSettings) -> int:
    """Train, measure and draw, and return the exit code."""
    start = time.perf_counter()
    header: dict[str, Any] = {
        "command": command_line(MODULE, settings, GradientFlowSettings()),
        "settings": as_json(settings),
        **surroundings(),
        "training": {},
    }
    console.print(f"{header['command']}\n{header['machine']}, jax {header['jax']}", soft_wrap=True)
    networks: dict[str, dict[str, Network]] = {"fresh": {}, "trained": {}}
    flows: dict[str, dict[str, Any]] = {"fresh": {}, "trained": {}}
    examples = held_out(make_task(settings.adding("gru")), settings)
    for cell in CELLS:
        console.print(f"Training: {figures.NAMES[cell]}")
        task = make_task(settings.adding(cell))
        *both, header["training"][cell] = train(console, task, settings, cell)
        for when, network in zip(networks, both, strict=True):
            networks[when][cell] = network
            flows[when][cell] = flow(task, network, examples)

    console.print("The GRU's update bias")
    gru = networks["fresh"]["gru"]
    swept = sweep(gru, examples.xs, settings.biases)
    shares = {
        when: np.asarray(jax.vmap(term_shares, in_axes=(0, None))(each["gru"].cell, examples.xs))
        for when, each in networks.items()
    }
    statistics = {
        when: gate_statistics(jax.tree.map(lambda leaf: leaf[0], each["gru"].cell), [examples.xs])
        for when, each in networks.items()
    }
    found = {
        "memory": figures.memory(settings.out, flows),
        "bias": figures.update_bias(settings.out, settings.biases, swept),
    }
    figures.loss_gradient(settings.out, flows)
    figures.lyapunov(settings.out, flows)
    figures.jacobian_terms(settings.out, settings.biases, swept, shares)
    figures.gates(settings.out, statistics)
    header["seconds"] = time.perf_counter() - start
    (settings.out / "run.json").write_text(json.dumps(plain(header), indent=1) + "\n")
    say(console, settings, found, header)
    return 0


def held_out(task: Task, settings: GradientFlowSettings) -> Example:
    """The first examples of the task's test set, leaves `[N, ...]`."""
    keys = test_keys(settings.examples)
    return jax.vmap(task.sampler(settings.length), in_axes=(0, None))(keys, jnp.int32(0))


def train(
    console: Console, task: Task, settings: GradientFlowSettings, cell: Cell
) -> tuple[Network, Network, dict[str, Any]]:
    """(fresh networks, trained networks, the outcome), with all seeds in one program."""
    how, start = settings.adding(cell), time.perf_counter()
    seeds = jnp.asarray(settings.seeds, jnp.uint32)
    rate = jnp.float32(settings.learning_rate)
    init = jax.vmap(lambda seed: train_init(task, how, seed, rate))
    chunk = jax.vmap(make_train_chunk(task, how, settings.length), in_axes=(0, None, None, None))
    evaluate: Callable[..., Any] = jax.vmap(make_evaluate(task, how, task.stages[-1]))
    advance, evaluate = jax.jit(chunk), jax.jit(evaluate)
    state = jax.jit(init)(seeds)
    fresh, losses = state.network, np.asarray(evaluate(state.network)["loss"])
    with progress(console, settings.updates, len(settings.seeds), task.baseline) as show:
        for done in range(0, settings.updates, how.eval_every):
            count = min(how.eval_every, settings.updates - done)
            state, _ = advance(state, jnp.int32(count), jnp.int32(0), jnp.int32(1))
            losses = np.asarray(evaluate(state.network)["loss"], np.float64)
            for r, loss in enumerate(losses):
                line = {"replica": r, "update": done + count, "length": settings.length}
                show(line | {"train_loss": float(loss), "test_loss": float(loss)})
    result = {"test_loss": losses.tolist(), "baseline": task.baseline}
    return fresh, state.network, result | {"seconds": time.perf_counter() - start}


def say(
    console: Console, settings: GradientFlowSettings, found: dict[str, Any], header: dict[str, Any]
) -> None:
    """Print the numbers: the median of the seeds, and the least and the greatest in brackets."""
    for when, cells in found["memory"].items():
        for cell, numbers in cells.items():
            gain = np.exp(numbers["log_gain_at_last_lag"])
            loss = f", test loss {_spread(header['training'][cell]['test_loss'])}"
            console.print(
                f"{figures.NAMES[cell]}, {when}: gain {_spread(gain)} at lag {settings.length}, "
                f"{_spread(numbers['factor_per_step'], '.4f')} per step"
                f"{loss if when == 'trained' else ''}",
                soft_wrap=True,
            )
    last = np.asarray(found["bias"]["gain_at_last_lag"])
    for k, bias in enumerate(settings.biases):
        console.print(f"update bias {bias:g}: gain {_spread(last[:, k])} at lag {settings.length}")
    console.print(f"Wrote figures and numbers to {settings.out} in {header['seconds']:.0f} s")


def _spread(values: Any, form: str = ".2g") -> str:
    low, middle, high = np.min(values), np.median(values), np.max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    sys.exit(main())
