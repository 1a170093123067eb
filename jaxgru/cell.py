"""What a cell tells the loops over time about itself.

A cell file registers one `Cell` for its params, or its step alone by way of `jaxgru.register`.
`scan`, `newton_scan`, `step` and the derivative are written once, against this table.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Params = Any
Carry = Any


class Blocks(NamedTuple):
    """The weights as the products take them, matrices with the gates side by side.

    The tangents of weights come in the same form, with None for those that are zero.
    """

    w_ih: Any
    """`[I, G * H]`."""
    w_hh: tuple[Any, ...]
    """`[H, g * H]`, one for each product that waits for the one before it. Empty where the gates do
    not see the carry: J_t is then diagonal."""
    b: Any
    """`[G * H]` or None."""
    b_hn: Any = None
    """`[H]` or None."""


Products = tuple[Callable[..., tuple[jax.Array, ...]], ...]
"""(x, plus=None) -> x @ w + plus, one array a gate, for each matrix w of w_hh. How the matrices lie
in memory, and where, is the affair of the back end."""


class Cell(NamedTuple):
    """One cell's equations, cut where a fast recurrence and its derivative need the cuts.

    All of them act on the last axis, `[..., H]`. `advance`, `coefficients` and `tangent` are what
    the loops over time run at each step. `sources` sees a whole stretch of time at once. All that
    concerns the derivative can be had from `advance`: `jaxgru.derivative.derived`.
    """

    gates: int
    """G, how many pre-activations of size H an input has a share in."""
    sizes: Callable[[Params], tuple[int, int]]
    """params -> (input size I, hidden size H)."""
    check: Callable[[str, Params], None]
    """(caller, params) -> None; raises where the leaves of params do not fit together."""
    carry_shape: Callable[[Params], Carry]
    """params -> its carry, with a `jax.ShapeDtypeStruct` in place of every array."""
    output: Callable[[Carry], jax.Array]
    """carry -> its part that is the output, y_t = h_t."""
    blocks: Callable[[Params], Blocks]
    """params, or their tangents with None for zero -> the same as matrices; linear."""
    advance: Callable[[Products, Blocks, Carry, tuple[jax.Array, ...]], tuple[Carry, Any]]
    """(products with w_hh, blocks, carry, projected x) -> (next carry, gates: what the derivative
    needs to know of this step, `[..., H]` each)."""
    coefficients: Callable[[Carry, Any], Any]
    """(previous carry, gates) -> the coefficients of `tangent`."""
    sources: Callable[[Blocks, jax.Array, Carry, Any], Any]
    """(dblocks, dx, previous carry, gates) -> what the tangents of params and inputs do to a step
    directly, where dx is the tangent of the projected inputs `[..., G * H]`; linear in both."""
    tangent: Callable[[Products, Any, Carry, Any], Carry]
    """(products with w_hh, coefficients, dcarry, sources) -> next dcarry: J_t dcarry + s_t."""
    diagonal: Callable[[Blocks, Any], Carry]
    """(blocks, coefficients) -> the diagonal of J_t, `[..., H]` for every part of the carry."""
    bound: Callable[[Carry, int], Carry]
    """(magnitudes of the carries it starts from, number of steps) -> what no magnitude exceeds."""
    compute_dtype: Any = None
    """The dtype of the operands of products with weights; None for that of params."""


class StepCell(NamedTuple):
    """A cell of which the step alone is known: one that `jaxgru.register` has made."""

    step: Callable[[Params, Carry, Any], tuple[Carry, jax.Array]]
    """(params, carry, what `project` made of x) -> (next carry, output)."""
    project: Callable[[Params, jax.Array], Any]
    """(params, xs) -> what the step takes, for all of time."""
    sizes: Callable[[Params], tuple[int, int]]
    """As of a Cell."""
    check: Callable[[str, Params], None]
    """As of a Cell."""
    initial_carry: Callable[[Params], Carry]
    """params -> the carry that a sequence starts from."""

    def carry_shape(self, params: Params) -> Carry:
        """As of a Cell."""
        return jax.eval_shape(self.initial_carry, params)


_cells: dict[type, Cell | StepCell] = {}


def register(params_type: type, cell: Cell | StepCell) -> None:
    """Make `scan` and `step` know a params type."""
    _cells[params_type] = cell


def knows(params_type: type) -> bool:
    """Whether a params type is registered."""
    return params_type in _cells


def is_cell(params: Params) -> bool:
    """Whether the type of params is registered."""
    return knows(type(params))


def cell_of(params: Params) -> Any:
    """The Cell or StepCell of these params, whose type is registered."""
    return _cells[type(params)]


def accumulator(dtype: Any) -> Any:
    """The dtype in which products are accumulated and gates computed: at least float32."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def matmul(w: jax.Array, x: jax.Array) -> jax.Array:
    """`[..., N] x [N, M]`, x times w, accumulated and returned in at least float32.

    The axes of x stay as they are: where a batch lies on several devices, so does the result.
    """
    return _product(w, x, 0)


def matmul_transposed(w: jax.Array, x: jax.Array) -> jax.Array:
    """`[..., N] x [M, N]`: as `matmul`, with the transpose of w."""
    return _product(w, x, 1)


def matmul_left(w: jax.Array, x: jax.Array) -> jax.Array:
    """`[M, N] x [N]`: as `matmul`, with the transpose of w, on the left."""
    return lax.dot(w, x.astype(w.dtype), preferred_element_type=accumulator(x.dtype))


def _product(w, x, axis):
    contract = (((x.ndim - 1,), (axis,)), ((), ()))
    result = accumulator(x.dtype)
    return lax.dot_general(x.astype(w.dtype), w, contract, preferred_element_type=result)


def total(start: jax.Array | None, *terms: Any) -> Any:
    """The sum of products (x, w) and biases, those left out that are or hold None.

    None where nothing is left.
    """
    for term in terms:
        if isinstance(term, tuple):
            x, w = term
            term = None if x is None or w is None else matmul(w, x)
        if start is None or term is None:
            start = term if start is None else start
        else:
            missing = tuple(range(start.ndim - term.ndim))
            start = start + jnp.expand_dims(term.astype(start.dtype), missing)
    return start


def project(cell: Cell, blocks: Blocks, xs: jax.Array) -> tuple[jax.Array, ...]:
    """The inputs' share of the pre-activations, `x W_ih + b`, one array a gate."""
    return split(total(matmul(blocks.w_ih, xs), blocks.b), cell.gates)


def products(
    weights: tuple[jax.Array, ...], product: Callable[[jax.Array, jax.Array], jax.Array] = matmul
) -> Products:
    """The weights as functions of what they are multiplied with."""

    def multiply(w, x, plus=None):
        a = product(w, x) if plus is None else product(w, x) + plus
        count = a.shape[-1] // x.shape[-1]
        return split(a, count) if count > 1 else (a,)

    return tuple(partial(multiply, w) for w in weights)


def operands(cell: Cell, blocks: Blocks) -> Blocks:
    """The blocks with the weights in the dtype in which products take them."""
    if cell.compute_dtype is None:
        return blocks
    w_ih, w_hh = jax.tree.map(lambda w: w.astype(cell.compute_dtype), (blocks.w_ih, blocks.w_hh))
    return blocks._replace(w_ih=w_ih, w_hh=w_hh)


def advance(cell: Cell, blocks: Blocks, carry: Carry, x: jax.Array) -> tuple[Carry, Any]:
    """One step, or many whose carries are known: (next carry, gates)."""
    return cell.advance(products(blocks.w_hh), blocks, carry, project(cell, blocks, x))


def split(a: jax.Array, count: int) -> Any:
    """One array a gate. Its transpose is a concatenation, that of slices a sum of padded arrays."""
    return lax.split(a, (a.shape[-1] // count,) * count, axis=a.ndim - 1)


def flat(w: jax.Array | None) -> Any:
    """`[..., G, H]` -> `[..., G * H]`; None stays None."""
    return None if w is None else w.reshape(*w.shape[:-2], w.shape[-2] * w.shape[-1])
