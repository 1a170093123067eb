"""The learning curve of the T-maze."""

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.common.metrics import Run
from jaxgru.diagnostics.plots import COLOURS

DPI = 150


def draw_success(run: Run) -> Figure:
    """Draw success against updates, with and without memory, from a record alone."""
    figure = Figure(figsize=(7.2, 3.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for replica, lines, colour in zip(run.header["replicas"], run.evals, COLOURS, strict=False):
        xs = [line["update"] for line in lines]
        ys = [float("nan") if line["success"] is None else line["success"] for line in lines]
        axes.plot(xs, ys, color=colour, linewidth=1.6, label=replica["name"])
    axes.axhline(0.5, color="0.25", linestyle="--", linewidth=1)
    axes.annotate(
        "chance", (1, 0.5), xycoords=("axes fraction", "data"), xytext=(5, 0),
        textcoords="offset points", verticalalignment="center", fontsize=9, color="0.25",
    )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("episodes that end well")
    axes.set_xlabel("updates")
    axes.grid(which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(run.header["title"], loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure
