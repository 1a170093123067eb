"""Learning curves, drawn from recorded runs alone: `python -m experiments.common.plots --help`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.common.metrics import Run, read_run

COLOURS = ("#1b6ca8", "#d1495b", "#2a9d64", "#8e5ea2", "#e08e1b", "#4a4e69")


def learning_curves(path: Path, runs: list[Run]) -> None:
    """One curve a run: test loss at each evaluation, training loss faintly behind it.

    The baseline, the threshold and the title are those of the first run.
    """
    figure = Figure(figsize=(7.2, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    header = runs[0].header
    for k, run in enumerate(runs):
        colour = COLOURS[k % len(COLOURS)]
        updates = [line["update"] for line in run.evals]
        losses = [_number(line["test_loss"]) for line in run.evals]
        training = [_number(line["train_loss"]) for line in run.evals]
        label = f"seed {run.header['config']['seed']}"
        axes.plot(updates, training, color=colour, alpha=0.3, linewidth=1)
        axes.plot(updates, losses, color=colour, linewidth=1.8, label=label)
        axes.plot(updates[-1:], losses[-1:], "o", color=colour, markersize=5)
    axes.plot([], [], color="0.3", alpha=0.4, linewidth=1, label="training batches")
    _mark(axes, header["baseline"], "--", f"baseline\n{header['baseline']:.4f}")
    _mark(axes, header["threshold"], ":", f"solved\nbelow {header['threshold']:g}")

    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("updates")
    axes.set_ylabel("mean squared error")
    axes.set_title(header["title"], loc="left", fontsize=11)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.grid(which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def _mark(axes: Axes, level: float, style: str, text: str) -> None:
    """A horizontal line, named outside the axes, where no curve can run through the text."""
    axes.axhline(level, color="0.25", linestyle=style, linewidth=1)
    axes.annotate(
        text,
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(5, 0),
        textcoords="offset points",
        verticalalignment="center",
        fontsize=9,
        color="0.25",
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the learning curves of recorded runs into one picture."""

    metrics: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The metrics.jsonl of each run."""
    out: Path = Path("learning_curves.png")
    """The picture to write."""


def main() -> int:
    config = tyro.cli(Config, prog="python -m experiments.common.plots")
    if not config.metrics:
        print("error: name at least one metrics.jsonl", file=sys.stderr)
        return 2
    try:
        learning_curves(config.out, [read_run(path) for path in config.metrics])
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
