"""The map of a population."""

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

BROKEN = "0.75"
DPI = 150


def draw_map(record: dict[str, Any], baseline: float) -> Figure:
    """Draw the test loss by learning rate and update bias, from a record in its written form."""
    rates, biases = np.array(record["learning_rates"]), np.array(record["biases"])
    losses = np.array(record["test_loss"], np.float64).T  # null becomes NaN
    settings = record["settings"]
    figure = Figure(figsize=(7.6, 5.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor(BROKEN)
    fine = losses[np.isfinite(losses)]
    low = min(fine.min(initial=baseline), 0.9 * baseline)
    mesh = axes.pcolormesh(
        _edges(np.log(rates), np.exp),
        _edges(biases),
        losses,
        norm=LogNorm(low, 1),
        cmap="viridis_r",
    )
    axes.set_xscale("log")
    if min(losses.shape) > 1 and fine.size == losses.size and fine.min() < baseline < fine.max():
        axes.contour(rates, biases, losses, [baseline], colors="#d55e00", linewidths=1)
        axes.plot([], [], color="#d55e00", linewidth=1, label=f"baseline, {baseline:.3g}")
    if fine.size:
        row, column = np.unravel_index(np.nanargmin(losses), losses.shape)
        label = f"best, {losses[row, column]:.2g}"
        axes.plot(rates[column], biases[row], "*", color="white", markeredgecolor="black",
                  markersize=13, label=label)  # fmt: skip
    if fine.size < losses.size:
        axes.fill_between([], [], [], color=BROKEN, label="not finite")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("bias of the update gate")
    holds = axes.secondary_yaxis("right", functions=(lambda b: b, lambda b: b))
    ticks = np.array([t for t in axes.get_yticks() if biases[0] <= t <= biases[-1]])
    holds.set_yticks(ticks, [_three_digits(1 + np.exp(-t)) for t in ticks])
    holds.set_ylabel("steps that a fresh unit holds, 1 / z")
    figure.colorbar(mesh, ax=axes, label="test loss", extend="max", pad=0.02)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize=8,
        borderaxespad=0.2,
    )
    title = (
        f"Adding problem, T={settings['length']}: {losses.size:,} GRUs of "
        f"{settings['hidden_size']} units after {settings['updates']:,} updates"
    )
    figure.suptitle(title, fontsize=11, x=0.02, horizontalalignment="left")
    note = (
        f"{record['command']}\nseed {settings['seed']}, {settings['batch_size']} examples an "
        f"update, {record['seconds']:.0f} s, {record['machine']}"
    )
    figure.supxlabel(note, fontsize=7, color="0.35", x=0.02, horizontalalignment="left")
    return figure


def _edges(centres: np.ndarray, back: Any = lambda edges: edges) -> np.ndarray:
    """The edges of cells around evenly spaced centres."""
    half = (centres[1] - centres[0]) / 2 if len(centres) > 1 else 0.5
    return back(np.append(centres - half, centres[-1] + half))


def _three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}"
