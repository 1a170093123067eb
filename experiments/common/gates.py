"""What the gates do over time: a picture of memory being held."""

from typing import Any

import jax
import numpy as np
from jax import Array
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import jaxgru
from jaxgru.diagnostics.gates import gate_values

SHORT = 60  # time steps in the panel for each end of a long sequence
FLOOR = 1e-4
COLOURS = "viridis"


def renewal(cell: Any, xs: Array) -> Array:
    """The share of each unit's memory that a step replaces in the top layer, `[T, I] -> [T, H]`.

    GRU:  z_t = sigmoid(W_z [h_{t-1}, x_t])
    LSTM: 1 - f_t = 1 - sigmoid(W_f [h_{t-1}, x_t])
    minimal GRU:  z_t = sigmoid(W_z x_t)
    """
    if isinstance(cell, jaxgru.Stack):
        *below, cell = cell.layers
        for layer in below:
            xs = jaxgru.scan(layer, xs)[1]
    if isinstance(cell, jaxgru.MinGRUParams):
        b: Any = cell.b
        return jax.nn.sigmoid(xs @ cell.w_ih[:, 0] + b[0][None])
    gates = gate_values(cell, xs)
    return gates["z"] if "z" in gates else 1 - gates["f"]


def draw_gates(figure: Figure, cell: Any, examples: Array, title: str) -> bool:
    """Draw the mean over examples `[N, T, I]`: a row per unit, sorted by its mean over time.

    For a plain RNN, which has no gates, it draws nothing and returns False.
    """
    top = cell.layers[-1] if isinstance(cell, jaxgru.Stack) else cell
    if isinstance(top, jaxgru.ElmanParams):
        return False
    norm = LogNorm(FLOOR, 1)
    total = jax.jit(lambda cell, xs: jax.vmap(lambda x: renewal(cell, x))(xs).mean(0))
    mean = np.asarray(total(cell, examples), np.float64)
    mean = mean[:, np.argsort(mean.mean(0))].T
    steps = mean.shape[1]
    windows = [(0, steps)]
    if steps > 3 * SHORT:
        windows = [(0, SHORT), (0, steps), (steps - SHORT, steps)]
    figure.set_size_inches(7.2, 3.6)
    grid = figure.subplots(1, len(windows), sharey=True, squeeze=False)[0]
    for axes, (first, last) in zip(grid, windows, strict=True):
        axes.imshow(
            mean[:, first:last], aspect="auto", origin="lower", cmap=COLOURS,
            norm=norm, interpolation="nearest",
            extent=(first, last, 0, mean.shape[0]),
        )  # fmt: skip
        axes.set_xlabel("time step")
        axes.locator_params(axis="x", nbins=3)
    names = ["the first steps", "the whole sequence", "the last steps"]
    if len(windows) > 1:
        for axes, name in zip(grid, names, strict=True):
            axes.set_title(name, fontsize=9)
    grid[0].set_ylabel("unit, slowest at the bottom")
    what = "1 - forget gate" if isinstance(top, jaxgru.LSTMParams) else "update gate z"
    bar = ScalarMappable(norm, COLOURS)
    figure.colorbar(bar, ax=list(grid), label=f"{what}, mean over {len(examples)} examples")
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=11)
    return True
