"""Figures of the diagnostics. Each function draws on an Axes object, and returns it.

This is the only module of the package that needs matplotlib: `pip install jaxgru[plots]`.
Colour-blind readers can tell the colours apart, and the lines also have different dashes. Legends
are above the axes.

    >>> import jax, jax.numpy as jnp, jaxgru
    >>> from jaxgru.diagnostics import memory_gradient, plots
    >>> from matplotlib.figure import Figure
    >>> params = jaxgru.gru_init(jax.random.key(0), input_size=3, hidden_size=8)
    >>> memory = memory_gradient(params, jnp.ones((20, 3), "float32"))
    >>> axes = Figure(layout="constrained").subplots()
    >>> plots.memory_gradient(axes, {"GRU": memory.log_gain}).get_xlabel()
    'lag, steps'
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from jaxgru.diagnostics.fixed_points import FixedPoints, RestingPoints
from jaxgru.diagnostics.gates import GateStatistics
from jaxgru.diagnostics.jacobians import GRUJacobianTerms
from jaxgru.diagnostics.lyapunov import LyapunovSpectrum

# Okabe & Ito 2008: colour-blind readers can tell these apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", "-.", ":")
STABLE, UNSTABLE, SLOW = COLOURS[0], COLOURS[1], COLOURS[4]
GREY = "0.45"


def memory_gradient(axes: Axes, log_gains: Mapping[str, ArrayLike]) -> Axes:
    """Draw the gain against the lag, on a log scale.

    Args:
        axes: where to draw.
        log_gains: for each name, `MemoryGradient.log_gain`: `[T + 1]`, or `[N, T + 1]` of N runs.
            N runs are drawn as their median over a band from the smallest to the largest value.
    """
    for k, (name, logs) in enumerate(log_gains.items()):
        gains = np.exp(np.asarray(logs, np.float64))
        _curve(axes, np.arange(gains.shape[-1]), gains, k, name)
    axes.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    return _finish(axes, "lag, steps", r"$|\partial h_T / \partial h_{T-lag}|$, rms", log=True)


def gradient_norms(axes: Axes, norms: Mapping[str, ArrayLike]) -> Axes:
    """Draw the gradient of a loss at every state against time, on a log scale.

    Args:
        axes: where to draw.
        norms: for each name, what `gradient_norms` returned: `[T + 1]`, or `[N, T + 1]` of N runs.
            N runs are drawn as their median over a band from the smallest to the largest value.
    """
    for k, (name, each) in enumerate(norms.items()):
        values = np.asarray(each, np.float64)
        _curve(axes, np.arange(values.shape[-1]), values, k, name)
    return _finish(axes, "time step t", r"$|\partial L / \partial h_t|$", log=True)


def singular_values(axes: Axes, log_singular_values: ArrayLike) -> Axes:
    """Draw the singular values of ds_T/ds_{T-lag} against the lag, one line each, on a log scale.

    Args:
        axes: where to draw.
        log_singular_values: `[T + 1, S]`, of a `MemoryGradient`.
    """
    values = np.exp(np.asarray(log_singular_values, np.float64))
    lags = np.arange(len(values))
    axes.plot(lags, values[:, 1:], color=COLOURS[5], linewidth=0.8, alpha=0.7)
    axes.plot(lags, values[:, 0], color=COLOURS[0], linewidth=1.8, label="largest")
    axes.plot([], [], color=COLOURS[5], linewidth=0.8, label="the others")
    ylabel = r"singular values of $\partial h_T / \partial h_{T-lag}$"
    return _finish(axes, "lag, steps", ylabel, log=True)


def jacobian_terms(
    axes: Axes, shares: ArrayLike, xs: ArrayLike | None = None, xlabel: str = "time step t"
) -> Axes:
    """Draw the share of each term in the Jacobian of a GRU.

    Args:
        axes: where to draw.
        shares: `GRUJacobianTerms.shares()`, `[X, 4]`, or `[N, X, 4]` of N runs.
            N runs are drawn as their median over a band from the smallest to the largest value.
        xs: `[X]`, the values on the horizontal axis. None stands for the steps 1 .. T.
        xlabel: the label of that axis.
    """
    values = np.asarray(shares, np.float64)
    places = 1 + np.arange(values.shape[-2]) if xs is None else np.asarray(xs)
    for k, name in enumerate(GRUJacobianTerms._fields):
        _curve(axes, places, values[..., k], k, name)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    return _finish(axes, xlabel, r"share of $\partial h_t / \partial h_{t-1}$")


def lyapunov_spectrum(axes: Axes, spectra: Mapping[str, LyapunovSpectrum]) -> Axes:
    """Draw the exponents by rank, over a band of two standard errors to each side.

    Args:
        axes: where to draw.
        spectra: for each name, what `lyapunov_spectrum` returned.
    """
    for k, (name, spectrum) in enumerate(spectra.items()):
        exponents, errors = (np.asarray(leaf, np.float64) for leaf in spectrum)
        ranks = 1 + np.arange(len(exponents))
        band = exponents - 2 * errors, exponents + 2 * errors
        axes.fill_between(ranks, *band, color=_colour(k), alpha=0.2, linewidth=0)
        axes.plot(ranks, exponents, color=_colour(k), linestyle=_dash(k), label=name,
                  marker=".", markersize=4, linewidth=1.2)  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(axes, "rank", "exponent, nats per step")


def fixed_points(axes: Axes, found: FixedPoints, states: ArrayLike | None = None) -> Axes:
    """Draw fixed and slow points in the plane of the first two principal components.

    Args:
        axes: where to draw.
        found: what `fixed_points` returned.
        states: `[N, T, S]`, runs of the network, which are drawn as thin lines. The principal
            components are those of these states, or of the points if states is None.
    """
    kinds = {
        "stable": (found.fixed.points[found.fixed.stable], "o", STABLE, STABLE),
        "unstable": (found.fixed.points[~found.fixed.stable], "o", "white", UNSTABLE),
        "slow": (found.slow.points, "D", SLOW, SLOW),
    }
    runs = None if states is None else np.asarray(states, np.float64)
    size = found.fixed.points.shape[1]
    cloud = np.concatenate([points for points, *_ in kinds.values()])
    cloud = cloud if runs is None else runs.reshape(-1, size)
    middle, directions, shares = _components(cloud)
    if runs is not None:
        for line in (runs - middle) @ directions:
            axes.plot(*line.T, color="0.75", linewidth=0.5, zorder=0)
    for name, (points, marker, face, edge) in kinds.items():
        if len(points):
            look: Any = {"markerfacecolor": face, "markeredgecolor": edge, "markersize": 5}
            places = ((points - middle) @ directions).T
            axes.plot(*places, marker, **look, label=f"{name} ({len(points)})")
    labels = [f"component {k + 1} ({share:.0%} of variance)" for k, share in enumerate(shares)]
    return _finish(axes, *labels)


def eigenvalues(axes: Axes, points: RestingPoints) -> Axes:
    """Draw the eigenvalues of all points in the complex plane, with the unit circle.

    Args:
        axes: where to draw.
        points: the fixed or the slow points that `fixed_points` found.
    """
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color=GREY, linewidth=0.8, zorder=0)
    for name, chosen, marker, colour in (
        ("of stable points", points.stable, "o", STABLE),
        ("of unstable points", ~points.stable, "x", UNSTABLE),
    ):
        values = points.eigenvalues[chosen].ravel()
        if len(values):
            axes.plot(np.real(values), np.imag(values), marker, color=colour, markersize=4,
                      markerfacecolor="none", linestyle="none", label=name)  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    return _finish(axes, "real part", "imaginary part")


def gate_statistics(axes: Axes, statistics: GateStatistics, gate: str) -> Axes:
    """Draw one gate of every unit: the median over bands between pairs of quantiles.

    Units are sorted by their median. The scale is log-odds, which shows values near 0 and near 1.

    Args:
        axes: where to draw.
        statistics: what `gate_statistics` returned, with at least three quantiles, of which the
            middle one is the median.
        gate: the name of the gate, such as `"z"`.
    """
    levels = statistics.gates[gate].quantiles
    levels = levels[:, np.argsort(levels[len(levels) // 2])]
    units = 1 + np.arange(levels.shape[1])
    for k in range(len(levels) // 2):
        axes.fill_between(units, levels[k], levels[-1 - k], color=COLOURS[0], alpha=0.2,
                          step="mid", linewidth=0)  # fmt: skip
    axes.step(units, levels[len(levels) // 2], color=COLOURS[0], where="mid", label="median")
    axes.fill_between([], [], [], color=COLOURS[0], alpha=0.2, label="quantiles")
    axes.set_yscale("logit")
    axes.yaxis.set_minor_formatter("")
    return _finish(axes, "unit, sorted by median", f"gate {gate}")


def half_lives(axes: Axes, statistics: Mapping[str, GateStatistics]) -> Axes:
    """Draw the half-lives of all units, sorted, on a log scale.

    Args:
        axes: where to draw.
        statistics: for each name, what `gate_statistics` returned.
    """
    for k, (name, each) in enumerate(statistics.items()):
        values = np.sort(each.half_life)
        units = 1 + np.arange(len(values))
        axes.step(units, values, color=_colour(k), linestyle=_dash(k), where="mid", label=name)
    return _finish(axes, "unit, sorted", "half-life, steps", log=True)


def _curve(axes: Axes, xs: np.ndarray, ys: np.ndarray, k: int, name: str) -> None:
    """Draw `[X]` as a line, or `[N, X]` as a median over a band."""
    if ys.ndim == 2:
        axes.fill_between(xs, ys.min(0), ys.max(0), color=_colour(k), alpha=0.2, linewidth=0)
        ys = np.median(ys, axis=0)
    axes.plot(xs, ys, color=_colour(k), linestyle=_dash(k), linewidth=1.6, label=name)


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


def _dash(k: int) -> str:
    return DASHES[k % len(DASHES)]


def _components(cloud: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return the mean, the first two principal directions `[S, 2]`, and their variance shares."""
    middle = cloud.mean(0)
    _, values, directions = np.linalg.svd(cloud - middle, full_matrices=False)
    directions, values = directions[:2].T, values**2 / max(float((values**2).sum()), 1e-300)
    if directions.shape[1] < 2:  # there is one unit or one point
        directions = np.pad(directions, ((0, 0), (0, 1)))
        values = np.append(values, 0.0)
    return middle, directions, values[:2]


def _finish(axes: Axes, xlabel: str, ylabel: str, *, log: bool = False) -> Axes:
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    count = len(axes.get_legend_handles_labels()[1])
    if count > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1),
                    borderaxespad=0.2, ncols=min(count, 4), columnspacing=1.2)  # fmt: skip
    return axes
