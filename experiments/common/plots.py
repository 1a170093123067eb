"""Learning curves, drawn only from records."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.common.metrics import Line, Run, chances
from jaxgru.diagnostics.plots import COLOURS


def learning_curves(figure: Figure, runs: list[Run], labels: list[str]) -> None:
    """Draw every measure and the length of a curriculum against updates.

    Each replica is a thin line. Their mean is a thick line, over a band from least to greatest. A
    replica that has stopped counts with its last value. The baseline is dashed.
    """
    lines = [line for run in runs for replica in run.evals for line in replica]
    grows = len({line["length"] for line in lines}) > 1
    panels = ["loss", *_others(runs)] + ["length"] * grows
    heights = [{"loss": 3, "length": 1.2}.get(panel, 2) for panel in panels]
    figure.set_size_inches(7.2, 0.9 + sum(heights))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    axes: dict[str, Axes] = dict(zip(panels, grid[:, 0], strict=True))
    for k, (run, label) in enumerate(zip(runs, labels, strict=True)):
        colours = [COLOURS[k % len(COLOURS)]] * len(run.evals)
        if len(runs) == 1:
            colours = [COLOURS[r % len(COLOURS)] for r in range(len(run.evals))]
        for panel in panels:
            _curves(axes[panel], panel, run, colours, label, alone=len(runs) == 1)
    _label(axes, runs)


def _curves(
    axes: Axes, panel: str, run: Run, colours: list[str], label: str, *, alone: bool
) -> None:
    curves = [[_value(panel, line) for line in replica] for replica in run.evals]
    updates = [[line["update"] for line in replica] for replica in run.evals]
    many = len(curves) > 1
    for r, (xs, ys) in enumerate(zip(updates, curves, strict=True)):
        replica = run.header["replicas"][r]
        name = f"seed {replica['seed']}"
        if len({other["learning_rate"] for other in run.header["replicas"]}) > 1:
            name += f", rate {replica['learning_rate']:g}"
        thin = many or not alone
        axes.plot(xs, ys, color=colours[r], linewidth=0.9 if thin else 1.6,
                  alpha=0.55 if thin else 1, label=name if alone else None)  # fmt: skip
        axes.plot(xs[-1:], ys[-1:], "o", color=colours[r], markersize=3.5)
    if not many or panel == "length":
        if not alone:
            axes.plot([], [], color=colours[0], label=label)
        return
    grid = sorted({x for xs in updates for x in xs})
    pairs = zip(updates, curves, strict=True)
    table = np.array([np.interp(grid, xs, ys) for xs, ys in pairs if xs])
    colour = "0.15" if alone else colours[0]
    axes.fill_between(grid, table.min(0), table.max(0), color=colour, alpha=0.12, linewidth=0)
    axes.plot(grid, table.mean(0), color=colour, linewidth=1.8, label="mean" if alone else label)


def _others(runs: list[Run]) -> list[str]:
    """The measures other than the loss, in the order in which they first appear."""
    names = dict.fromkeys(name for run in runs for name in run.header["measures"])
    return [name for name in names if name != "loss"]


def _value(panel: str, line: Line) -> float:
    """The value on the test set, or on the training batches if the test set was not evaluated."""
    if panel == "length":
        return line["length"]
    value = line.get(f"test_{panel}", line.get(f"train_{panel}"))
    return float("nan") if value is None else value


def _label(axes: dict[str, Axes], runs: list[Run]) -> None:
    top, bottom = next(iter(axes.values())), list(axes.values())[-1]
    loss = axes["loss"]
    loss.set_yscale("log")
    loss.set_ylabel("loss")
    if len({run.header["baseline"] for run in runs}) == 1:
        level = runs[0].header["baseline"]
        _dashes(loss, level, f"baseline\n{level:.3g}")
    for name in _others(runs):
        axes[name].set_ylabel(name)
        chance = chances(runs).get(name)
        if chance is not None:
            axes[name].set_ylim(0, 1.03)
            _dashes(axes[name], chance, "chance")
    if "length" in axes:
        axes["length"].set_yscale("log")
        axes["length"].set_ylabel("T in training")
    for each in axes.values():
        each.grid(which="major", color="0.9", linewidth=0.8)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
        each.set_xlim(left=0)
    top.set_title(runs[0].header["title"] if len(runs) == 1 else "", loc="left", fontsize=11)
    top.legend(frameon=False, fontsize=8)
    bottom.set_xlabel("updates")
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def _dashes(axes: Axes, level: float, text: str) -> None:
    axes.axhline(level, color="0.25", linestyle="--", linewidth=1)
    axes.annotate(
        text, (1, level), xycoords=("axes fraction", "data"), xytext=(5, 0),
        textcoords="offset points", verticalalignment="center", fontsize=9, color="0.25",
    )  # fmt: skip
