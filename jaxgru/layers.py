"""Compositions of cells: two directions of time, and layers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks, exportable, forms
from jaxgru.cell import Carry, Params, StepCell, cell_of, cells, check_leaves, is_cell
from jaxgru.gru import gru_init


@exportable.node
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bidirectional:
    """Two networks over the same inputs, one from each end, with concatenated outputs.

    The carry is the tuple (forward carry, backward carry). With `reverse=True` the two networks
    swap directions. A Bidirectional cannot be streamed, since its outputs depend on later inputs.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> one, other = jax.random.split(jax.random.key(0))
        >>> params = jaxgru.Bidirectional(jaxgru.gru_init(one, 3, 8), jaxgru.gru_init(other, 3, 8))
        >>> jaxgru.scan(params, jnp.ones((20, 3), "float32"))[1].shape
        (20, 16)

    Source: Schuster & Paliwal 1997.
    """

    forward: Params
    backward: Params


@exportable.node
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers, each of which runs over the outputs of the layer below.

    The carry is a tuple with the carry of each layer.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> one, other = jax.random.split(jax.random.key(0))
        >>> params = jaxgru.Stack((jaxgru.gru_init(one, 3, 8), jaxgru.lstm_init(other, 8, 4)))
        >>> jaxgru.scan(params, jnp.ones((20, 3), "float32"))[1].shape
        (20, 4)
    """

    layers: tuple[Params, ...]


def stack_init(
    key: Array,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    *,
    cell: Callable[..., Params] = gru_init,
    bidirectional: bool = False,
    **cell_options: Any,
) -> Stack:
    """Draw a stack of equal layers.

    Args:
        key: a `jax.random.key`.
        input_size: I of the first layer.
        hidden_size: H of every layer, and of each direction.
        num_layers: the number of layers.
        cell: `gru_init`, `lstm_init`, `elman_init`, `min_gru_init`, `mgu_init`,
            `layer_norm_gru_init` or `leaky_init`, or a function (key, input_size, hidden_size) of
            your own that returns the params of a registered cell.
        bidirectional: whether every layer is a `Bidirectional`, whose outputs are 2 H wide.
        **cell_options: further arguments of `cell`: bias, init, dtype, chrono, reset_after, ...

    Returns:
        A Stack, even if it has only one layer.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.stack_init(jax.random.key(0), 3, 8, num_layers=2, bidirectional=True)
        >>> jaxgru.scan(params, jnp.ones((20, 3), "float32"))[1].shape
        (20, 16)
    """
    checks.key("stack_init", key)
    checks.size("stack_init", "num_layers", num_layers)
    checks.flag("stack_init", "bidirectional", bidirectional)
    if not callable(cell):
        expected = "a function such as jaxgru.gru_init"
        raise checks.error(TypeError, "stack_init", "cell", expected, checks.describe(cell))
    layers = []
    for layer_key in jax.random.split(key, num_layers):
        if bidirectional:
            one, other = jax.random.split(layer_key)
            layer = Bidirectional(
                cell(one, input_size, hidden_size, **cell_options),
                cell(other, input_size, hidden_size, **cell_options),
            )
            input_size = 2 * hidden_size
        else:
            layer = cell(layer_key, input_size, hidden_size, **cell_options)
            input_size = hidden_size
        layers.append(layer)
    return Stack(tuple(layers))


def sizes(params: Params) -> tuple[int, int]:
    """(input size, output size) of any params."""
    if isinstance(params, Stack):
        return sizes(params.layers[0])[0], sizes(params.layers[-1])[1]
    if isinstance(params, Bidirectional):
        (size, one), (_, other) = sizes(params.forward), sizes(params.backward)
        return size, one + other
    return cell_of(params).sizes(params)


def carry_shape(params: Params) -> Carry:
    """The carry of any params, with a `jax.ShapeDtypeStruct` in place of every array."""
    if isinstance(params, Stack):
        return tuple(carry_shape(layer) for layer in params.layers)
    if isinstance(params, Bidirectional):
        return carry_shape(params.forward), carry_shape(params.backward)
    return cell_of(params).carry_shape(params)


def start(params: Params) -> Carry:
    """The carry from which a sequence starts, for any params."""
    if isinstance(params, Stack):
        return tuple(map(start, params.layers))
    if isinstance(params, Bidirectional):
        return start(params.forward), start(params.backward)
    cell = cell_of(params)
    if cell.initial_carry is not None:
        return cell.initial_carry(params)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), cell.carry_shape(params))


def initial_carry(params: Params, batch: tuple[int, ...] = ()) -> Carry:
    """Make the carry from which a sequence starts.

    For the cells of this library it is zeros: LSTMCarry(h `[H]`, c `[H]`) for an LSTM, and `[H]`
    for every other cell. For a Bidirectional it is a tuple of two carries, and for a Stack a tuple
    with one for each layer. For params of your own type it is the `initial_carry` that you
    registered. With batch, every array has these axes in front.

    Args:
        params: params of any type that `scan` takes.
        batch: sizes of leading axes, for `jax.vmap` to map over.

    Raises:
        TypeError, ValueError: params do not fit together, or batch is not a tuple of sizes.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), 8, 64)
        >>> jaxgru.initial_carry(params).shape, jaxgru.initial_carry(params, (32,)).shape
        ((64,), (32, 64))
    """
    check("initial_carry", params)
    if not isinstance(batch, tuple):
        fix = f"Pass ({batch},) for {batch} examples." if isinstance(batch, int) else ""
        expected, got = "a tuple of sizes", checks.describe(batch)
        raise checks.error(TypeError, "initial_carry", "batch", expected, got, fix)
    batch = tuple(checks.size("initial_carry", "batch", size) for size in batch)
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*batch, *a.shape)), start(params))


def dtype(params: Params) -> Any:
    """The dtype of params, which is the same for all leaves."""
    return checks.dtype_of(jax.tree.leaves(params)[0])


def check(caller: str, params: Params) -> None:
    """Raise an error if params, or the layers of a composition, do not fit together."""
    if isinstance(params, Stack):
        _check_stack(caller, params)
    elif isinstance(params, Bidirectional):
        check(caller, params.forward)
        check(caller, params.backward)
        one, other = sizes(params.forward)[0], sizes(params.backward)[0]
        if one != other:
            name = "Bidirectional.backward"
            raise checks.error(
                ValueError, caller, name, f"of input size {one}, like forward", f"{other}"
            )
    elif is_cell(params):
        check_leaves(caller, params)
    else:
        fix = "jaxgru.gru_init(key, input_size, hidden_size) makes GRUParams."
        if dataclasses.is_dataclass(params) and not isinstance(params, type):
            fix += " jaxgru.register makes a class of your own a cell."
        expected = f"{forms.known()}, Bidirectional, Stack or of a registered type"
        raise checks.error(TypeError, caller, "params", expected, checks.describe(params), fix)
    dtypes = {checks.dtype_of(leaf).name for leaf in jax.tree.leaves(params)}
    if len(dtypes) > 1:
        raise checks.error(
            TypeError, caller, "params", "of one dtype", " and ".join(sorted(dtypes))
        )


def check_forward(caller: str, params: Params, fix: str) -> None:
    """Raise an error, with this fix, if params contain a Bidirectional."""
    if isinstance(params, Bidirectional):
        expected = "params that run forward in time"
        raise checks.error(TypeError, caller, "params", expected, "Bidirectional", fix)
    if isinstance(params, Stack):
        for layer in params.layers:
            check_forward(caller, layer, fix)


def check_weights_named(caller: str, params: Params, what: str) -> None:
    """Check that no layer of params is a cell whose products with weights are unknown."""
    for layer in cells(params):
        if isinstance(cell_of(layer), StepCell):
            expected = f"those of cells that name their weights{what}"
            fix = "A cell of your own names them if you pass weights= to jaxgru.register."
            raise checks.error(TypeError, caller, "params", expected, type(layer).__name__, fix)


def check_state(caller: str, params: Params) -> None:
    """Raise an error if the carry of a cell in params does not consist of numbers of its dtype."""
    for layer in cells(params):
        name, carry = f"the carry of {type(layer).__name__}", carry_shape(layer)
        if not jax.tree.leaves(carry):
            expected = "a tree that contains an array"
            raise checks.error(ValueError, caller, name, expected, f"{carry}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
            if leaf.dtype != dtype(layer):
                where = name + jax.tree_util.keystr(path)
                expected, got = f"{dtype(layer)}, the dtype of params", checks.describe(leaf)
                fix = "Only a state of such numbers has Jacobians: use scan."
                raise checks.error(TypeError, caller, where, expected, got, fix)


def _check_stack(caller: str, params: Stack) -> None:
    if not isinstance(params.layers, tuple):
        got = checks.describe(params.layers)
        raise checks.error(TypeError, caller, "Stack.layers", "a tuple of params", got)
    if not params.layers:
        raise checks.error(ValueError, caller, "Stack.layers", "at least one layer", "none")
    for layer in params.layers:
        check(caller, layer)
    for k in range(1, len(params.layers)):
        below, above = sizes(params.layers[k - 1])[1], sizes(params.layers[k])[0]
        if below != above:
            expected = f"of input size {below}, the output size of layer {k - 1}"
            raise checks.error(ValueError, caller, f"Stack.layers[{k}]", expected, f"{above}")
