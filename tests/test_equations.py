"""Cells of the user's own whose weights are named: many equations, each registered in both ways."""

import dataclasses
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxgru
import own_gru
from cases import (
    GRAD_TOL,
    HIDDEN,
    INPUT,
    MARKS,
    STEPS,
    VALUE_TOL,
    assert_close,
    draw,
    draw_carry,
    draw_xs,
    only,
    planned,
    slow,
    weigh,
)
from jaxgru.cell import cell_of

pytestmark = pytest.mark.usefixtures("x64")
VALUES, GRADS = VALUE_TOL["float64"], GRAD_TOL["float64"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    w_ih: Any
    w_hh: Any
    b: Any
    c: Any


def gru_after(carry, parts, products):
    (h,), (x_r, x_z, x_n) = carry, parts
    a_r, a_z, a_n = products[0](h)
    z = jax.nn.sigmoid(x_z + a_z)
    h = (1 - z) * h + z * jnp.tanh(x_n + jax.nn.sigmoid(x_r + a_r) * a_n)
    return (h,), h


def lstm(carry, parts, products):
    h, c = carry
    i, f, g, o = (x + a for x, a in zip(parts, products[0](h), strict=True))
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def oscillator(carry, parts, products):
    """Two products, neither of which waits for the other."""
    y, z = carry
    (a,), (b,) = products[0](y), products[1](z)
    z = z + 0.3 * (jnp.tanh(parts[0] + a + b) - y - z)
    y = y + 0.3 * z
    return (z, y), y


def no_product(carry, parts, products):
    """A gate and a candidate that depend on inputs alone, and a trace of the state."""
    (h, trace), (x_f, x_n) = carry, parts
    f = jax.nn.sigmoid(x_f)
    h = f * h + (1 - f) * jax.nn.silu(x_n)
    return (h, 0.9 * trace + h * h), h


def unusual(carry, parts, products):
    """Functions with derivative rules of their own, choices, quotients, and a part used twice."""
    (h,), (x_a, x_b) = carry, parts
    a, b = products[0](h)
    gate = jax.nn.softplus(x_a + a) / (1 + jnp.exp(x_b) + jax.nn.relu(b - 0.1))
    mixed = jnp.where(a > x_a, jnp.sin(x_a) * h, jax.nn.gelu(b) - h / (1 + jnp.abs(h)))
    (c,) = products[1](gate * mixed)
    h = h + 0.2 * (jnp.tanh(c) + jax.nn.leaky_relu(mixed) - jnp.square(h))
    return (h,), h


#: For each cell its step, G, the numbers of results of its products, and the arrays of its carry.
STEPS_OF: dict[str, Any] = {
    "gru_after": (gru_after, 3, (3,), 1),
    "lstm": (lstm, 4, (4,), 2),
    "oscillator": (oscillator, 1, (1, 1), 2),
    "no_product": (no_product, 2, (), 2),
    "unusual": (unusual, 2, (2, 1), 1),
}


def weights_of(counts):
    """Weights that are no linear function of params."""

    def weights(params):
        w_hh = jnp.abs(params.w_hh) * jnp.sign(params.w_hh)  # Dale's law, if the signs were fixed
        ends = np.cumsum(counts)
        parts = tuple(w_hh[:, end - n : end] for end, n in zip(ends, counts, strict=True))
        b_hn = jnp.sin(params.c) if counts else None
        return jaxgru.Weights(jnp.tanh(params.w_ih), parts, params.b * params.b, b_hn)

    return weights


def by_weights(equations, counts):
    def step(params, carry, parts, products):
        return equations(carry, parts, products)

    return {"step": step, "weights": weights_of(counts)}


def by_step(equations, counts):
    """The same by the step alone: `jax.lax.scan` differentiates it."""

    def step(params, carry, x):
        found = weights_of(counts)(params)
        parts = tuple(jnp.einsum("i,igh->gh", x, found.w_ih) + found.b)

        def product(k):
            def run(operand):
                results = list(jnp.einsum("i,igh->gh", operand, found.w_hh[k]))
                if k == 0:
                    results[-1] = results[-1] + found.b_hn
                return results

            return run

        return equations(carry, parts, tuple(map(product, range(len(counts)))))

    return {"step": step}


def params_type(name, how):
    equations, _, counts, leaves = STEPS_OF[name]
    made: Any = dataclasses.make_dataclass(
        f"{name}_{how.__name__}", [], bases=(Weights,), frozen=True, kw_only=True
    )
    jaxgru.register(
        made,
        initial_carry=lambda params: (0.1 * jnp.tanh(params.c),) * leaves,
        sizes=lambda params: (params.w_ih.shape[0], params.w_ih.shape[-1]),
        forms={made.__name__: {}},
        **how(equations, counts),
    )
    return made


TYPES = {name: tuple(params_type(name, how) for how in (by_weights, by_step)) for name in STEPS_OF}


def draw_both(name, inputs=INPUT, hidden=HIDDEN, dtype="float64"):
    """The params, as each of the two types."""
    rng = np.random.default_rng(3)
    _, gates, counts, _ = STEPS_OF[name]
    shapes = {"w_ih": (inputs, gates, hidden), "w_hh": (hidden, sum(counts), hidden)}
    shapes |= {"b": (gates, hidden), "c": (hidden,)}
    arrays = {
        field: jnp.asarray(0.6 * rng.standard_normal(shape), dtype)
        for field, shape in shapes.items()
    }
    return tuple(made(**arrays) for made in TYPES[name])


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("options", ["all", slow("plain")])
@pytest.mark.parametrize("name", only(["unusual", "oscillator", "no_product"], STEPS_OF))
def test_both_ways_agree(name, options, saved):
    """In values and gradients, in a Stack, whatever stands where no step is real."""
    chosen, xs = MARKS[options], draw_xs()
    how = {"checkpoint": 2, "reverse": True} if options == "all" else {}
    real = np.arange(STEPS) < chosen.get("length", STEPS)
    real &= np.asarray(chosen.get("mask", np.ones(STEPS, bool)))
    xs = jnp.where(real[:, None], xs, jnp.nan)

    def run(params, xs):
        params = jaxgru.Stack((params, draw("gru", HIDDEN, 2)))
        return weigh(jaxgru.scan(params, xs, **how, **chosen))

    with planned(saved=saved):
        found, expected = (
            jax.jit(jax.value_and_grad(run, (0, 1)))(params, xs) for params in draw_both(name)
        )
    assert_close(jax.tree.leaves(found), jax.tree.leaves(expected), GRADS)


@pytest.mark.parametrize("name", only(["unusual"], STEPS_OF))
def test_derivatives(name):
    params, _ = draw_both(name)
    run = jax.jit(jaxgru.scan)
    check_grads(run, (params, draw_xs(), draw_carry(params)), 1, ("fwd", "rev"))


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS_OF)
def test_second_derivatives(name):
    params, other = draw_both(name)

    def hessian(params):
        xs, v = draw_xs(), jax.tree.map(jnp.sin, params)
        grad = jax.grad(lambda params: weigh(jaxgru.scan(params, xs)))
        return jax.tree.leaves(jax.jvp(grad, (params,), (v,))[1])

    assert_close(hessian(params), hessian(other), GRADS)


@pytest.mark.parametrize("name", only(["lstm"], STEPS_OF))
def test_steps_newton_and_batches(name):
    params, other = draw_both(name)
    xs = jnp.stack([draw_xs(), draw_xs(seed=5)])
    expected = jax.vmap(jaxgru.scan, (None, 0))(other, xs)
    assert_close(jax.vmap(jaxgru.scan, (None, 0))(params, xs), expected, VALUES)
    found, info = jaxgru.newton_scan(params, xs[0])[1:]
    assert info.converged
    assert_close(found, expected[1][0], 1e-9)  # its stopping rule
    carry, ys = jaxgru.initial_carry(params), []
    for x in xs[0]:
        carry, y = jaxgru.step(params, carry, x)
        ys.append(y)
    assert_close((carry, jnp.stack(ys)), jax.tree.map(lambda a: a[0], expected), VALUES)
    both = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
    assert_close(jax.vmap(jaxgru.scan)(both, xs)[1][0], expected[1][0], VALUES)


def programs(differentiated):
    """The operations of the compiled program of a GRU, built in and as a user's cell."""
    params = draw("gru", 16, 96, "float32")
    same = own_gru.NamedParams(params.w_ih, params.w_hh, params.b)
    xs = jnp.ones((4, 50, 16), "float32")

    def run(params, xs):
        out = jax.vmap(jaxgru.scan, (None, 0))(params, xs)[1]
        return jnp.sum(out * out)

    made = jax.grad(run, (0, 1)) if differentiated else run
    for cell in (params, same):
        text = jax.jit(made).lower(cell, xs).compile().as_text()
        yield Counter(re.findall(r"= \S+ ([a-z][\w-]*)\(", text))


@pytest.mark.parametrize("differentiated", [True, slow(False)])
def test_a_user_gets_the_program_of_the_built_in_cell(differentiated):
    one, other = programs(differentiated)
    assert one == other
    assert one["dot"] + one["custom-call"] > 2


@pytest.mark.parametrize("name", STEPS_OF)
def test_numbers_are_not_saved_for_the_gradient(name):
    """On a mesh with explicit axes, JAX moves the constants of some rules to the mesh."""
    params, _ = draw_both(name)
    explicit = (jax.sharding.AxisType.Explicit,)
    with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=explicit)):
        cell = cell_of(params)
        gates = jaxgru.cell.advance(cell, cell.blocks(params), draw_carry(params), draw_xs()[0])[1]
    assert gates
    assert {gate.shape for gate in gates} == {(HIDDEN,)}


def test_what_is_saved_for_the_gradient():
    """The same as the built-in GRU saves: its gates r, z and n. A sum of a part and a result is
    saved as one array."""
    params = own_gru.NamedParams(jnp.ones((3, 3, 4)), jnp.ones((4, 3, 4)), None)
    cell = cell_of(params)
    h, x = jnp.full(4, 0.5), jnp.ones(3)
    _, gates = jaxgru.cell.advance(cell, cell.blocks(params), h, x)
    r = jax.nn.sigmoid(x.sum() + h.sum())
    n = jnp.tanh(x.sum() + (r * h).sum())
    assert_close(sorted(float(gate[0]) for gate in gates), sorted(map(float, (r, r, n))), VALUES)

    @dataclasses.dataclass(frozen=True)
    class Relu:
        w_ih: Any
        w_hh: Any

    def step(params, h, parts, products):
        total = parts[0] + products[0](h)[0]
        h = 0.5 * h + jax.nn.relu(total) * total
        return h, h

    own_gru.register(Relu, step=step)
    cell = cell_of(params := Relu(jnp.ones((3, 1, 4)), jnp.ones((4, 1, 4))))
    _, gates = jaxgru.cell.advance(cell, cell.blocks(params), h, x)
    assert [float(gate[0]) for gate in gates] == [5.0]


@pytest.mark.parametrize("dtype", ["bfloat16", slow("float16")])
@pytest.mark.parametrize("name", only(["lstm"], STEPS_OF))
def test_equations_run_in_float32(name, dtype):
    """They contain no cast. A step rounds its carry once, and the two ways round alike or differ by
    a few ulp of the products of six steps."""
    params, _ = draw_both(name, dtype=dtype)
    _, other = draw_both(name)
    found = jaxgru.scan(params, draw_xs(dtype=dtype))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {dtype}
    expected = jaxgru.scan(other, draw_xs())
    assert_close(found, expected, 4 * STEPS * float(jnp.finfo(dtype).eps))


def test_compute_dtype():
    """As for the built-in GRU, bit by bit."""
    params = draw("gru", dtype="float32")
    same = own_gru.NamedParams(params.w_ih, params.w_hh, params.b)
    xs = draw_xs(dtype="float32")
    one, other = (jaxgru.scan(p, xs, compute_dtype="bfloat16")[1] for p in (params, same))
    np.testing.assert_array_equal(one, other)
    assert np.any(one != jaxgru.scan(params, xs)[1])


def test_static_fields_and_missing_biases():
    @dataclasses.dataclass(frozen=True)
    class Rate:
        w_ih: Any
        b: Any
        rate: float = dataclasses.field(metadata={"static": True})
        shape: str = dataclasses.field(default="relu", metadata={"static": True})

    def step(params, h, parts, products):
        del products
        bent = getattr(jax.nn, params.shape)
        h = (1 - params.rate) * h + params.rate * bent(parts[0] + (0 if params.b is None else 1))
        return h, h

    jaxgru.register(
        Rate,
        step=step,
        weights=lambda params: jaxgru.Weights(params.w_ih[:, None], (), params.b),
        initial_carry=lambda params: jnp.zeros_like(params.w_ih[0]),
        sizes=lambda params: params.w_ih.shape,
        forms={
            "slow_rate": {"rate": 0.1, "shape": "relu"},
            "fast_rate": {"rate": 0.5, "shape": "tanh"},
        },
    )
    xs = jnp.ones((1, 3), "float32")
    for rate, shape in ((0.1, "relu"), (0.5, "tanh")):
        for b in (None, jnp.ones((1, 4), "float32")):
            params = Rate(jnp.ones((3, 4), "float32"), b, rate, shape)
            total = 3.0 if b is None else 5.0
            expected = rate * getattr(np, "tanh" if shape == "tanh" else "positive")(total)
            np.testing.assert_allclose(jaxgru.scan(params, xs)[1], expected, rtol=1e-6)


def test_a_cell_without_products_is_no_diagonal_map_of_two_states():
    """Newton's method takes the Jacobian of (h, trace), which is not diagonal."""
    params, _ = draw_both("no_product")
    xs = draw_xs()
    found, info = jaxgru.newton_scan(params, xs)[1:]
    assert info.converged
    assert_close(found, jaxgru.scan(params, xs)[1], 1e-9)


def both_ways(step, weights):
    """The same cell registered with weights and without."""

    @dataclasses.dataclass(frozen=True)
    class Named:
        w_ih: Any
        w_hh: Any

    @dataclasses.dataclass(frozen=True)
    class Plain:
        w_ih: Any
        w_hh: Any

    def plain_step(params, h, x):
        found = weights(params)
        parts = tuple(jnp.einsum("i,igh->gh", x, found.w_ih))
        product = lambda operand: tuple(jnp.einsum("i,igh->gh", operand, found.w_hh[0]))  # noqa: E731
        return step(params, h, parts, (product,))

    own_gru.register(Named, step=step, weights=weights)
    own_gru.register(Plain, step=plain_step, weights=None)
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape)) for shape in ((INPUT, 1, 4), (4, 1, 4))]
    return Named(*arrays), Plain(*arrays)


@pytest.mark.parametrize("reverse", [slow(False), True])
def test_padding_where_a_derivative_is_infinite(reverse):
    """The root has no derivative at zero, where all states and the padded inputs would be."""

    def step(params, h, parts, products):
        h = jnp.sqrt(jnp.abs(parts[0] + products[0](h)[0])) + 0.1 * jnp.log(jnp.abs(parts[0]))
        return h, h

    made = both_ways(step, lambda params: jaxgru.Weights(params.w_ih, (params.w_hh,)))
    xs = draw_xs()

    def loss(params, xs, real, length):
        return weigh(jaxgru.scan(params, xs, mask=real, length=length, reverse=reverse))

    for real in ([0, 0, 1, 0, 1, 1], [1, 1, 0, 0, 0, 1], [0] * STEPS):
        arguments = jnp.where(jnp.asarray(real)[:, None] > 0, xs, jnp.nan), jnp.asarray(real) > 0, 5
        grads = (jax.jit(jax.grad(loss, (0, 1)))(params, *arguments) for params in made)
        one, other = map(jax.tree.leaves, grads)
        assert_close(one, other, GRADS)


def test_a_step_reads_shapes_and_dtypes_of_params():
    def step(params, h, parts, products):
        rate = jnp.asarray(1 / params.w_hh.shape[0], params.w_hh.dtype)
        h = rate * jnp.tanh(parts[0] + products[0](h)[0])
        return h, h

    made = both_ways(step, lambda params: jaxgru.Weights(params.w_ih, (params.w_hh,)))
    one, other = (jaxgru.scan(params, draw_xs()) for params in made)
    assert_close(one, other, VALUES)


def test_a_carry_of_constants():
    @dataclasses.dataclass(frozen=True)
    class Constant:
        w_ih: Any

    def step(params, carry, parts, products):
        h = jnp.where(parts[0] > 0, 1.0, 0.5) * carry[0] + parts[0]
        return (h, jnp.zeros_like(h)), h

    own_gru.register(
        Constant,
        step=step,
        weights=lambda params: jaxgru.Weights(params.w_ih, ()),
        initial_carry=lambda params: (jnp.ones_like(params.w_ih[0, 0]),) * 2,
        sizes=lambda params: (params.w_ih.shape[0], params.w_ih.shape[-1]),
    )
    h, last = jaxgru.scan(Constant(jnp.ones((1, 1, 2))), jnp.asarray([[1.0], [-2.0]]))[0]
    assert_close((h, last), (jnp.full(2, -1.0), jnp.zeros(2)), VALUES)
