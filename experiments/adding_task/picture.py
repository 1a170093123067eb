"""Answers of the adding problem, as a picture."""

import numpy as np
from jax import Array
from matplotlib.figure import Figure

from experiments.common.task import Example


def predictions(figure: Figure, examples: Example, outputs: Array, title: str) -> None:
    """Plot prediction against target, with a point for each example."""
    targets = np.asarray(examples.targets.sum(axis=1), np.float64)
    answers = np.asarray(outputs[:, -1, 0], np.float64)
    figure.set_size_inches(4.6, 4.6)
    axes = figure.add_subplot()
    axes.plot([0, 2], [0, 2], color="0.6", linewidth=1, zorder=0)
    axes.axhline(1, color="0.25", linestyle="--", linewidth=1, label="the baseline answers 1")
    axes.scatter(targets, answers, s=9, color="#0072b2", alpha=0.7, linewidth=0)
    error = np.sqrt(np.mean((answers - targets) ** 2))
    axes.set_title(f"{title}\nroot mean squared error {error:.2g}", loc="left", fontsize=9)
    axes.set_xlabel("sum of the two marked values")
    axes.set_ylabel("prediction")
    axes.set_xlim(-0.1, 2.1)
    axes.set_ylim(-0.1, 2.1)
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
