"""Answers of the copy task, as a picture."""

import jax
import numpy as np
from jax import Array
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from experiments.common.task import Example

COLOURS = "Blues"
END = 30  # time steps to draw at each end of a long sequence


def rasters(figure: Figure, examples: Example, outputs: Array, title: str) -> None:
    """Draw input, target and predicted probabilities of one example, with a row per symbol."""
    xs = np.asarray(examples.xs[0])
    ids = xs[:, 0].astype(int) if xs.shape[1] == 1 else xs.argmax(1)
    classes = max(outputs.shape[-1], 10)
    probabilities = np.asarray(jax.nn.softmax(outputs[0].astype("float32")))
    rows = {
        "input": np.eye(classes)[ids],
        "target": np.eye(classes)[np.asarray(examples.targets[0])],
        "prediction": np.pad(probabilities, ((0, 0), (0, classes - probabilities.shape[1]))),
    }
    steps = len(ids)
    windows = [(0, END), (steps - END, steps)] if steps > 2 * END else [(0, steps)]
    figure.set_size_inches(7.2, 5.0)
    grid = figure.subplots(len(rows), len(windows), sharex="col", sharey=True, squeeze=False)
    for line, (name, raster) in zip(grid, rows.items(), strict=True):
        for axes, (first, last) in zip(line, windows, strict=True):
            axes.imshow(
                raster[first:last].T, aspect="auto", origin="lower", cmap=COLOURS, vmin=0, vmax=1,
                interpolation="nearest", extent=(first - 0.5, last - 0.5, -0.5, classes - 0.5),
            )  # fmt: skip
            axes.set_yticks([0, 1, 8, 9], ["blank", "1", "8", "cue"])
        line[0].set_ylabel(name)
    for axes in grid[-1]:
        axes.set_xlabel("time step")
        axes.locator_params(axis="x", nbins=3)
    figure.colorbar(ScalarMappable(Normalize(0, 1), COLOURS), ax=grid, label="probability")
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=11)
