"""The interface between cells and the loops over time.

The file of a cell registers one `Cell` for its params, or passes its step to `jaxgru.register`.
`scan`, `newton_scan`, `step` and the derivative are written once, against this interface.
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
    """The weights in the form that the products take: matrices with the gates side by side.

    The tangents of weights come in the same form, with None for those that are zero.
    """

    w_ih: Any
    """`[I, G * H]`."""
    w_hh: tuple[Any, ...]
    """`[H, g * H]`, one for each product that depends on the one before it. Empty if the gates do
    not depend on the carry: J_t is then diagonal."""
    b: Any
    """`[G * H]` or None."""
    b_hn: Any = None
    """`[H]` or None."""


Products = tuple[Callable[..., tuple[jax.Array, ...]], ...]
"""(x, plus=None) -> x @ w + plus, one array per gate, for each matrix w of w_hh. The back end
decides how the matrices are laid out in memory, and where."""


class Cell(NamedTuple):
    """One cell's equations, split into the parts that a fast recurrence and its derivative need.

    All of them act on the last axis, `[..., H]`. The loops over time run `advance`, `coefficients`
    and `tangent` at each step. `sources` takes a whole stretch of time at once.
    `jaxgru.derivative.derived` derives the fields for the derivative from `advance`.
    """

    gates: int
    """G, the number of pre-activations of size H to which an input contributes."""
    sizes: Callable[[Params], tuple[int, int]]
    """params -> (input size I, hidden size H)."""
    check: Callable[[str, Params], None]
    """(caller, params) -> None. It raises an error if the leaves of params do not fit together."""
    carry_shape: Callable[[Params], Carry]
    """params -> its carry, with a `jax.ShapeDtypeStruct` in place of every array."""
    output: Callable[[Carry], jax.Array]
    """carry -> the part of it that is the output, y_t = h_t."""
    blocks: Callable[[Params], Blocks]
    """params, or their tangents with None for zero -> the same as matrices. It is linear."""
    advance: Callable[[Products, Blocks, Carry, tuple[jax.Array, ...]], tuple[Carry, Any]]
    """(products with w_hh, blocks, carry, projected x) -> (next carry, gates). The gates are the
    values of this step that the derivative needs, `[..., H]` each."""
    coefficients: Callable[[Carry, Any], Any]
    """(previous carry, gates) -> the coefficients of `tangent`."""
    sources: Callable[[Blocks, jax.Array, Carry, Any], Any]
    """(dblocks, dx, previous carry, gates) -> the direct effect of the tangents of params and
    inputs on a step. dx is the tangent of the projected inputs `[..., G * H]`. It is linear in
    dblocks and dx."""
    tangent: Callable[[Products, Any, Carry, Any], Carry]
    """(products with w_hh, coefficients, dcarry, sources) -> next dcarry: J_t dcarry + s_t."""
    diagonal: Callable[[Blocks, Any], Carry]
    """(blocks, coefficients) -> the diagonal of J_t, `[..., H]` for every part of the carry."""
    bound: Callable[[Carry, int], Carry]
    """(magnitudes of the initial carries, number of steps) -> bounds on the magnitudes."""
    carried: Any = None
    """None, or next carry -> gates, if the gates are parts of it. They are then neither saved for
    the gradient nor computed again."""
    compute_dtype: Any = None
    """The dtype of the operands of products with weights. None stands for the dtype of params."""
    initial_carry: Any = None
    """params -> the carry that a sequence starts from. None stands for zeros."""
    formed: Any = None
    """None, or (form, cell) if `blocks` is not linear. The recurrence then runs that other cell,
    whose params are form(params)."""


class StepCell(NamedTuple):
    """A cell that `jaxgru.register` has made without weights. Its step alone defines it."""

    step: Callable[[Params, Carry, Any], tuple[Carry, jax.Array]]
    """(params, carry, the part of the result of `project` for x) -> (next carry, output)."""
    project: Callable[[Params, jax.Array], Any]
    """(params, xs) -> the inputs of all steps."""
    sizes: Callable[[Params], tuple[int, int]]
    """As for a `Cell`."""
    check: Callable[[str, Params], None]
    """As for a `Cell`."""
    initial_carry: Callable[[Params], Carry]
    """params -> the carry that a sequence starts from."""

    def carry_shape(self, params: Params) -> Carry:
        """As for a `Cell`."""
        return jax.eval_shape(self.initial_carry, params)


class Family(NamedTuple):
    """Cells of one params type that depend on the structure and the shapes of their params."""

    check: Callable[[str, Params], None]
    """As for a `Cell`."""
    member: Callable[[Params], Cell]
    """params, after their check -> their cell."""


_cells: dict[type, Cell | StepCell | Family] = {}


def register(params_type: type, cell: Cell | StepCell | Family) -> None:
    """Register a params type for `scan` and `step`."""
    _cells[params_type] = cell


def knows(params_type: type) -> bool:
    """Whether a params type is registered."""
    return params_type in _cells


def is_cell(params: Params) -> bool:
    """Whether the type of params is registered."""
    return knows(type(params))


def cells(params: Params) -> list[Params]:
    """The params of every cell in a composition of cells."""
    return jax.tree.leaves(params, is_leaf=is_cell)


def check_leaves(caller: str, params: Params) -> None:
    """Check the leaves of params, whose type is registered."""
    _cells[type(params)].check(caller, params)


def cell_of(params: Params) -> Any:
    """The Cell or StepCell of these params, whose type is registered."""
    found = _cells[type(params)]
    return found.member(params) if isinstance(found, Family) else found


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
    """The sum of products (x, w) and biases, without those that are None or contain None.

    None if no term is left.
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


def projection(blocks: Blocks, xs: jax.Array) -> jax.Array:
    """The contribution of the inputs to the pre-activations, with the gates side by side."""
    return total(matmul(blocks.w_ih, xs), blocks.b)


def project(cell: Cell, blocks: Blocks, xs: jax.Array) -> tuple[jax.Array, ...]:
    """The contribution of the inputs to the pre-activations, `x W_ih + b`, one array per gate."""
    return split(projection(blocks, xs), cell.gates)


def products(
    weights: tuple[jax.Array, ...], product: Callable[[jax.Array, jax.Array], jax.Array] = matmul
) -> Products:
    """The products with the weights, as functions of the other operand."""

    def multiply(w, x, plus=None):
        a = product(w, x) if plus is None else product(w, x) + plus
        count = a.shape[-1] // x.shape[-1]
        return split(a, count) if count > 1 else (a,)

    return tuple(partial(multiply, w) for w in weights)


def operands(cell: Cell, blocks: Blocks) -> Blocks:
    """The blocks, with the weights in the dtype of the products' operands."""
    if cell.compute_dtype is None:
        return blocks
    w_ih, w_hh = jax.tree.map(lambda w: w.astype(cell.compute_dtype), (blocks.w_ih, blocks.w_hh))
    return blocks._replace(w_ih=w_ih, w_hh=w_hh)


def advance(cell: Cell, blocks: Blocks, carry: Carry, x: jax.Array) -> tuple[Carry, Any]:
    """Run one step, or many steps whose carries are known: (next carry, gates)."""
    return cell.advance(products(blocks.w_hh), blocks, carry, project(cell, blocks, x))


def split(a: jax.Array, count: int) -> Any:
    """Split into one array per gate.

    The transpose is a concatenation. The transpose of slices would be a sum of padded arrays.
    """
    return lax.split(a, (a.shape[-1] // count,) * count, axis=a.ndim - 1)


def flat(w: jax.Array | None) -> Any:
    """`[..., G, H]` -> `[..., G * H]`. None stays None."""
    return None if w is None else w.reshape(*w.shape[:-2], w.shape[-2] * w.shape[-1])
