"""What a cell tells the loops over time about itself.

A cell file (`gru.py`, `lstm.py`, `elman.py`) registers one `Cell` for its params type. `scan`,
`step` and the derivative are written once, against this table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any
Carry = Any


class Cell(NamedTuple):
    """One cell's equations, cut where a fast recurrence and its derivative need the cuts.

    `project` and `linearize` see a whole stretch of time, `[T, ...]`, at once; `advance` and
    `tangent` see one step: they are what the loops over time run.
    """

    sizes: Callable[[Params], tuple[int, int]]
    """params -> (input size I, hidden size H)."""
    check: Callable[[str, Params], None]
    """(caller, params) -> None; raises where the leaves of params do not fit together."""
    carry_shape: Callable[[Params], Carry]
    """params -> its carry, with a `jax.ShapeDtypeStruct` in place of every array."""
    output: Callable[[Carry], jax.Array]
    """carry -> its part that is the output, y_t = h_t."""
    project: Callable[[Params, jax.Array], Any]
    """(params, xs) -> the inputs' share of the pre-activations, a tuple with one array a gate."""
    advance: Callable[[Params, Carry, Any], tuple[Carry, Any]]
    """(params, carry, projected x) -> (next carry, what the derivative needs of this step)."""
    blocks: Callable[[Params], Any]
    """params, or their tangents with None for zero -> the same, one array a gate; linear."""
    linearize: Callable[..., tuple[Any, Any]]
    """(blocks, dblocks, xs, dxs, previous carries, gates) -> (coefficients, sources) of `tangent`.
    The sources are what the tangents of params and inputs do to each step directly; dxs, or a
    leaf of dblocks, is None where it is zero."""
    tangent: Callable[[Any, Any, Carry, Any], Carry]
    """(blocks, coefficients, dcarry, sources) -> next dcarry: the linear map J_t dcarry + s_t."""


_cells: dict[type, Cell] = {}


def register(params_type: type, cell: Cell) -> None:
    """Make `scan` and `step` know a params type."""
    _cells[params_type] = cell


def is_cell(params: Params) -> bool:
    """Whether the type of params is registered."""
    return type(params) in _cells


def cell_of(params: Params) -> Cell:
    """The cell of these params, whose type is registered."""
    return _cells[type(params)]


def accumulator(dtype: Any) -> Any:
    """The dtype in which products are accumulated and gates computed: at least float32."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """`[..., N] x [N, ...]`, accumulated and returned in at least float32."""
    return jnp.tensordot(x, w, axes=1, preferred_element_type=accumulator(x.dtype))


def project(xs: jax.Array, w_ih: jax.Array, b: jax.Array | None) -> jax.Array:
    """The inputs' share of all pre-activations, `x W_ih + b`."""
    a = matmul(xs, w_ih)
    return a if b is None else a + jnp.broadcast_to(b.astype(a.dtype), a.shape)


def total(like: jax.Array, *terms: Any) -> jax.Array:
    """The sum of products (x, w) and biases, those left out that are or hold None.

    Zeros like the first argument where nothing remains.
    """
    present = []
    for term in terms:
        if isinstance(term, tuple):
            x, w = term
            if x is not None and w is not None:
                present.append(matmul(x, w))
        elif term is not None:
            present.append(jnp.broadcast_to(term.astype(like.dtype), like.shape))
    return sum(present[1:], start=present[0]) if present else jnp.zeros_like(like)


def unstack(array: jax.Array | None, count: int, axis: int) -> Any:
    """One array a gate; a None for each where there is no array."""
    return (None,) * count if array is None else jnp.unstack(array, axis=axis)
