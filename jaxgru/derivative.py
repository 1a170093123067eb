"""The derivative of a cell, from the equations of its step.

Between its products with weights a step acts on each unit by itself. JAX differentiates that part,
with the results of the products as further arguments. Some of the values that it computes are
linear in the tangents. The others are coefficients, which follow from the carry before the step and
from the gates. So a loop over time has to save only the gates. `derived` takes the gates that a
cell names. `derived_from_step` chooses them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Literal

from jaxgru.cell import Blocks, Carry, Cell, Products, accumulator, matmul, split, total
from jaxgru.jaxprs import called, operations
from jaxgru.mesh import alike, vary


class Coefficients(NamedTuple):
    """The values of one step on which its tangent depends."""

    carry: Carry
    gates: Any
    values: tuple[Array, ...]


def derived(counts: Callable[[Any], tuple[int, ...]], **fields: Any) -> Cell:
    """Make a Cell whose derivative is derived from its `advance`, one of the other fields.

    The carry before a step and the gates that `advance` returns must determine the derivative. The
    products with weights, and their sums with inputs, are not known when the derivative is
    computed. counts maps the gates to the number of arrays that each product returns. There are at
    most two products. The bias b_hn is added to the last array of the first product.

    Raises:
        ValueError: the gates do not determine the derivative. It is raised during tracing.
    """

    @_once
    def trace(carry: Carry, counts: tuple[int, ...]) -> _Rest:
        return _trace(fields["advance"], fields["gates"], counts, carry)

    return _cell(lambda carry, gates: trace(carry, counts(gates)), **fields)


def derived_from_step(step: Any, inputs: int, counts: tuple[int, ...], **fields: Any) -> Cell:
    """Make a Cell from a step(products, carry, projected x) -> next carry.

    inputs is the number G of arrays of projected x, and counts that of the arrays that each product
    returns. The gates are the results of costly functions, such as sigmoid and tanh, and those
    results of products from which the derivative follows by cheap arithmetic.
    """

    def plain(products: Products, blocks: Blocks, carry: Carry, projected: Any) -> tuple[Any, Any]:
        del blocks
        return step(products, carry, projected), ()

    @_once
    def trace(carry: Carry) -> _Rest:
        found = _trace(plain, inputs, counts, carry)
        return found._replace(gates=_chosen(found))

    def advance(products: Products, blocks: Blocks, carry: Carry, projected: Any) -> Any:
        found = trace(carry)
        values = _Values(found.equations, (found.carry, found.projected), (carry, projected))
        for k, product in enumerate(products):
            results = list(product(values.at(found.operands[k])))
            if k == 0:
                results[-1] = total(results[-1], blocks.b_hn)
            values.know(found.results[k], tuple(results))
        return jax.tree.map(values.at, found.after), tuple(map(values.at, found.gates))

    return _cell(lambda carry, _: trace(carry), gates=inputs, advance=advance, **fields)


def _once(trace: Callable[..., "_Rest"]) -> Callable[..., "_Rest"]:
    """Trace a step once for carries of the same structure and types."""
    found: dict[Any, _Rest] = {}

    def remembered(carry: Carry, *counts: Any) -> _Rest:
        leaves, tree = jax.tree.flatten(carry)
        key = (tree, *map(jax.typeof, leaves), *counts)
        if key not in found:
            found[key] = trace(carry, *counts)
        return found[key]

    return remembered


def _cell(rest: Callable[[Carry, Any], "_Rest"], **fields: Any) -> Cell:
    """A Cell whose derivative follows from the traced step."""
    inputs = fields["gates"]

    def known(found: _Rest, carry: Carry, gates: Any) -> _Values:
        return _Values(found.equations, (found.carry, found.gates), (carry, gates))

    def linear(found: _Rest, at: Coefficients, dcarry: Carry, alone: Any) -> _Values:
        names = (found.coefficients, found.dcarry, found.dalone)
        return _Values(found.equations, names, (at.values, dcarry, alone))

    def coefficients(carry: Carry, gates: Any) -> Coefficients:
        found = rest(carry, gates)
        values = known(found, carry, gates)
        return Coefficients(carry, gates, tuple(map(values.at, found.coefficients)))

    def sources(dblocks: Blocks, dx: Array, carry: Carry, gates: Any) -> Any:
        found = rest(carry, gates)
        values, parts = known(found, carry, gates), split(dx, inputs)

        def into(k):
            db_hn = None if k else dblocks.b_hn
            if found.shares[k] == tuple(range(inputs)) and db_hn is None:
                source = dx
            else:
                zeros = jnp.zeros_like(parts[0])
                every = [zeros if g is None else parts[g] for g in found.shares[k]]
                every[-1] = total(every[-1], db_hn)
                source = jnp.concatenate(every, axis=-1)
            w = dblocks.w_hh[k]
            return source if w is None else total(source, (values.at(found.operands[k]), w))

        return tuple(map(into, range(len(found.shares)))), tuple(parts[g] for g in found.alone)

    def tangent(products: Products, at: Coefficients, dcarry: Carry, sources: Any) -> Carry:
        found, (into, alone) = rest(at.carry, at.gates), sources
        values = linear(found, at, dcarry, alone)
        for k, product in enumerate(products):
            results = product(values.at(found.doperands[k]), into[k])
            values.know(found.dresults[k], tuple(results))
        return jax.tree.map(values.at, found.dafter)

    def diagonal(blocks: Blocks, at: Coefficients) -> Carry:
        found = rest(at.carry, at.gates)
        leaves, tree = jax.tree.flatten(at.carry)
        none = jnp.zeros_like(leaves[0], accumulator(leaves[0].dtype))
        still, alone = jax.tree.map(jnp.zeros_like, at.carry), (none,) * len(found.alone)
        weights = [
            split(w, len(results)) for w, results in zip(blocks.w_hh, found.dresults, strict=True)
        ]

        def operand(k, dcarry, results):
            values = linear(found, at, dcarry, alone)
            values.know(found.dresults[:k], tuple(results))
            return values.at(found.doperands[k])

        def of(part):
            """The derivative of each unit in this part of the carry by itself."""
            ones = [jnp.full_like(leaf, k == part) for k, leaf in enumerate(leaves)]
            one, results = tree.unflatten(ones), []
            for k, w in enumerate(weights):
                nothing = [(none,) * len(w) for w in weights[:k]]
                direct = operand(k, one, nothing)
                shares = [direct * u.diagonal()[None] for u in w]
                for g, u in enumerate(weights[0] if k else ()):
                    # Unit i affects itself through every unit j that the first product affects.
                    only = (*nothing[0][:g], jnp.ones_like(none), *nothing[0][g + 1 :])
                    slope = operand(k, still, [only])
                    begin = operand(0, one, [])
                    shares = [
                        share + begin * matmul((u * v.T).T, slope)
                        for share, v in zip(shares, w, strict=True)
                    ]
                results.append(tuple(shares))
            values = linear(found, at, one, alone)
            values.know(found.dresults, tuple(results))
            return values.at(jax.tree.leaves(found.dafter)[part])

        return tree.unflatten([of(part) for part in range(len(leaves))])

    return Cell(
        coefficients=coefficients, sources=sources, tangent=tangent, diagonal=diagonal, **fields
    )


class _Equation(NamedTuple):
    """An equation of a jaxpr. Its arguments and results are names or literals."""

    primitive: Any
    params: dict[str, Any]
    arguments: list[Any]
    results: list[Any]


class _Values:
    """The values of names, each computed when it is first needed."""

    def __init__(self, equations: list[_Equation], names: Any, values: Any) -> None:
        self._makers = {name: equation for equation in equations for name in equation.results}
        self._known: dict[Any, Any] = {}
        self.know(names, values)

    def know(self, names: Any, values: Any) -> None:
        pairs = zip(jax.tree.leaves(names), jax.tree.leaves(values), strict=True)
        self._known.update((name, value) for name, value in pairs if isinstance(name, _Name))

    def at(self, name: Any) -> Any:
        if isinstance(name, Literal):
            return name.val
        if name not in self._known:
            if name not in self._makers:
                raise ValueError("a derivative needs more of a step than its carry and gates")
            maker = self._makers[name]
            self.know(maker.results, _run(maker, list(map(self.at, maker.arguments))))
        return self._known[name]


def _run(equation: _Equation, arguments: list[Any]) -> list[Any]:
    """The results of an equation."""
    primitive = equation.primitive
    if primitive.name == "pvary":  # the argument may vary already, by `alike`
        return [vary(argument, equation.params["axes"]) for argument in arguments]
    if called(equation) is None:
        arguments = alike(arguments)
    else:  # the function that is called makes its numbers vary itself
        arrays = iter(alike([a for a in arguments if jnp.ndim(a)]))
        arguments = [next(arrays) if jnp.ndim(a) else a for a in arguments]
    found = primitive.bind(*arguments, **primitive.get_bind_params(equation.params))
    return found if primitive.multiple_results else [found]


class _Name:
    """The name of one array. It is equal only to itself."""

    def __init__(self, array: Any) -> None:
        self.is_number = array.ndim == 0
        self.floating = jnp.issubdtype(array.dtype, jnp.floating)


class _Rest(NamedTuple):
    """A step and its tangent, without the products, for carries of one shape."""

    equations: list[_Equation]
    carry: Any
    projected: Any
    results: Any
    """The names of the arrays that the products return, a tuple for each product."""
    after: Any
    gates: Any
    operands: list[Any]
    """The names of the arrays that are multiplied with weights."""
    coefficients: list[Any]
    """The names of the values that do not depend on tangents and multiply one."""
    dcarry: Any
    dalone: Any
    dresults: Any
    """The names of the tangents of the products' results, a tuple for each product."""
    dafter: Any
    doperands: list[Any]
    shares: list[tuple[int | None, ...]]
    """For each array that a product returns, the part of the projected input added to it."""
    alone: list[int]
    """The parts that are added to no such array."""


def _trace(advance: Any, inputs: int, counts: tuple[int, ...], carry: Carry) -> _Rest:
    first = jax.tree.leaves(carry)[0]
    one = first.astype(accumulator(first.dtype))
    projected, results = (one,) * inputs, tuple((one,) * count for count in counts)
    blocks = Blocks(None, (None,) * len(counts), None)

    def step(carry, projected, results):
        operands = []

        def product(k, x):
            operands.append(x)
            return results[k]

        products = tuple(partial(product, k) for k in range(len(counts)))
        return *advance(products, blocks, carry, projected), operands

    arguments = (carry, projected, results)
    equations, names, outs = _named(step, *arguments)
    shares = _shares(equations, outs, *names[1:])
    alone = [g for g in range(inputs) if not any(g in share for share in shares)]

    def both(arguments, darguments):
        carry, projected, results = arguments

        def run(carry, parts, results):
            given = dict(zip(alone, parts, strict=True))
            mixed = tuple(given.get(g, part) for g, part in enumerate(projected))
            return step(carry, mixed, results)

        return jax.jvp(run, (carry, tuple(projected[g] for g in alone), results), darguments)

    darguments = (carry, (one,) * len(alone), results)
    equations, (names, dnames), outs = _named(both, arguments, darguments)
    (after, gates, operands), (dafter, _, doperands) = outs
    coefficients = _coefficients(equations, dnames, (dafter, doperands))
    tangents = dict(zip(("dcarry", "dalone", "dresults"), dnames, strict=True))
    return _Rest(
        equations=equations,
        carry=names[0],
        projected=names[1],
        results=names[2],
        after=after,
        gates=gates,
        operands=operands,
        coefficients=coefficients,
        dafter=dafter,
        doperands=doperands,
        shares=shares,
        alone=alone,
        **tangents,
    )


#: Computing these again from saved values takes less time than saving their results.
_CHEAP = {
    "abs", "add", "add_any", "and", "broadcast_in_dim", "ceil", "clamp", "convert_element_type",
    "copy", "div", "eq", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lt", "max", "min",
    "mul", "ne", "neg", "not", "one_minus_square", "or", "round", "select_n", "sign", "square",
    "sub", "xor",
    "pvary", "reshard",  # they change where an array lies, on a mesh
}  # fmt: skip


def _chosen(found: _Rest) -> tuple[Any, ...]:
    """The names of values that determine the derivative, together with the carry."""
    makers = {name: equation for equation in found.equations for name in equation.results}
    inputs, carry = _names((found.projected, found.results)), _names(found.carry)
    chosen: list[Any] = []
    seen: set[Any] = set()

    def visit(name: Any) -> None:
        if isinstance(name, Literal) or name in seen or name in carry:
            return
        seen.add(name)
        maker = makers.get(name)
        if maker is None:
            chosen.append(name)
            return
        given, inner = _names(maker.arguments), called(maker)
        parts = [maker] if inner is None else operations(inner.jaxpr)
        cheap = all(part.primitive.name in _CHEAP for part in parts)
        sums = given and given <= inputs  # for instance x + h U, which is one array instead of two
        if (cheap and not sums) or not name.floating or name.is_number:
            for argument in maker.arguments:
                visit(argument)
        else:
            chosen.append(name)

    for name in (*found.coefficients, *found.operands):
        visit(name)
    return tuple(chosen)


def _named(function: Callable[..., Any], *arguments: Any) -> tuple[list[_Equation], Any, Any]:
    """Trace a function: (its equations, the names of its arguments, the names of its results)."""
    closed, types = jax.make_jaxpr(function, return_shape=True)(*arguments)
    names = jax.tree.map(_Name, arguments)
    equations, outs = _flat(closed, jax.tree.leaves(names))
    return equations, names, jax.tree.unflatten(jax.tree.structure(types), outs)


def _flat(closed: ClosedJaxpr, arguments: list[Any]) -> tuple[list[_Equation], list[Any]]:
    """The equations and the results. The equations of inner compiled functions are inlined."""
    found: list[_Equation] = []
    names: dict[Any, Any] = dict(zip(closed.jaxpr.invars, arguments, strict=True))
    consts = [Literal(value, jax.typeof(value)) for value in closed.consts]
    names.update(zip(closed.jaxpr.constvars, consts, strict=True))

    def read(var):
        return var if isinstance(var, Literal) else names[var]

    for equation in closed.jaxpr.eqns:
        given = list(map(read, equation.invars))
        if equation.primitive.name == "jit":
            within, outs = _flat(equation.params["jaxpr"], given)
            found += within
        else:
            outs = [_Name(var.aval) for var in equation.outvars]
            found.append(_Equation(equation.primitive, equation.params, given, outs))
        names.update(zip(equation.outvars, outs, strict=True))
    return found, list(map(read, closed.jaxpr.outvars))


def _shares(
    equations: list[_Equation], outs: Any, projected: Any, results: Any
) -> list[tuple[int | None, ...]]:
    """For each result of a product, the part of the projected input that is used only in their sum.

    The tangents of the two then form one array.
    """
    used = [name for equation in equations for name in equation.arguments] + jax.tree.leaves(outs)
    pairs = [_names(e.arguments) for e in equations if e.primitive.name == "add"]

    def share(name):
        alone = (g for g, part in enumerate(projected) if used.count(part) == 1)
        both = (g for g in alone if {projected[g], name} in pairs and used.count(name) == 1)
        return next(both, None)

    return [tuple(map(share, names)) for names in results]


def _coefficients(equations: list[_Equation], tangents: Any, outs: Any) -> list[Any]:
    """The arguments, independent of tangents, of the equations that lead from tangents to outs."""
    linear = _names(tangents)
    for equation in equations:
        if not linear.isdisjoint(_names(equation.arguments)):
            linear.update(equation.results)
    needed, found = _names(outs), []
    for equation in reversed(equations):
        if not needed.isdisjoint(equation.results):
            needed |= _names(equation.arguments) & linear
            found += [
                name
                for name in equation.arguments
                if isinstance(name, _Name) and name not in linear and name not in found
            ]
    return found


def _names(tree: Any) -> set[Any]:
    return {name for name in jax.tree.leaves(tree) if isinstance(name, _Name)}
