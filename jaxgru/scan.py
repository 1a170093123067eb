"""`scan` for every cell: lengths, masks, resets, direction, dropout and checkpointing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxgru import checks, layers, own, sequence
from jaxgru.cell import Carry, Params, StepCell, cell_of
from jaxgru.layers import Bidirectional, Stack
from jaxgru.programs import by_type
from jaxgru.recurrence import recurrence


def scan(
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    length: Any = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reset_carry: Carry | None = None,
    reverse: bool = False,
    dropout: float | Array = 0.0,
    key: Array | None = None,
    checkpoint: int | None = None,
    compute_dtype: Any = None,
) -> tuple[Carry, Array]:
    """Run a network over one sequence.

        carry_t, y_t = step(params, carry_{t-1}, x_t),    t = 1 .. T

    `jax.vmap` runs a batch. It may map over xs, params, or any other argument.

    Args:
        params: the params of any cell, or a Bidirectional or Stack of them.
        xs: inputs `[T, I]`, of the dtype of params.
        carry: where to start. None stands for `initial_carry(params)`: zeros for built-in cells.
        length: how many of the T steps are real. It is an integer scalar, and may be traced. The
            steps after them are the padding, where the outputs are zero. The returned carry is the
            one after the last real step. The contents of the padding, NaN included, affect neither
            values nor gradients. A traced length outside [0, T] is clipped.
        mask: bool `[T]`. False at t makes a hole of step t, as if the step were not there. Its
            output is zero, the carry passes through, and its input, NaN included, affects neither
            values nor gradients. Use it for missing steps and for padding on the left. With length,
            a step is real if the mask is True there and the step is not in the padding.
        reset: bool `[T]`. True at t starts a new segment at t. Nothing passes from one segment to
            another, in either direction. A reset at a hole still starts its segment, at the next
            real step. Flags at and after length are ignored.
        reset_carry: the carry from which segments start. None stands for `initial_carry(params)`.
        reverse: whether to run from the last real step to the first. Outputs stay in the order of
            xs.
        dropout: the probability of dropping an output between two layers of a Stack. Each step
            draws anew which outputs to drop. The other outputs are scaled by 1 / (1 - dropout). A
            Stack of one layer has nothing to drop. A Python number is part of the program. A scalar
            array of floats is data, as schedules and populations need it. A traced one outside
            [0, 1] is clipped.
        key: a `jax.random.key` for dropout. A batch takes one key for each example: map over
            `jax.random.split(key, B)` too. With one key for all, all examples drop the same units
            at the same steps.
        checkpoint: k saves the state only every k steps. The gradient computes the others again.
            Memory falls from T to T / k + k states. None saves the states of all steps.
        compute_dtype: the dtype to which the operands of products with weights are rounded, such as
            `"bfloat16"` for float32 params. None stands for the dtype of params. States, gates and
            the gradients of weights stay as precise as params. Cells that are registered without
            weights, such as the layer-norm GRU, do not support it.

    Returns:
        (carry after the last step processed, outputs `[T, H]`), of the dtype of params.
        Products accumulate in at least float32.

    Raises:
        TypeError: params, a carry, a dtype or an option has the wrong type.
        ValueError: a shape or value does not fit, or an option would have no effect.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=3, hidden_size=8)
        >>> h, hs = jaxgru.scan(params, jnp.ones((20, 3), "float32"), length=12)
        >>> hs.shape, bool((h == hs[11]).all()), bool((hs[12:] == 0).all())
        ((20, 8), True, True)
        >>> batch = jnp.ones((5, 20, 3), "float32")
        >>> jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, batch)[1].shape
        (5, 20, 8)
    """
    sequence.check("scan", params, xs, carry, length, reset, reset_carry, reverse, mask)
    rate = _rate(params, dropout, key)
    if checkpoint is not None:
        checkpoint = checks.size("scan", "checkpoint", checkpoint)

    carry, reset_carry = sequence.starts(params, carry, reset, reset_carry)
    compute = checks.compute_dtype("scan", compute_dtype, layers.dtype(params))
    if compute is not None:
        layers.check_weights_named("scan", params, ", which compute_dtype needs")
    data = (params, xs, carry, length, mask, reset, reset_carry, key)
    if checks.is_array(rate):
        return _scan(_Options(reverse, None, checkpoint, compute), *data, rate)
    return _scan(_Options(reverse, rate, checkpoint, compute), *data)


class _Options(NamedTuple):
    """The options that are part of the program, and not data."""

    reverse: bool
    dropout: Any
    """None if nothing is dropped, or if the rate is data."""
    checkpoint: int | None
    compute_dtype: Any


@by_type(static=1)
def _scan(options, params, xs, carry, length, mask, reset, reset_carry, key, rate=None):
    """JAX compiles it once per shape and options, whatever the lengths, masks and resets."""
    if xs.shape[0] == 0:
        return carry, jnp.zeros((0, layers.sizes(params)[1]), xs.dtype)
    marks = sequence.marks(length, reset, xs.shape[0], mask)
    xs = sequence.mask(marks, xs)
    if rate is not None:
        wide = rate.astype(jax.dtypes.canonicalize_dtype(float))  # as a number would be
        options = options._replace(dropout=jnp.clip(wide, 0, 1))
    return _run(options, params, xs, carry, marks, reset_carry, key)


def _run(options, params, xs, carry, marks, reset_carry, key):
    if isinstance(params, Stack):
        return _run_stack(options, params, xs, carry, marks, reset_carry, key)
    if isinstance(params, Bidirectional):
        return _run_bidirectional(options, params, xs, carry, marks, reset_carry, key)
    return _run_cell(options, params, xs, carry, marks, reset_carry)


def _run_stack(options, params, xs, carry, marks, reset_carry, key):
    count = len(params.layers)
    keys: Any = (None,) * (2 * count) if key is None else tuple(jax.random.split(key, 2 * count))
    reset_carry = (None,) * count if reset_carry is None else reset_carry
    carries = []
    for k, layer in enumerate(params.layers):
        if k > 0 and options.dropout is not None:
            xs = _dropped(options.dropout, keys[count + k], xs)
        last, xs = _run(options, layer, xs, carry[k], marks, reset_carry[k], keys[k])
        carries.append(last)
    return tuple(carries), xs


def _dropped(rate, key, xs):
    """Drop entries of xs at this rate, a number or an array, and scale up the others."""
    share = 1 - rate
    kept = jax.random.bernoulli(key, share, xs.shape)
    if checks.is_array(share):  # it may be 0, and then the gradient must be zero too, not NaN
        share = jnp.where(share > 0, share, 1).astype(xs.dtype)
    return jnp.where(kept, xs / share, 0)


def _run_bidirectional(options, params, xs, carry, marks, reset_carry, key):
    keys = (None, None) if key is None else jax.random.split(key)
    starts = (None, None) if reset_carry is None else reset_carry
    back = options._replace(reverse=not options.reverse)
    one, ys = _run(options, params.forward, xs, carry[0], marks, starts[0], keys[0])
    other, zs = _run(back, params.backward, xs, carry[1], marks, starts[1], keys[1])
    return (one, other), jnp.concatenate([ys, zs], axis=-1)


def _run_cell(options, params, xs, carry, marks, reset_carry):
    cell = cell_of(params)
    if isinstance(cell, StepCell):
        how = (options.reverse, options.checkpoint)
        return own.run(params, xs, carry, marks, reset_carry, *how)
    fresh = sequence.entered(marks, options.reverse)
    if cell.formed is not None:
        xs = sequence.filled(marks, xs, options.reverse)
    cell = cell._replace(compute_dtype=options.compute_dtype)
    how = (cell, options.reverse, options.checkpoint)
    carry, hs = recurrence(*how, params, xs, carry, reset_carry, fresh, marks.valid)
    return carry, sequence.mask(marks, hs)


def _rate(params: Params, dropout: Any, key: Array | None) -> Any:
    """Check dropout's rate, and return it: a number, an array, or None if it is known to be 0."""
    checks.float_scalar("scan", "dropout", dropout)
    known = not isinstance(dropout, Tracer)
    if known and not 0 <= float(dropout) < 1:
        raise checks.error(ValueError, "scan", "dropout", "in [0, 1)", f"{dropout}")
    if key is not None:
        checks.key("scan", key)
    if known and float(dropout) == 0:
        return None
    if not _has_stack(params):
        expected = "0 for params without a Stack"
        fix = "Dropout acts between the layers of a Stack."
        raise checks.error(ValueError, "scan", "dropout", expected, checks.shown(dropout), fix)
    if key is None:
        fix = "Pass key=jax.random.key(seed), a new one for every call."
        raise checks.error(ValueError, "scan", "key", "given with dropout", "None", fix)
    return dropout if checks.is_array(dropout) else float(dropout)


def _has_stack(params: Params) -> bool:
    if isinstance(params, Bidirectional):
        return _has_stack(params.forward) or _has_stack(params.backward)
    return isinstance(params, Stack)
