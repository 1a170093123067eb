"""Cells of your own that name their weights. They run in the loop of the built-in cells.

The step gets the projected inputs, and the products with the recurrent weights as functions. What
it computes between them acts on each unit by itself, so `jaxgru.derivative` derives its derivative.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend.core import Literal

from jaxgru import checks
from jaxgru.cell import Blocks, Carry, Cell, Family, Params, accumulator, flat
from jaxgru.derivative import derived_from_step
from jaxgru.jaxprs import called, operations
from jaxgru.loop import checked

#: Operations that keep the shape of an array and let its entries affect each other.
MIXING = {
    "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "dot_general", "fft", "gather",
    "pure_callback", "rev", "scatter", "sort",
}  # fmt: skip
#: How a step with weights gets one number for each unit.
VECTOR = (
    "A vector with a number for each unit can be the bias of one more gate, with zeros in w_ih: "
    "see docs/recipes/own_steps.md."
)


class Weights(NamedTuple):
    """The weights of a cell of your own, as `register` takes them from its params.

        parts                = x W_g + b_g,       g = 1 .. G
        products[k](operand) = operand U_k,g,     g = 1 .. g_k

    The last result of the first product also contains b_hn. The arrays have the dtype of params,
    and may be any differentiable function of them.

    Args:
        w_ih: `[I, G, H]`, of the inputs.
        w_hh: a tuple of at most two arrays `[H, g_k, H]`, one for each product with an operand. The
            operand of the second product may depend on the results of the first. It is () if the
            cell has no recurrent weights.
        b: `[G, H]`, or None for no biases.
        b_hn: `[H]`, added to the last result of the first product, or None.

    Example:
        >>> import jax.numpy as jnp, jaxgru
        >>> weights = jaxgru.Weights(w_ih=jnp.ones((3, 2, 8)), w_hh=(jnp.ones((8, 2, 8)),))
        >>> weights.b is None
        True
    """

    w_ih: Any
    w_hh: tuple[Any, ...]
    b: Any = None
    b_hn: Any = None


def family(
    name: str,
    step: Callable[..., tuple[Carry, Array]],
    weights: Callable[[Params], Weights],
    initial_carry: Callable[[Params], Carry],
    sizes: Callable[[Params], tuple[int, int]],
    check: Callable[[str, Params], None],
) -> Family:
    """The cells of the params type of this name. `check` runs before the other functions do."""

    @lru_cache
    def made(structure: Any, types: tuple[Any, ...]) -> Cell:
        params = structure.unflatten(types)
        found_sizes, dtype = sizes(params), types[0].dtype
        found = jax.eval_shape(weights, params)
        _check_weights(name, found, found_sizes, dtype)
        carry = jax.eval_shape(initial_carry, params)
        _check_carry(name, carry, found_sizes[1], dtype)
        gates = found.w_ih.shape[1]
        counts = tuple(w.shape[1] for w in found.w_hh)
        output = _check_step(name, step, params, carry, gates, counts)
        inner = derived_from_step(
            _Step(step, structure, types),
            gates,
            counts,
            sizes=lambda weights: (weights.w_ih.shape[0], weights.w_ih.shape[-1]),
            check=lambda caller, weights: None,
            carry_shape=lambda _: carry,
            output=lambda carry: jax.tree.leaves(carry)[output],
            blocks=_blocks,
            bound=lambda start, steps: jax.tree.map(lambda a: jnp.full_like(a, jnp.inf), start),
        )
        return inner._replace(
            sizes=sizes,
            check=check,
            blocks=lambda params: _blocks(weights(params)),
            initial_carry=initial_carry,
            formed=(weights, inner),
        )

    def member(params: Params) -> Cell:
        leaves, structure = jax.tree.flatten(params)
        return made(
            structure, tuple(jax.ShapeDtypeStruct(a.shape, checks.dtype_of(a)) for a in leaves)
        )

    def check_all(caller: str, params: Params) -> None:
        check(caller, params)
        member(params)

    return Family(check_all, member)


class _Step(NamedTuple):
    """The user's step, computed in at least float32."""

    step: Callable[..., tuple[Carry, Array]]
    structure: Any
    """Of params."""
    types: tuple[Any, ...]
    """Of the arrays of params, whose values the step does not use."""

    def __call__(self, products: Any, carry: Carry, parts: tuple[Array, ...]) -> Carry:
        like = jax.tree.leaves(carry)[0].dtype
        params = self.structure.unflatten(self.types)
        wide = jax.tree.map(lambda a: a.astype(accumulator(like)), carry)

        def narrowed(product: Any) -> Any:
            return lambda operand: product(operand.astype(like))

        after, _ = self.step(params, wide, parts, tuple(map(narrowed, products)))
        return jax.tree.map(lambda a: a.astype(like), after)


def _blocks(weights: Weights) -> Blocks:
    w_hh = tuple(map(flat, weights.w_hh))
    return Blocks(flat(weights.w_ih), w_hh, flat(weights.b), weights.b_hn)


def _check_weights(name: str, weights: Any, sizes: tuple[int, int], dtype: Any) -> None:
    caller = f"weights of {name}"
    if not isinstance(weights, Weights):
        got = checks.describe(weights)
        raise checks.error(TypeError, caller, "what it returns", "jaxgru.Weights", got)
    if not isinstance(weights.w_hh, tuple) or len(weights.w_hh) > 2:
        w_hh = weights.w_hh
        if isinstance(w_hh, tuple):
            got, fix = f"{len(w_hh)} arrays", "Leave out weights= for a cell with more."
        else:
            got, fix = checks.describe(w_hh), "Pass (w,) for one array w, and () for none."
        raise checks.error(TypeError, caller, "w_hh", "a tuple of at most two arrays", got, fix)
    inputs, size = sizes
    _check_array(caller, "w_ih", weights.w_ih, (inputs, "G", size), dtype)
    for k, w in enumerate(weights.w_hh):
        _check_array(caller, f"w_hh[{k}]", w, (size, f"g_{k}", size), dtype)
    if weights.b is not None:
        _check_array(caller, "b", weights.b, (weights.w_ih.shape[1], size), dtype)
    if weights.b_hn is not None:
        _check_array(caller, "b_hn", weights.b_hn, (size,), dtype)
        if not weights.w_hh:
            fix = "It is added to the last result of the first product."
            raise checks.error(ValueError, caller, "b_hn", "None without w_hh", "an array", fix)


def _check_array(
    caller: str, name: str, value: Any, shape: tuple[int | str, ...], dtype: Any
) -> None:
    sizes = f"[{', '.join(map(str, shape))}]"
    fits = isinstance(value, jax.ShapeDtypeStruct) and len(value.shape) == len(shape)
    fits = fits and value.dtype == dtype
    if not fits or not all(
        b > 0 if isinstance(a, str) else a == b for a, b in zip(shape, value.shape, strict=True)
    ):
        got, fix = checks.describe(value), ""
        rank = len(value.shape) if isinstance(value, jax.ShapeDtypeStruct) else 0
        if 0 < rank == len(shape) - 1:
            axis, one = ("first", "b[None]") if name == "b" else ("middle", "w[:, None]")
            fix = f"The {axis} axis is the gate. For a single gate, pass {one}."
        raise checks.error(ValueError, caller, name, f"{dtype}{sizes}", got, fix)


def _check_carry(name: str, carry: Carry, size: int, dtype: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    if not leaves:
        caller, expected = f"initial_carry of {name}", "a tree that contains an array"
        raise checks.error(ValueError, caller, "what it returns", expected, f"{carry}")
    for path, leaf in leaves:
        if leaf.shape != (size,) or leaf.dtype != dtype:
            where = "what it returns" + jax.tree_util.keystr(path)
            fix = "Leave out weights= for a cell with another carry."
            raise checks.error(
                ValueError,
                f"initial_carry of {name}",
                where,
                f"{dtype}[{size}] for a cell with weights",
                checks.describe(leaf),
                fix,
            )


def _check_step(
    name: str, step: Any, params: Any, carry: Carry, gates: int, counts: tuple[int, ...]
) -> int:
    """Check a step. It returns the place of its output among the leaves of carry."""
    caller = f"step of {name}"
    (size,), dtype = jax.tree.leaves(carry)[0].shape, accumulator(jax.tree.leaves(params)[0].dtype)
    places: list[int] = []

    def units(params: Any, carry: Carry, parts: Any, results: Any) -> tuple[Carry, list[Any]]:
        operands: list[Any] = []
        products = tuple(partial(product, k, operands, results) for k in range(len(counts)))
        result = step(params, carry, parts, products)
        after, _ = checked(caller, result, carry)
        if len(operands) < len(counts):
            expected, got = f"called once each ({len(counts)} in all)", f"{len(operands)} calls"
            raise checks.error(ValueError, caller, "products", expected, got)
        places.extend(k for k, a in enumerate(jax.tree.leaves(result[0])) if a is result[1])
        return after, operands

    def product(k: int, operands: list[Any], results: Any, operand: Any) -> Any:
        if k != len(operands):
            expected = f"called once each, in the order of w_hh ({len(counts)} in all)"
            got = f"products[{k}] in call {len(operands) + 1}"
            raise checks.error(ValueError, caller, "products", expected, got)
        like = jax.typeof(jax.tree.leaves(results)[0])
        if checks.shape_of(operand) != like.shape or operand.dtype != like.dtype:
            what, expected = f"the operand of products[{k}]", f"{checks.describe(like)}, as a carry"
            raise checks.error(ValueError, caller, what, expected, checks.describe(operand))
        operands.append(operand)
        return results[k]

    def like(*shape: int) -> Any:
        one = jax.ShapeDtypeStruct(shape, dtype)
        results = tuple((one,) * count for count in counts)
        return jax.tree.map(lambda _: one, carry), (one,) * gates, results

    def tangents(*arguments: Any) -> Any:
        return jax.jvp(partial(units, params), arguments, arguments)

    closed = jax.make_jaxpr(units)(params, *like(size))
    if not places:
        fix = "Return the very array of the carry. If none is the output, add it to the carry."
        expected = "one of the arrays of the next carry for a cell with weights"
        raise checks.error(ValueError, caller, "its output", expected, "another array", fix)
    _check_uses(caller, params, closed)
    _check_apart(caller, closed.jaxpr)
    _check_apart(caller, jax.make_jaxpr(tangents)(*like(size)).jaxpr)
    expected = "the same for all shapes [..., H] of its arguments for a cell with weights"
    fix = "They may use neither the shapes of arrays nor the indices of units."
    try:
        other = jax.make_jaxpr(units)(params, *like(size + 2, size + 1))
    except Exception as error:
        got = f"a {type(error).__name__} at the shape [{size + 2}, {size + 1}]"
        raise checks.error(ValueError, caller, "its equations", expected, got, fix) from error
    if _read(closed.jaxpr) != _read(other.jaxpr):
        got = f"others at the shape [{size + 2}, {size + 1}] than at [{size}]"
        raise checks.error(ValueError, caller, "its equations", expected, got, fix)
    return places[0]


def _check_uses(caller: str, params: Any, closed: Any) -> None:
    """Check that a traced step is pure, and uses no arrays but its arguments."""
    jaxpr = closed.jaxpr
    used = {id(var) for equation in jaxpr.eqns for var in equation.invars}
    used |= set(map(id, jaxpr.outvars))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, _), var in zip(leaves, jaxpr.invars[: len(leaves)], strict=True):
        if id(var) in used:
            got = "params" + jax.tree_util.keystr(path)
            expected = "no array of params, since parts and products replace them"
            fix = f"{VECTOR} Leave out weights= for a cell that uses its params in another way."
            raise checks.error(ValueError, caller, "what it uses", expected, got, fix)
    if any(isinstance(value, Tracer) for value in closed.consts):
        expected = "no array but its arguments for a cell with weights"
        got = "a traced value from outside"
        fix = "Keep it in params, or register the cell outside of transformed functions."
        raise checks.error(ValueError, caller, "what it uses", expected, got, fix)
    if any(np.ndim(value) for value in closed.consts):
        expected = "no array but its arguments for a cell with weights"
        got = "an array from outside"
        fix = f"It may use Python numbers. {VECTOR}"
        raise checks.error(ValueError, caller, "what it uses", expected, got, fix)
    if closed.effects:
        got = f"the effects {', '.join(map(str, closed.effects))}"
        fix = "To print from a step, leave out weights=."
        expected = "pure for a cell with weights"
        raise checks.error(ValueError, caller, "its equations", expected, got, fix)


def _check_apart(caller: str, jaxpr: Any) -> None:
    """Check that no operation lets units affect each other."""
    mixing = next(filter(_mixes, operations(jaxpr)), None)
    if mixing is not None:
        expected = "operations on each unit by itself for a cell with weights"
        got = f"{mixing.primitive.name}"
        fix = "Leave out weights= for a cell with loops, conditions, or sums or slices of units."
        if mixing.primitive.name == "iota":
            fix = VECTOR
        raise checks.error(ValueError, caller, "its equations", expected, got, fix)


def _read(jaxpr: Any) -> list[Any]:
    """The operations and the numbers in a jaxpr, which do not depend on the shapes of arrays."""
    found: list[Any] = []
    for equation in jaxpr.eqns:
        numbers = [str(atom.val) for atom in equation.invars if isinstance(atom, Literal)]
        plain = (bool, int, float, str)
        options = {k: v for k, v in equation.params.items() if isinstance(v, plain)}
        found.append((equation.primitive.name, numbers, options))
        inner = called(equation)
        found += [] if inner is None else _read(inner.jaxpr)
    return found


def _mixes(equation: Any) -> bool:
    """Whether an operation lets units affect each other, or contains programs that may."""
    of = {var.aval.shape for var in equation.invars if var.aval.shape}
    to = {var.aval.shape for var in equation.outvars}
    apart = to <= {()} if not of else of == to
    apart = apart or (not of and equation.primitive.name == "broadcast_in_dim")
    programs = any("jaxpr" in key or key == "branches" for key in equation.params)
    return not apart or programs or equation.primitive.name in MIXING
