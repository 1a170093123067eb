"""The figures of the study, and the numbers in each of them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.common.metrics import plain
from experiments.gradient_flow.measure import Flow, Sweep, rates
from jaxgru.diagnostics import GateStatistics, GRUJacobianTerms, LyapunovSpectrum, plots

NAMES = {"elman": "plain RNN", "lstm": "LSTM", "gru": "GRU"}
WHEN = {"fresh": "as drawn", "trained": "after training on the adding problem"}
DPI = 200
Flows = Mapping[str, Mapping[str, Flow]]  # fresh or trained -> cell -> flow


def memory(out: Path, flows: Flows) -> dict[str, Any]:
    """Draw gain against lag."""

    def panel(axes: Axes, cells: Mapping[str, Flow]) -> None:
        plots.memory_gradient(axes, {name: flow.log_gain for name, flow in cells.items()})

    def numbers(flow: Flow) -> dict[str, np.ndarray]:
        return {
            "factor_per_step": rates(flow.log_gain),
            "log_gain_at_last_lag": flow.log_gain[:, -1],
            "log_gain": flow.log_gain,
        }

    return _compare(out / "memory", flows, panel, numbers)


def loss_gradient(out: Path, flows: Flows) -> dict[str, Any]:
    """Draw the loss's gradient against time."""

    def panel(axes: Axes, cells: Mapping[str, Flow]) -> None:
        plots.gradient_norms(axes, {name: np.exp(flow.log_norms) for name, flow in cells.items()})

    def numbers(flow: Flow) -> dict[str, np.ndarray]:
        first, last = flow.log_norms[:, 0], flow.log_norms[:, -1]
        return {"log_first_over_last": first - last, "log_norms": flow.log_norms}

    return _compare(out / "loss_gradient", flows, panel, numbers)


def lyapunov(out: Path, flows: Flows) -> dict[str, Any]:
    """Draw the Lyapunov spectra of the first seed."""

    def panel(axes: Axes, cells: Mapping[str, Flow]) -> None:
        spectra = {
            name: LyapunovSpectrum(jnp.asarray(flow.exponents[0]), jnp.asarray(flow.errors[0]))
            for name, flow in cells.items()
        }
        plots.lyapunov_spectrum(axes, spectra)

    def numbers(flow: Flow) -> dict[str, np.ndarray]:
        largest = {"largest": flow.exponents[:, 0], "error_of_largest": flow.errors[:, 0]}
        return largest | {"exponents": flow.exponents}

    return _compare(out / "lyapunov", flows, panel, numbers)


def update_bias(out: Path, biases: tuple[float, ...], found: Sweep) -> dict[str, Any]:
    """Draw the gain of a fresh GRU for each update bias, against lag and at the last lag."""
    gains = np.exp(np.median(found.log_gain, axis=0))
    last = np.exp(found.log_gain[..., -1])
    order = np.argsort(biases)

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
        middles = (np.sort(biases)[1:] + np.sort(biases)[:-1]) / 2
        norm = BoundaryNorm([min(biases) - 0.5, *middles, max(biases) + 0.5], 256)
        scale = ScalarMappable(norm, "viridis")
        for k in order[::-1]:
            left.plot(gains[k], color=scale.to_rgba(biases[k]), linewidth=1.6)
        bar = figure.colorbar(scale, ax=left, ticks=sorted(biases), label="update bias")
        bar.ax.tick_params(labelsize=7)
        plots.memory_gradient(left, {})
        left.set_ylim(1e-6, 3)
        _title(left, "as drawn, update bias set")
        plots.memory_gradient(right, {})
        xs = np.asarray(biases)[order]
        right.fill_between(xs, last.min(0)[order], last.max(0)[order], color=plots.COLOURS[2],
                           alpha=0.2, linewidth=0)  # fmt: skip
        right.plot(xs, np.median(last, axis=0)[order], color=plots.COLOURS[2], marker="o",
                   markersize=4, linewidth=1.2)  # fmt: skip
        right.set_xlabel("update bias")
        right.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _title(right, f"at lag {gains.shape[1] - 1}")

    numbers = {
        "biases": list(biases),
        "gain_at_last_lag": last.tolist(),
        "factor_per_step": rates(found.log_gain).tolist(),
        "log_gain": found.log_gain.tolist(),
    }
    return _write(out / "update_bias", (7.2, 3.2), draw, numbers)


def jacobian_terms(
    out: Path, biases: tuple[float, ...], found: Sweep, others: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Draw the share of each term of a fresh GRU's Jacobian against its update bias."""
    order = np.argsort(biases)

    def draw(figure: Figure) -> None:
        xs = np.asarray(biases)[order]
        plots.jacobian_terms(figure.subplots(), found.shares[:, order], xs, "update bias")

    numbers = {
        "terms": GRUJacobianTerms._fields,
        "biases": list(biases),
        "shares": found.shares.tolist(),
        "shares_at_own_bias": {name: shares.tolist() for name, shares in others.items()},
    }
    return _write(out / "jacobian_terms", (4.6, 3.2), draw, numbers)


def gates(out: Path, statistics: Mapping[str, GateStatistics]) -> dict[str, Any]:
    """Draw the update gates of the first seed's trained GRU, and half-lives before and after."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        plots.gate_statistics(left, statistics["trained"], "z")
        plots.half_lives(right, {WHEN["fresh"]: statistics["fresh"],
                                 "after training": statistics["trained"]})  # fmt: skip

    numbers = {
        when: {
            "steps": each.steps,
            "half_life": each.half_life.tolist(),
            "mean_z": each.gates["z"].mean.tolist(),
            "z_below_0.1": each.gates["z"].low.tolist(),
            "z_above_0.9": each.gates["z"].high.tolist(),
        }
        for when, each in statistics.items()
    }
    return _write(out / "gates", (7.2, 3.2), draw, numbers)


def _compare(
    path: Path,
    flows: Flows,
    panel: Callable[[Axes, Mapping[str, Flow]], None],
    numbers: Callable[[Flow], dict[str, np.ndarray]],
) -> dict[str, Any]:
    """Draw all cells in two panels: at initialization and after training."""

    def draw(figure: Figure) -> None:
        for axes, when in zip(figure.subplots(1, 2, sharey=True), WHEN, strict=True):
            panel(axes, {NAMES[cell]: flow for cell, flow in flows[when].items()})
            axes.label_outer()
            _title(axes, WHEN[when])

    found = {
        when: {
            cell: {name: values.tolist() for name, values in numbers(flow).items()}
            for cell, flow in cells.items()
        }
        for when, cells in flows.items()
    }
    return _write(path, (7.2, 3.2), draw, found)


def _title(axes: Axes, text: str) -> None:
    """Put the title above the legend."""
    axes.set_title(text, fontsize=9, loc="left", pad=20 if axes.get_legend() else 6)


def _write(
    path: Path, size: tuple[float, float], draw: Callable[[Figure], None], numbers: dict[str, Any]
) -> dict[str, Any]:
    """Write `<path>.png` and `<path>.json`, and return the numbers."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    draw(figure)
    figure.savefig(path.with_suffix(".png"))
    path.with_suffix(".json").write_text(json.dumps(plain(numbers), allow_nan=False) + "\n")
    return numbers
