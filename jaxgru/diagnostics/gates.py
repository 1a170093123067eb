"""What the gates of a cell do over a data set."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgru import checks, layers
from jaxgru.cell import Carry, Params, advance, cell_of
from jaxgru.diagnostics.states import before, check, check_params, states_of
from jaxgru.gru import GRUParams
from jaxgru.lstm import LSTMParams

# Quantiles are read from a histogram of log-odds, which also resolves gates near 0 and 1.
LIMIT, WIDTH = 16.0, 0.02
BINS = round(2 * LIMIT / WIDTH)

# The index of each gate in the gates that the `advance` of the cell returns.
GATES: dict[type, dict[str, int]] = {
    GRUParams: {"r": 0, "z": 1},
    LSTMParams: {"i": 0, "f": 1, "o": 3},
}


class Gate(NamedTuple):
    """Statistics of one gate of every unit over all steps of a data set, as NumPy arrays."""

    mean: np.ndarray
    """`[H]`."""
    quantiles: np.ndarray
    """`[Q, H]`, exact to 0.01 in log-odds. This is 1% of a gate near 0, and 0.0025 at 1/2."""
    low: np.ndarray
    """`[H]`: the fraction of steps at which the gate is below the lower limit."""
    high: np.ndarray
    """`[H]`: the fraction of steps at which the gate is above the upper limit."""


class GateStatistics(NamedTuple):
    """The result of `gate_statistics`."""

    gates: dict[str, Gate]
    """The gates r and z of a GRU, or i, f and o of an LSTM."""
    half_life: np.ndarray
    """`[H]`: the number of steps in which a unit with its mean gate replaces half of its state."""
    steps: int
    """The number of steps that were counted."""


def gate_statistics(
    params: Params,
    sequences: Iterable[Array],
    *,
    quantiles: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95),
    saturated: tuple[float, float] = (0.1, 0.9),
) -> GateStatistics:
    """Compute the mean, quantiles, saturation and half-life of each gate over a data set.

        half_life = ln(1/2) / ln(1 - mean z)        GRU
        half_life = ln(1/2) / ln(mean f)            LSTM

    The function processes one item after the other, so its memory does not grow with their number.
    It reads quantiles from a histogram with 1,600 bins for each unit, which are 0.02 wide in
    log-odds between -16 and 16. It compiles once for each shape of items. The loop over the items
    is a Python loop.

    Args:
        params: GRUParams or LSTMParams, in float32 or float64.
        sequences: an iterable of sequences `[T, I]` or batches of sequences `[B, T, I]`, of the
            dtype of params. Each sequence starts from zeros. Every step counts, so cut off the
            padding first.
        quantiles: the quantiles to compute, in [0, 1].
        saturated: two limits. A gate below the first or above the second counts as saturated.

    Returns:
        GateStatistics(gates, half_life `[H]`, steps).

    Raises:
        TypeError, ValueError: an argument does not fit, params have no gates, or there is no step.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=3, hidden_size=8)
        >>> batches = (jnp.ones((5, 20, 3), "float32") for _ in range(4))
        >>> statistics = jaxgru.diagnostics.gate_statistics(params, batches)
        >>> statistics.steps, statistics.gates["z"].quantiles.shape
        (400, (5, 8))

    Source: Karpathy, Johnson & Li 2015, arXiv:1506.02078 (saturation); Tallec & Ollivier 2018,
    arXiv:1804.11188 (gates as time constants).
    """
    caller = "gate_statistics"
    check_params(caller, params)
    _check_gated(caller, params)
    _check_fractions(caller, "quantiles", quantiles)
    _check_fractions(caller, "saturated", saturated, count=2)

    steps, total = 0, None
    limits = jnp.asarray(saturated, layers.dtype(params))
    for item in sequences:
        batch = _batch(params, item)
        tally = jax.tree.map(lambda a: np.asarray(a, np.float64), _tally(params, batch, limits))
        total = tally if total is None else jax.tree.map(np.add, total, tally)
        steps += batch.shape[0] * batch.shape[1]
    if total is None or steps == 0:
        fix = "An iterator can be used only once."
        raise checks.error(ValueError, caller, "sequences", "at least one step", "none", fix)

    sums, below, above, counts = total
    at = _quantiles(counts, quantiles)
    gates = {
        name: Gate(sums[g] / steps, at[g], below[g] / steps, above[g] / steps)
        for g, name in enumerate(GATES[type(params)])
    }
    kept = gates["f"].mean if "f" in gates else 1 - gates["z"].mean
    with np.errstate(divide="ignore"):  # a gate that keeps everything has an infinite half-life
        half_life = np.log(0.5) / np.log(kept)
    return GateStatistics(gates, half_life, steps)


def gate_values(params: Params, xs: Array, carry: Carry | None = None) -> dict[str, Array]:
    """The gates of one run, `[T, I] -> {name: [T, H]}`: r and z of a GRU, or i, f, o of an LSTM.

    Raises:
        TypeError, ValueError: an argument does not fit, or params have no gates.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> from jaxgru.diagnostics.gates import gate_values
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=3, hidden_size=8)
        >>> gate_values(params, jnp.ones((20, 3), "float32"))["z"].shape
        (20, 8)
    """
    carry = check("gate_values", params, xs, carry)
    _check_gated("gate_values", params)
    cell, states = cell_of(params), states_of(params)
    carries = jax.vmap(states.carry)(before(states, carry, xs))
    _, kept = advance(cell, cell.blocks(params), carries, xs)
    return {name: kept[place] for name, place in GATES[type(params)].items()}


class _Tally(NamedTuple):
    """Of one batch, over gates G: `[G, H]`, and counts `[G, H, BINS]`."""

    sums: Array
    below: Array
    above: Array
    counts: Array


@jax.jit
def _tally(params: Params, batch: Array, limits: Array) -> _Tally:
    """Tally the gates of a batch `[B, T, I]`."""
    values = jax.vmap(partial(gate_values, params))(batch)
    each = (values[name] for name in GATES[type(params)])  # `vmap` sorts a dict by name
    gates = jnp.stack([gate.reshape(-1, gate.shape[-1]) for gate in each])
    log_odds = jnp.log(gates) - jnp.log1p(-gates)
    bins = jnp.clip((log_odds + LIMIT) / WIDTH, 0, BINS - 1).astype(jnp.int32)
    kinds, _, units = gates.shape
    places = (jnp.arange(kinds)[:, None, None], jnp.arange(units)[None, None, :], bins)
    counts = jnp.zeros((kinds, units, BINS), jnp.int32).at[places].add(1)
    below, above = (gates < limits[0]).sum(1), (gates > limits[1]).sum(1)
    return _Tally(gates.sum(1), below, above, counts)


def _quantiles(counts: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """`[G, H, BINS] -> [G, Q, H]`: the middle of the bin in which the counts reach each level."""
    reached = counts.cumsum(-1)[:, None]
    wanted = np.asarray(levels)[:, None, None] * reached[..., -1:]
    bins = (reached < np.maximum(wanted, 1)).sum(-1)
    return 1 / (1 + np.exp(LIMIT - WIDTH * (bins + 0.5)))


def _check_gated(caller: str, params: Params) -> None:
    if type(params) not in GATES:
        fix = "Pass one layer of a Stack, with the outputs of the layer below as sequences."
        got = type(params).__name__
        raise checks.error(TypeError, caller, "params", "GRUParams or LSTMParams", got, fix)


def _check_fractions(
    caller: str, name: str, values: tuple[float, ...], count: int | None = None
) -> None:
    """Check that values is a rising tuple of numbers in [0, 1]."""
    expected = f"a rising tuple of {count or ''} numbers in [0, 1]".replace("  ", " ")
    if not isinstance(values, tuple):
        raise checks.error(TypeError, caller, name, expected, checks.describe(values))
    for value in values:
        checks.number(caller, name, value)
    rising = all(a <= b for a, b in zip((0, *values), (*values, 1), strict=True))
    if not rising or (count is not None and len(values) != count):
        raise checks.error(ValueError, caller, name, expected, f"{values}")


def _batch(params: Params, item: Array) -> Array:
    """Make an item a batch `[B, T, I]`."""
    if len(getattr(item, "shape", ())) == 2:
        item = item[None]
    fix = "Each item is a sequence or a batch of them. Pass a single one in a list."
    size = layers.sizes(params)[0]
    checks.array("gate_statistics", "sequences", item, ("B", "T", size), fix)
    checks.same_dtype("gate_statistics", "sequences", item, layers.dtype(params))
    return item
