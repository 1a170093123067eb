"""`newton_scan` compared with `scan`: time, memory, iterations, and where each is faster."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

import jaxgru
from benchmarks.timing import BOTH, FORWARD, Row, Times, interleave, temporary
from jaxgru.diagnostics import lyapunov_spectrum

SUITE = "newton"
MODES = ("dense", "diagonal")
INPUTS = 4
STEPS = (100, 1000, 10_000, 100_000)
WIDTHS = (1, 2, 4, 8, 16, 64)
#: B, T, H to time in addition to the map for B = 1.
BATCHES = ((16, 100, 1), (16, 1000, 4), (16, 1000, 16), (16, 10_000, 2))
MATRICES = 256e6  # bytes of T matrices [H, H] above which dense Newton is left out
DAMPINGS = (0.0, 0.1)
TURNS = 3.0  # seconds that the turns of one contestant may take

MAP = "B={} T={} H={}"
DARK = 30  # a ratio from which the map's colour needs white letters


def newton(rounds: int) -> Iterator[Row]:
    """Time GRUs with the reset gate after the product, with zeros as the first guess."""
    for batch, steps, hidden in (*((1, t, h) for h in WIDTHS for t in STEPS), *BATCHES):
        yield from _sizes(batch, steps, hidden, rounds)
    yield from _chaos()
    yield from _lengths()
    yield from _warm(rounds)
    yield from _minimal(rounds)


def _draw(hidden: int, scale: float = 1.0) -> jaxgru.GRUParams:
    params = jaxgru.gru_init(jax.random.key(0), INPUTS, hidden, reset_after=True, init="torch")
    return dataclasses.replace(params, w_hh=scale * params.w_hh)


def _draw_xs(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (*shape, INPUTS))


def _sizes(batch: int, steps: int, hidden: int, rounds: int) -> Iterator[Row]:
    runs: dict[str, Callable[..., Any]] = {"jaxgru": lambda p, xs: jaxgru.scan(p, xs)[1]}
    for mode in MODES:
        if mode == "diagonal" or 4 * batch * steps * hidden**2 <= MATRICES:
            runs[mode] = functools.partial(_outputs, mode)
    args = (_draw(hidden), _draw_xs(batch, steps))
    case = MAP.format(batch, steps, hidden)
    for what, compiled in _programs(runs, args):
        yield Row(SUITE, case, what, "s", _timed(compiled, args, rounds))
        memory = {name: temporary(program) for name, program in compiled.items()}
        yield Row(SUITE, case, f"temporary memory, {what}", "MB", memory)


def _programs(
    runs: dict[str, Callable[..., Any]], args: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The compiled programs over a batch: forward passes, and their gradients."""
    for what, wrap in ((FORWARD, lambda run: run), (BOTH, _gradient)):
        yield (
            what,
            {
                name: jax.jit(wrap(jax.vmap(run, in_axes=(None, 0)))).lower(*args).compile()
                for name, run in runs.items()
            },
        )


def _outputs(mode: str, params: Any, xs: jax.Array, guess: Any = None) -> jax.Array:
    return jaxgru.newton_scan(params, xs, jacobian=mode, guess=guess)[1]


def _gradient(run: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient of params and inputs."""
    return jax.grad(lambda params, xs: jnp.sum(run(params, xs) ** 2), argnums=(0, 1))


def _timed(programs: dict[str, Any], args: Any, rounds: int) -> dict[str, Times]:
    """Time programs in turns: fewer turns than rounds if one takes seconds, but at least two."""
    calls = {
        name: functools.partial(lambda run: jax.block_until_ready(run(*args)), program)
        for name, program in programs.items()
    }
    longest = 0.0
    for call in calls.values():
        start = time.perf_counter()
        call()
        longest = max(longest, time.perf_counter() - start)
    return interleave(calls, max(2, min(rounds, int(TURNS / longest))))


def _counts(params: Any, xs: jax.Array, dampings: tuple[float, ...] = (0.0,)) -> dict[str, Times]:
    """The Newton steps of each mode, or infinity if it did not converge."""
    found = {}
    for mode in MODES:
        for damping in dampings:
            run = functools.partial(jaxgru.newton_scan, jacobian=mode, damping=damping)
            info = jax.jit(run)(params, xs)[2]
            name = f"{mode}, damping {damping:g}" if damping else mode
            found[name] = Times.of(float(info.iterations) if info.converged else np.inf)
    return found


def _chaos() -> Iterator[Row]:
    """Count iterations against the Lyapunov exponent, by scaling recurrent weights."""
    steps, hidden = 1000, 8
    xs = _draw_xs(steps)
    for scale in (1.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0, 12.0):
        params = _draw(hidden, scale)
        exponent = float(lyapunov_spectrum(params, xs, k=1).exponents[0])
        case = f"T={steps} H={hidden}, exponent {exponent:+.3f}"
        counts = _counts(params, xs, DAMPINGS)
        yield Row(SUITE, case, "iterations and the Lyapunov exponent", "steps", counts)


def _lengths() -> Iterator[Row]:
    for steps in STEPS:
        counts = _counts(_draw(8), _draw_xs(steps))
        yield Row(SUITE, f"T={steps} H=8", "iterations and T", "steps", counts)


def _warm(rounds: int) -> Iterator[Row]:
    """Time a warm start: the guess is the trajectory before each weight changed by some share."""
    steps, hidden = 1000, 8
    params, xs = _draw(hidden), _draw_xs(steps)
    scan = jax.jit(jaxgru.scan)  # jitted as the others are, so that argument checks take no time
    for share in (1e-2, 1e-3, 1e-4):
        signs = jax.tree.map(
            lambda w: jnp.sign(jnp.sin(jnp.arange(1.0, w.size + 1)).reshape(w.shape)), params
        )
        moved = jax.tree.map(lambda w, s, share=share: w * (1 + share * s), params, signs)
        for mode in MODES:
            run = jax.jit(functools.partial(jaxgru.newton_scan, jacobian=mode))
            guess = run(params, xs)[2].states
            counts = {
                "cold": Times.of(float(run(moved, xs)[2].iterations)),
                "warm": Times.of(float(run(moved, xs, guess=guess)[2].iterations)),
            }
            case = f"T={steps} H={hidden} {mode}, weights moved by {share:g}"
            yield Row(SUITE, case, "iterations from a guess", "steps", counts)
            both: dict[str, Callable[[], Any]] = {
                "jaxgru": lambda: jax.block_until_ready(scan(moved, xs)),  # noqa: B023
                "cold": lambda: jax.block_until_ready(run(moved, xs)),  # noqa: B023
                "warm": lambda: jax.block_until_ready(run(moved, xs, guess=guess)),  # noqa: B023
            }
            yield Row(SUITE, case, "time from a guess", "s", interleave(both, rounds))


def _minimal(rounds: int) -> Iterator[Row]:
    """Time the minimal GRU, for which newton_scan is one associative scan."""
    for batch, steps, hidden in ((1, 1000, 16), (1, 10_000, 16), (1, 10_000, 128), (16, 1000, 64)):
        params = jaxgru.min_gru_init(jax.random.key(0), INPUTS, hidden)
        args = (params, _draw_xs(batch, steps))
        runs: dict[str, Callable[..., Any]] = {"jaxgru": lambda p, xs: jaxgru.scan(p, xs)[1]}
        runs["associative"] = functools.partial(_outputs, "diagonal")
        for what, compiled in _programs(runs, args):
            times = _timed(compiled, args, rounds)
            yield Row(SUITE, MAP.format(batch, steps, hidden), f"minimal GRU, {what}", "s", times)


def crossover(path: Path, title: str, rows: list[Row]) -> None:
    """Draw the time of `newton_scan` over that of `scan`, by minima, for each T and H at B = 1."""
    found = {(row.case, row.what): row.values for row in rows}
    figure = Figure(figsize=(9.6, 6.4), dpi=150, layout="constrained")
    figure.suptitle(f"Time of newton_scan over that of scan, by minima; B=1; {title}", fontsize=10)
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    norm = TwoSlopeNorm(0, -1, 2)
    image = None
    for panels, what in zip(grid, (FORWARD, BOTH), strict=True):
        for panel, mode in zip(panels, MODES, strict=True):
            ratios = np.full((len(STEPS), len(WIDTHS)), np.nan)
            for i, steps in enumerate(STEPS):
                for j, hidden in enumerate(WIDTHS):
                    values = found.get((MAP.format(1, steps, hidden), what), {})
                    text = "skipped"
                    if mode in values:
                        ratio = values[mode].minimum / values["jaxgru"].minimum
                        ratios[i, j] = ratio
                        text = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
                    colour = "white" if ratios[i, j] > DARK else "black"
                    panel.text(j, i, text, color=colour, ha="center", va="center", fontsize=8)
            image = panel.imshow(np.log10(ratios), cmap="RdBu_r", norm=norm, aspect="auto")
            panel.set_facecolor("0.9")
            panel.set_title(f"{mode}, {what}", fontsize=9)
            panel.set_xticks(range(len(WIDTHS)), map(str, WIDTHS))
            panel.set_yticks(range(len(STEPS)), [f"{steps:,}" for steps in STEPS])
    for panel in grid[1]:
        panel.set_xlabel("H")
    for panel in grid[:, 0]:
        panel.set_ylabel("T")
    assert image is not None
    bar = figure.colorbar(image, ax=grid, ticks=[-1, 0, 1, 2])
    bar.ax.set_yticklabels(["0.1: Newton wins", "1", "10", "100: scan wins"])
    figure.savefig(path)
