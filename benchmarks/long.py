"""Memory and time of very long sequences: `python -m benchmarks.long --help`."""

import dataclasses
import json
import math
import resource
import subprocess
import sys
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from jax import Array, lax

import jaxgru
from experiments.common.machine import machine

RUNS = ("nothing", "forward", "gradient", "truncated")


@dataclasses.dataclass(frozen=True)
class Config:
    """Print the costs of a long sequence, and the errors of truncated backpropagation.

    A separate process measures each cost.
    """

    steps: int = 1_000_000
    """T."""
    inputs: int = 4
    """I."""
    hidden: int = 32
    """H."""
    every: tuple[int, ...] = (10, 100, 1000, 10_000, 100_000)
    """The values of checkpoint, and the lengths of the stretches of truncated backpropagation."""
    run: Literal["nothing", "forward", "gradient", "truncated"] | None = None
    """Measure only this run, in this process, and print JSON. The command itself uses it."""
    loss: Literal["outputs", "last"] = "outputs"
    """The mean square of all outputs, or of the last state, which needs no outputs."""
    checkpoint: int | None = None
    """With run: the steps between states that are kept, or the length of a stretch."""


def truncated(params: Any, xs: Array, stretch: int, loss: Any) -> tuple[Any, Any]:
    """(loss, gradient). The gradient is cut every `stretch` steps, a divisor of all steps."""

    def part(state: Any, xs: Array) -> tuple[Any, None]:
        carry, value, gradient = state

        def run(params: Any) -> tuple[Array, Array]:
            last, hs = jaxgru.scan(params, xs, carry)
            return loss(hs), last

        (more, carry), new = jax.value_and_grad(run, has_aux=True)(params)
        return (carry, value + more, jax.tree.map(jnp.add, gradient, new)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    start = (jaxgru.initial_carry(params), jnp.zeros((), xs.dtype), zeros)
    parts = xs.reshape(-1, stretch, *xs.shape[1:])
    (_, value, gradient), _ = lax.scan(part, start, parts)
    return value, gradient


def measure(config: Config) -> dict[str, float]:
    """The seconds of the second of two runs, peak resident memory in MB, and temporary memory."""
    params = jaxgru.gru_init(jax.random.key(0), config.inputs, config.hidden)
    xs = jax.random.normal(jax.random.key(1), (config.steps, config.inputs), params.w_ih.dtype)

    def mean(hs: Array) -> Array:
        return jnp.sum(hs**2) / (config.steps * config.hidden)

    def loss(params: Any, xs: Array) -> Array:
        last, hs = jaxgru.scan(params, xs, checkpoint=config.checkpoint)
        return mean(hs) if config.loss == "outputs" else jnp.mean(last**2)

    runs: dict[str, Any] = {
        "nothing": lambda params, xs: xs[0],
        "forward": loss,
        "gradient": jax.value_and_grad(loss),
        "truncated": lambda params, xs: truncated(params, xs, config.checkpoint or 1, mean),
    }
    compiled: Any = jax.jit(runs[config.run or "nothing"]).lower(params, xs).compile()
    seconds = math.inf
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, xs))
        seconds = time.perf_counter() - start
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "resident": kilobytes / 1e3 * (1e-3 if sys.platform == "darwin" else 1.024),
        "temporary": compiled.memory_analysis().temp_size_in_bytes / 1e6,
    }


def elsewhere(config: Config) -> dict[str, float]:
    """Run `measure` in a fresh process, since peak resident memory is that of a whole process."""
    command = [sys.executable, "-m", "benchmarks.long", "--run", str(config.run)]
    command += ["--loss", config.loss, "--steps", str(config.steps)]
    command += ["--inputs", str(config.inputs), "--hidden", str(config.hidden)]
    command += ["--checkpoint", str(config.checkpoint)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def costs(config: Config) -> None:
    print("| loss of | run | every | resident, MB | temporary, MB | s | steps a s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    every = [k for k in config.every if config.steps % k == 0]
    cases: list[tuple[Any, Any, int | None]] = [("outputs", run, None) for run in RUNS[:3]]
    cases += [("outputs", "gradient", k) for k in every]
    cases += [("last", "gradient", k) for k in (None, *every)]
    cases += [("outputs", "truncated", k) for k in every]
    for loss, run, k in cases:
        found = elsewhere(dataclasses.replace(config, loss=loss, run=run, checkpoint=k))
        speed = "" if run == "nothing" else f"{config.steps / found['seconds']:,.0f}"
        print(
            f"| {loss} | {run} | {'' if k is None else f'{k:,}'} | {found['resident']:.0f}"
            f" | {found['temporary']:.1f} | {found['seconds']:.2f} | {speed} |",
            flush=True,
        )


def bias(steps: int = 4096) -> None:
    """Compare the truncated gradient with the exact one.

    The loss compares outputs with the input `lag` steps before, for a network that forgets soon and
    for one that does not.
    """
    print(f"\nT={steps}, H=16: cosine between truncated and exact gradient, and ratio of norms\n")
    print("| units forget over | lag | stretch | cosine | norm |")
    print("| --- | --- | --- | --- | --- |")
    xs = jax.random.normal(jax.random.key(1), (steps, 2), "float32")
    for chrono, lag in ((None, 1), (None, 64), (256, 1), (256, 64)):
        params = jaxgru.gru_init(jax.random.key(0), 2, 16, chrono=chrono)
        late = jnp.pad(xs[:-lag, :1], ((lag, 0), (0, 0)))

        def gradient(stretch: int, params: Any = params, late: Array = late) -> Array:
            def loss(params: Any) -> Array:
                def part(carry: Any, part: Any) -> tuple[Any, Array]:
                    carry, hs = jaxgru.scan(params, part[0], lax.stop_gradient(carry))
                    return carry, jnp.sum((jnp.mean(hs, 1, keepdims=True) - part[1]) ** 2)

                parts = jax.tree.map(lambda a: a.reshape(-1, stretch, a.shape[-1]), (xs, late))
                return jnp.sum(lax.scan(part, jaxgru.initial_carry(params), parts)[1])

            leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
            return jnp.concatenate([leaf.ravel() for leaf in leaves])

        exact = gradient(steps)
        for stretch in (4, 16, 64, 256, 1024):
            cut = gradient(stretch)
            norms = jnp.linalg.norm(cut), jnp.linalg.norm(exact)
            cosine, ratio = cut @ exact / (norms[0] * norms[1]), norms[0] / norms[1]
            memory = f"1 to {chrono - 1} steps" if chrono else "about 2 steps"
            print(f"| {memory} | {lag} | {stretch} | {cosine:.4f} | {ratio:.3f} |", flush=True)


def main() -> int:
    config = tyro.cli(Config, prog="python -m benchmarks.long")
    if config.run is not None:
        print(json.dumps(measure(config)))
        return 0
    print(f"{machine()}; T={config.steps:,} I={config.inputs} H={config.hidden}\n")
    costs(config)
    bias()
    return 0


if __name__ == "__main__":
    sys.exit(main())
