"""The figures of the study, and the numbers in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.mechanism.measure import Moment
from jaxgru.diagnostics import plots

DPI = 200
FLOOR = 1e-12  # speeds below it are rounding errors
Moments = Mapping[str, Moment]


def draw(out: Path, moments: Moments, length: int) -> list[str]:
    """Write the figures, and return their names."""
    panels = {"units": units, "gradient": gradient, "lyapunov": lyapunov, "fixed_points": points}
    for name, panel in panels.items():
        figure = Figure(figsize=(7.2, 3.4), dpi=DPI, layout="constrained")
        panel(figure, moments, length)
        figure.savefig(out / f"{name}.png")
    return [f"{name}.png" for name in panels]


def units(figure: Figure, moments: Moments, length: int) -> None:
    """Draw the half-life of every unit in the gap, sorted, and after training against before."""
    left, right = figure.subplots(1, 2)
    for k, (name, moment) in enumerate(moments.items()):
        values = np.sort(moment.half_life)
        ranks, colour = 1 + np.arange(len(values)), plots.COLOURS[k]
        left.step(ranks, values, where="mid", color=colour, label=name)
    left.axhline(length, color=plots.GREY, linestyle="--", linewidth=1)
    left.annotate("the gap", (1, length), textcoords="offset points", xytext=(0, 4), fontsize=8)
    left.set_yscale("log")
    left.set_xlabel("unit, sorted")
    left.set_ylabel("half-life in the gap, steps")
    first, *_, last = moments.values()
    look: dict[str, Any] = {"markersize": 3.5, "color": plots.COLOURS[0], "alpha": 0.7}
    right.plot(first.half_life, last.half_life, "o", **look)
    for axis in (right.axhline, right.axvline):
        axis(length, color=plots.GREY, linestyle="--", linewidth=1)
    both = np.concatenate([first.half_life, last.half_life])
    right.plot([both.min(), both.max()], [both.min(), both.max()], color=plots.GREY, linewidth=0.8)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("half-life as drawn, steps")
    right.set_ylabel("half-life after training, steps")
    left.legend(frameon=False, fontsize=8)
    _finish(left, right)


def gradient(figure: Figure, moments: Moments, length: int) -> None:
    """Draw the gradient backwards from the last state of the gap."""
    axes = figure.subplots()
    plots.memory_gradient(axes, {name: moment.log_gain for name, moment in moments.items()})
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    largest = max(moment.log_gain.max() for moment in moments.values())
    axes.set_ylim(1e-8, np.exp(np.clip(largest, np.log(100), np.log(1e8))))


def lyapunov(figure: Figure, moments: Moments, length: int) -> None:
    """Draw the whole spectrum, and its slow end as time constants."""
    left, right = figure.subplots(1, 2)
    plots.lyapunov_spectrum(left, {name: moment.spectrum for name, moment in moments.items()})
    for k, (name, moment) in enumerate(moments.items()):
        rates = -np.asarray(moment.spectrum.exponents)
        shown = rates > 0
        right.plot(1 + np.flatnonzero(shown), 1 / rates[shown], ".-", color=plots.COLOURS[k],
                   markersize=4, linewidth=1, label=name)  # fmt: skip
    right.axhline(length, color=plots.GREY, linestyle="--", linewidth=1)
    right.set_yscale("log")
    right.set_xlabel("rank")
    right.set_ylabel("-1 / exponent, steps")
    left.locator_params(axis="x", nbins=5)
    _finish(right)


def points(figure: Figure, moments: Moments, length: int) -> None:
    """Draw runs through the gap after training, the speed of the state, and slow directions."""
    left, middle, right = figure.subplots(1, 3)
    *_, last = moments.values()
    plots.fixed_points(left, last.points, last.states)
    for k, (name, moment) in enumerate(moments.items()):
        colour = plots.COLOURS[k]
        speed = np.maximum(moment.speed, FLOOR)
        middle.fill_between(moment.times, speed.min(0), speed.max(0), color=colour, alpha=0.15,
                            linewidth=0)  # fmt: skip
        middle.plot(moment.times, np.median(speed, axis=0), color=colour, label=name)
        values = np.median(moment.time_constants, axis=0)  # infinite ones are not drawn
        right.plot(1 + np.arange(len(values)), values, color=colour)
    middle.set_xscale("log")
    middle.set_yscale("log")
    middle.set_xlabel("step of the gap")
    middle.set_ylabel(r"$|h_t - h_{t-1}|$")
    middle.legend(frameon=False, fontsize=7)
    right.axhline(length, color=plots.GREY, linestyle="--", linewidth=1)
    right.set_yscale("log")
    right.set_xlabel("direction, sorted")
    right.set_ylabel("time constant at the gap's end, steps")
    for axes in (left, middle, right):
        axes.xaxis.label.set_fontsize(8)
        axes.yaxis.label.set_fontsize(8)
        axes.tick_params(labelsize=8)
    _finish(middle, right)


def numbers(moment: Moment, length: int) -> dict[str, Any]:
    exponents = np.asarray(moment.spectrum.exponents)
    fixed, slow = moment.points.fixed, moment.points.slow
    return {
        "units_beyond_gap": int((moment.half_life > length).sum()),
        "log_gain": {
            str(lag): moment.log_gain[:, lag].tolist()
            for lag in _lags(moment.log_gain.shape[1] - 1)
        },
        "exponents": exponents.tolist(),
        "exponents_slower_than_gap": int((exponents > -1 / length).sum()),
        "fixed_points": len(fixed.points),
        "stable": int(fixed.stable.sum()),
        "slow_points": len(slow.points),
        "lost": moment.points.lost,
        "speed_at_the_end": float(np.median(moment.speed[:, -1])),
        "directions_slower_than_gap": float(np.median((moment.time_constants > length).sum(1))),
        "directions_that_grow": float(np.median(np.isinf(moment.time_constants).sum(1))),
        "distance_to_nearest": float(np.median(moment.distance)),
        "recall": moment.recall,
        "recall_from_nearest": moment.recall_at_points,
    }


def _lags(last: int) -> list[int]:
    return sorted({lag for lag in (1, 10, 100, 1000, 10_000, 100_000) if lag < last} | {last})


def _finish(*panels: Any) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(which="major", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
