"""Cells of the user, and wrong calls of `register`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxgru
from cases import (
    GRAD_TOL,
    HIDDEN,
    INPUT,
    MARKS,
    STEPS,
    VALUE_TOL,
    assert_close,
    assert_same,
    draw,
    draw_carry,
    draw_xs,
    only,
    slow,
    weigh,
)
from own_gru import COMMON, OwnParams, ProjectedParams
from own_gru import step as plain_step

pytestmark = pytest.mark.usefixtures("x64")
VALUES, GRADS = VALUE_TOL["float64"], GRAD_TOL["float64"]


TYPES = (OwnParams, ProjectedParams)


def own(params, kind):
    """Replace every GRU in params by one of these."""
    if isinstance(params, jaxgru.GRUParams):
        return kind(params.w_ih, params.w_hh, params.b)
    if isinstance(params, jaxgru.Stack):
        return jaxgru.Stack(tuple(own(layer, kind) for layer in params.layers))
    if isinstance(params, jaxgru.Bidirectional):
        return jaxgru.Bidirectional(own(params.forward, kind), own(params.backward, kind))
    return params


def networks():
    deep = jaxgru.Stack((draw("gru"), draw("gru", HIDDEN, HIDDEN, seed=4)))
    two = jaxgru.Bidirectional(draw("gru"), draw("lstm"))
    upon = draw("gru", 2 * HIDDEN, HIDDEN)
    return {"cell": draw("gru"), "stack": deep, "mixed": jaxgru.Stack((two, upon))}


NETWORKS = ("cell", "stack", "mixed")


@pytest.mark.parametrize("kind", [slow(OwnParams), ProjectedParams])
@pytest.mark.parametrize("reverse", [slow(False), True])
@pytest.mark.parametrize("options", only(["all"], MARKS))
@pytest.mark.parametrize("name", only(["mixed"], NETWORKS))
def test_equals_the_built_in_cell(name, options, reverse, kind):
    """Values and gradients for all arguments do not depend on the steps that are not real."""
    built_in, chosen = networks()[name], MARKS[options]
    checkpoint = 2 if options == "all" else None
    xs, carry = draw_xs(), draw_carry(built_in)
    real = np.arange(STEPS) < chosen.get("length", STEPS)
    real &= np.asarray(chosen.get("mask", np.ones(STEPS, bool)))
    xs = jnp.where(real[:, None], xs, jnp.nan)
    starts = {"reset_carry": draw_carry(built_in, seed=9)} if "reset" in chosen else {}

    def run(params, xs, carry, starts):
        how = {"reverse": reverse, "checkpoint": checkpoint}
        return jaxgru.scan(params, xs, carry, **how, **starts, **chosen)

    def both(params):
        loss = lambda *arguments: weigh(run(*arguments))  # noqa: E731
        arguments = (params, xs, carry, starts)
        return run(*arguments), jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arguments)

    (values, grads), (expected, expected_grads) = both(own(built_in, kind)), both(built_in)
    assert_close(values, expected, VALUES)
    assert_close(grads, expected_grads, GRADS)


@pytest.mark.parametrize("kind", TYPES)
def test_step_is_one_step_of_scan(kind):
    params = own(networks()["stack"], kind)
    xs, carry = draw_xs(), draw_carry(params)
    last, ys = jaxgru.scan(params, xs, carry)
    outputs = []
    for x in xs:
        carry, y = jax.jit(jaxgru.step)(params, carry, x)
        outputs.append(y)
    assert_close((carry, jnp.stack(outputs)), (last, ys), VALUES)


@pytest.mark.parametrize("kind", TYPES)
def test_batches_of_data_and_of_params(kind):
    params = own(draw("gru"), kind)
    xs = jnp.stack([draw_xs(), draw_xs(seed=5)])
    each = [jaxgru.scan(params, x) for x in xs]
    expected = jax.tree.map(lambda *parts: jnp.stack(parts), *each)
    assert_close(jax.vmap(jaxgru.scan, (None, 0))(params, xs), expected, VALUES)
    two = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, own(draw("gru", seed=8), kind))
    one = jaxgru.scan(jax.tree.map(lambda a: a[1], two), xs[1])
    found = jax.vmap(jaxgru.scan)(two, xs)
    assert_close(jax.tree.map(lambda a: a[1], found), one, VALUES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_derivatives(kind):
    params = own(draw("gru"), kind)
    run = jax.jit(lambda *arguments: jaxgru.scan(*arguments, length=4))
    check_grads(run, (params, draw_xs(), draw_carry(params)), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("kind", only([ProjectedParams], TYPES))
def test_diagnostics(kind):
    built_in, xs = draw("gru"), draw_xs()
    params = own(built_in, kind)
    for look in (
        jaxgru.diagnostics.state_jacobians,
        jaxgru.diagnostics.memory_gradient,
        functools.partial(jaxgru.diagnostics.lyapunov_spectrum, warm_up=1),
    ):
        assert_close(look(params, xs), look(built_in, xs), GRADS)


@pytest.mark.parametrize("bias", [True, False])
def test_save_load_and_export(bias, tmp_path):
    params = own(networks()["mixed"], ProjectedParams)
    if not bias:
        last = dataclasses.replace(params.layers[1], b=None)
        params = jaxgru.Stack((params.layers[0], last))
    assert "layers.1.projected_gru.w_hh" in jaxgru.to_dict(params)
    jaxgru.save(tmp_path / "file", params)
    loaded = jaxgru.load(tmp_path / "file")
    assert_same(loaded, params)
    assert type(loaded.layers[1]) is ProjectedParams
    if bias:
        program = jax.export.export(jax.jit(jaxgru.scan))(params, draw_xs())
        again = jax.export.deserialize(program.serialize())
        assert_close(again.call(params, draw_xs()), jaxgru.scan(params, draw_xs()), VALUES)


def test_a_notebook_defines_its_class_again(tmp_path):
    def define(scale):
        @dataclasses.dataclass(frozen=True)
        class InNotebook:
            w: Any

        jaxgru.register(
            InNotebook,
            step=lambda params, h, x: (h + scale * x @ params.w, h),
            initial_carry=lambda params: jnp.zeros_like(params.w[0]),
            sizes=lambda params: params.w.shape,
            forms={"notebook": {}},
        )
        return InNotebook(jnp.ones((INPUT, 2)))

    first, second = define(1.0), define(2.0)
    assert_close(2 * jaxgru.scan(first, draw_xs())[0], jaxgru.scan(second, draw_xs())[0], VALUES)
    jaxgru.save(tmp_path / "file", second)
    assert_same(jaxgru.load(tmp_path / "file"), second)


@pytest.mark.slow
def test_each_class_runs_its_own_program():
    """JAX treats structures of different dataclasses as equal.

    In one of about 1,500 pairs it ran the program of one class for another. There are 11,175 pairs.
    """
    for k in range(150):

        @jax.tree_util.register_dataclass
        @dataclasses.dataclass(frozen=True)
        class Scaled:
            w: Any

        jaxgru.register(
            Scaled,
            step=lambda params, h, x, k=k: (h, h + k),
            initial_carry=lambda params: jnp.zeros_like(params.w[0]),
            sizes=lambda params: params.w.shape,
        )
        params = Scaled(jnp.ones((INPUT, 1)))
        assert jaxgru.scan(params, draw_xs(1))[1].item() == k


def test_static_fields_are_saved(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Leaky:
        w: Any
        rate: float = dataclasses.field(metadata={"static": True})

    def step(params, h, x):
        h = (1 - params.rate) * h + params.rate * (x @ params.w)
        return h, h

    jaxgru.register(
        Leaky,
        step=step,
        initial_carry=lambda params: jnp.zeros_like(params.w[0]),
        sizes=lambda params: params.w.shape,
        forms={"slow": {"rate": 0.125}, "fast": {"rate": 0.5}},
    )
    for rate in (0.125, 0.5):
        params = Leaky(jnp.ones((INPUT, 2)), rate)
        jaxgru.save(tmp_path / "file", params)
        assert_same(jaxgru.load(tmp_path / "file"), params)
        assert jaxgru.scan(params, draw_xs())[1].shape == (STEPS, 2)
    other = Leaky(jnp.ones((INPUT, 2)), 0.25)
    assert jaxgru.scan(other, draw_xs())[1].shape == (STEPS, 2)
    expected = (
        r"to_dict: the static fields of Stack.layers\[0\], Leaky, must be \{'rate': 0.125\} for "
        r"the form slow or \{'rate': 0.5\} for the form fast, got \{'rate': 0.25\}"
    )
    with pytest.raises(ValueError, match=expected):
        jaxgru.to_dict(jaxgru.Stack((other,)))


def test_a_tree_in_a_field_is_not_saved():
    params = OwnParams({"r": jnp.ones(2), "z": jnp.ones(2)}, jnp.ones(2), None)
    with pytest.raises(ValueError, match=r"got own_gru.w_ih.r, .* holds one array, not a tree"):
        jaxgru.to_dict(params)


def test_dropout_between_own_layers():
    params, key = own(networks()["stack"], OwnParams), jax.random.key(3)
    kept = jaxgru.scan(params, draw_xs(), dropout=0.5, key=key)
    expected = jaxgru.scan(networks()["stack"], draw_xs(), dropout=0.5, key=key)
    assert_close(kept, expected, VALUES)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counter:
    """A cell that learns its initial carry, and has an integer in its carry."""

    start: Any
    w: Any


def count(params, carry, x):
    carry = {"sum": carry["sum"] + x @ params.w, "steps": carry["steps"] + 1}
    return carry, carry["sum"] / carry["steps"].astype("float64")


jaxgru.register(
    Counter,
    step=count,
    initial_carry=lambda params: {"sum": params.start, "steps": jnp.int32(0)},
    sizes=lambda params: params.w.shape,
)


def test_any_carry_and_where_it_starts_can_be_learnt():
    params, xs = Counter(jnp.ones(2), jnp.ones((INPUT, 2))), draw_xs()
    carry = jaxgru.initial_carry(params, (5,))
    assert {k: (v.shape, v.dtype) for k, v in carry.items()} == {
        "sum": ((5, 2), jnp.dtype("float64")),
        "steps": ((5,), jnp.dtype("int32")),
    }
    last, ys = jaxgru.scan(params, xs, length=4, reset=jnp.arange(STEPS) == 2)
    assert last["steps"] == 2
    total = 1 + np.asarray(xs)[2:4].sum()
    assert_close(last["sum"], np.full(2, total), VALUES)
    assert_close(ys[3], np.full(2, total / 2), VALUES)
    grads = jax.grad(lambda params: jaxgru.scan(params, xs)[1][-1].sum())(params)
    assert_close(grads.start, np.ones(2) / STEPS, VALUES)


def of(step=plain_step, **changes):
    """Register a new class of params, with changes."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Fresh(OwnParams):
        pass

    jaxgru.register(Fresh, step=step, **(COMMON | changes))
    return own(draw("gru"), Fresh)


class Leaf:
    """This class is not a pytree."""


@dataclasses.dataclass(frozen=True)
class Fields(OwnParams):
    kind: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Registered(OwnParams):
    pass


WRONG = {
    "an instance for a class": (
        lambda: jaxgru.register(of(), step=plain_step, **COMMON),
        TypeError, "params_type", "a class",
    ),
    "a built-in class": (
        lambda: jaxgru.register(jaxgru.GRUParams, step=plain_step, **COMMON),
        TypeError, "params_type", "not registered yet",
    ),
    "a class twice": (
        lambda: jaxgru.register(OwnParams, step=plain_step, **COMMON),
        TypeError, "params_type", "Define the class again",
    ),
    "a composition": (
        lambda: jaxgru.register(jaxgru.Stack, step=plain_step, **COMMON),
        TypeError, "params_type", "not registered yet",
    ),
    "a dict for a class": (
        lambda: jaxgru.register(dict, step=plain_step, **COMMON),
        TypeError, "params_type", "a class of your own, got dict",
    ),
    "arrays for a class": (
        lambda: jaxgru.register(jax.Array, step=plain_step, **COMMON),
        TypeError, "params_type", "a class of your own, got",
    ),
    "a step that is no function": (
        lambda: of(step=3), TypeError, "step", "a function of params, carry, x, got int",
    ),
    "a step without params": (
        lambda: of(step=lambda h, x: (h, h)),
        TypeError, "step", "a function of params, carry, x, got a function of (h, x)",
    ),
    "a carry of no params": (
        lambda: of(initial_carry=lambda: jnp.zeros(4)),
        TypeError, "initial_carry", "a function of params, got a function of ()",
    ),
    "sizes of xs": (
        lambda: of(sizes=lambda params, xs: xs.shape),
        TypeError, "sizes", "a function of params, got a function of (params, xs)",
    ),
    "a projection of params alone": (
        lambda: of(project=lambda params: params.w_ih),
        TypeError, "project", "a function of params, xs, got a function of (params)",
    ),
    "a check of params alone": (
        lambda: of(check=lambda params: None),
        TypeError, "check", "a function of caller, params, got a function of (params)",
    ),
    "sizes that are no function": (
        lambda: of(sizes=(3, 4)), TypeError, "sizes", "a function of params, got tuple",
    ),
    "a carry that is no function": (
        lambda: of(initial_carry=jnp.zeros(4)),
        TypeError, "initial_carry", "a function of params, got float64[4]",
    ),
    "a projection that is no function": (
        lambda: of(project=3), TypeError, "project", "a function of params, xs, got int",
    ),
    "a check that is no function": (
        lambda: of(check=3), TypeError, "check", "a function of caller, params, got int",
    ),
    "a carry that is a number": (
        lambda: run(of(initial_carry=lambda p: 0.0)),
        TypeError, "what it returns", "an array, got float. jnp.zeros",
    ),
    "a carry of types": (
        lambda: run(of(initial_carry=lambda p: {"h": jax.eval_shape(jnp.zeros_like, p.b)})),
        TypeError, "what it returns['h']", "an array, got float64[3, 4]. jnp.zeros",
    ),
    "a step that returns a list": (
        lambda: run(of(step=lambda p, h, x: [h, h])),
        TypeError, "what step returns", "(carry, y), got list",
    ),
    "a step that returns three values": (
        lambda: run(of(step=lambda p, h, x: (h, h, h))),
        TypeError, "what step returns", "(carry, y), got 3 values",
    ),
    "a step that returns the carry alone": (
        lambda: run(of(step=lambda p, h, x: h)),
        TypeError, "what step returns", "(carry, y), got float64[4]",
    ),
    "a carry that grows": (
        lambda: run(of(step=lambda p, h, x: (jnp.append(h, h), h))),
        ValueError, "the next carry", "float64[4], like carry",
    ),
    "a carry of another dtype": (
        lambda: run(of(step=lambda p, h, x: (h.astype("float32"), h))),
        TypeError, "the next carry", "float64[4], like carry",
    ),
    "a carry of another structure": (
        lambda: run(of(step=lambda p, h, x: ((h, h), h))),
        TypeError, "the next carry", ", like carry",
    ),
    "an output of another size": (
        lambda: run(of(step=lambda p, h, x: (h, x))),
        ValueError, "the output of Fresh's step", "[4]",
    ),
    "an output of another dtype": (
        lambda: run(of(step=lambda p, h, x: (h, h.astype("float32")))),
        TypeError, "the output of Fresh's step", "float64 as params are",
    ),
    "an output that is a tree": (
        lambda: run(of(step=lambda p, h, x: (h, {"y": h}))),
        TypeError, "the output of Fresh's step", "an array of shape [4]",
    ),
    "sizes of one number": (
        lambda: run(of(sizes=lambda p: 3)), TypeError, "sizes of Fresh", "two sizes, (I, H)",
    ),
    "sizes of zero": (
        lambda: run(of(sizes=lambda p: (3, 0))),
        ValueError, "sizes of Fresh", "a positive integer, got 0",
    ),
    "sizes that are shapes": (
        lambda: run(of(sizes=lambda p: (p.w_ih.shape, 4))), TypeError, "sizes of Fresh", "integer",
    ),
    "inputs of another size": (
        lambda: jaxgru.scan(of(), draw_xs(inputs=5)), ValueError, "xs", "[T, 3]",
    ),
    "a projection of one step": (
        lambda: run(of(project=lambda p, xs: xs[0])), TypeError, "what project returns", "[6, ...]",
    ),
    "a projection of nothing": (
        lambda: run(of(project=lambda p, xs: None)),
        TypeError, "what project returns", "a tree with an array in it, got None",
    ),
    "a projection that loses its step": (
        lambda: jaxgru.step(of(project=lambda p, xs: xs[1:]), jnp.zeros(4), draw_xs()[0]),
        TypeError, "what project returns", "[1, ...], got float64[0, 3]",
    ),
    "a step that is wrong, in step": (
        lambda: jaxgru.step(of(step=lambda p, h, x: (h, None)), jnp.zeros(4), draw_xs()[0]),
        TypeError, "the output of Fresh's step", "an array of shape [4], got NoneType",
    ),
    "a step that is wrong, in newton_scan": (
        lambda: jaxgru.newton_scan(of(step=lambda p, h, x: (h[:2], h)), draw_xs()),
        ValueError, "the next carry", "float64[4], like carry, got float64[2]",
    ),
    "a carry of another size, in step": (
        lambda: jaxgru.step(of(), jnp.zeros(3), draw_xs()[0]),
        ValueError, "carry", "[4], got float64[3]. jaxgru.initial_carry",
    ),
    "a sequence, in step": (
        lambda: jaxgru.step(of(), jnp.zeros(4), draw_xs()),
        ValueError, "x", "[3], got float64[6, 3]. Use jax.vmap for a batch",
    ),
    "a batch of lists": (
        lambda: jaxgru.initial_carry(of(), [2]), TypeError, "batch", "a tuple of sizes, got list",
    ),
    "a leaf of integers": (
        lambda: run(dataclasses.replace(of(), b=jnp.zeros((3, 4), "int32"))),
        TypeError, "Fresh.b", "float",
    ),
    "a leaf that is no array": (
        lambda: run(dataclasses.replace(of(), b=3.0)), TypeError, "Fresh.b", "an array",
    ),
    "a leaf of another dtype": (
        lambda: run(dataclasses.replace(of(), b=jnp.zeros((3, 4), "float32"))),
        TypeError, "params", "one dtype",
    ),
    "no leaf at all": (
        lambda: run(dataclasses.replace(of(), w_ih=None, w_hh=None, b=None)),
        ValueError, "Fresh", "a pytree that contains arrays",
    ),
    "in a Stack below another size": (
        lambda: run(jaxgru.Stack((of(), draw("gru", 5, 4)))),
        ValueError, "Stack.layers[1]", "input size 4",
    ),
    "a carry of the wrong structure": (
        lambda: jaxgru.scan(of(), draw_xs(), (jnp.zeros(4), jnp.zeros(4))),
        TypeError, "carry", "float64[4]",
    ),
    "compute_dtype": (
        lambda: jaxgru.scan(of(), draw_xs(), compute_dtype="bfloat16"),
        TypeError, "params", "that name their weights, which compute_dtype needs, got Fresh",
    ),
    "compute_dtype for a layer of two": (
        lambda: run(jaxgru.Stack((draw("gru"), draw("layer_norm_gru", HIDDEN))),
                    compute_dtype="bfloat16"),
        TypeError, "params",
        "that name their weights, which compute_dtype needs, got LayerNormGRUParams",
    ),
    "compute_dtype, in step": (
        lambda: jaxgru.step(of(), jnp.zeros(4), draw_xs()[0], compute_dtype="bfloat16"),
        TypeError, "params", "that name their weights, which compute_dtype needs, got Fresh",
    ),
    "integers in the carry, in newton_scan": (
        lambda: jaxgru.newton_scan(Counter(jnp.ones(2), jnp.ones((INPUT, 2))), draw_xs()),
        TypeError, "the carry of Counter['steps']", "dtype of params, got int32[]. Only a state",
    ),
    "integers in the carry, in a diagnostic": (
        lambda: jaxgru.diagnostics.gradient_norms(
            jnp.sum, jaxgru.Stack((Counter(jnp.ones(2), jnp.ones((INPUT, 2))),)), draw_xs()
        ),
        TypeError, "the carry of Counter['steps']", "dtype of params, got int32[]. Only a state",
    ),
    "no carry, in newton_scan": (
        lambda: jaxgru.newton_scan(of(initial_carry=lambda p: ()), draw_xs()),
        ValueError, "the carry of Fresh", "a tree that contains an array, got ()",
    ),
    "a cell without gates": (
        lambda: jaxgru.diagnostics.gate_statistics(of(), [draw_xs()]),
        TypeError, "params", "GRUParams or LSTMParams, got Fresh",
    ),
    "a form whose name is taken": (
        lambda: jaxgru.register(Fields, step=plain_step, forms={"gru": {}}, **COMMON),
        ValueError, "forms", "keys are not taken, got gru",
    ),
    "a form that leaves a static field open": (
        lambda: jaxgru.register(Fields, step=plain_step, forms={"fields": {}}, **COMMON),
        ValueError, "forms", """['kind'] for 'fields', got []. Pass {"fields": {"kind": ...}}""",
    ),
    "a form with a dot in its name": (
        lambda: jaxgru.register(Fields, step=plain_step, forms={"a.b": {"kind": 1}}, **COMMON),
        ValueError, "forms", "valid names of variables",
    ),
    "a form that is a name alone": (
        lambda: jaxgru.register(Fields, step=plain_step, forms="fields", **COMMON),
        TypeError, "forms", "mapping of names",
    ),
    "no form at all": (
        lambda: jaxgru.register(Fields, step=plain_step, forms={}, **COMMON),
        TypeError, "forms", 'static fields, got an empty mapping. Pass {"fields": {}}',
    ),
    "a form with the name of a composition": (
        lambda: jaxgru.register(Fields, step=plain_step, forms={"layers": {"kind": 1}}, **COMMON),
        ValueError, "forms", "keys are not taken, got layers",
    ),
    "forms of a class that is no dataclass": (
        lambda: jaxgru.register(Leaf, step=plain_step, forms={"leaf": {}}, **COMMON),
        TypeError, "params_type", "a dataclass",
    ),
    "forms of a pytree": (
        lambda: jaxgru.register(Registered, step=plain_step, forms={"reg": {}}, **COMMON),
        TypeError, "params_type", "a class that is not a pytree yet",
    ),
    "saved without forms": (
        lambda: jaxgru.save("file", of()),
        TypeError, "params", 'with forms, got Fresh. Pass forms={"fresh": {}} to jaxgru.register',
    ),
    "a layer by name without forms": (
        lambda: jaxgru.to_dict(jaxgru.Stack((draw("gru"), of()))),
        TypeError, "Stack.layers[1] must be", 'Pass forms={"fresh": {}} to jaxgru.register',
    ),
    "a name that no form has": (
        lambda: jaxgru.from_dict({"nobody.w": jnp.ones(2)}),
        ValueError, "names", "own_gru.",
    ),
}  # fmt: skip


def run(params, **options):
    return jaxgru.scan(params, draw_xs(), **options)


@pytest.mark.parametrize("case", WRONG)
def test_wrong(case):
    call, kind, name, expected = WRONG[case]
    with pytest.raises(kind) as raised:
        call()
    message = str(raised.value)
    assert f": {name}" in message, message
    assert expected in message, message


def test_a_check_of_its_own_comes_first():
    """`check` runs before sizes, which would fail if a leaf is missing."""

    def check(caller, params):
        if params.w_ih is None:
            raise ValueError(f"{caller}: give w_ih.")

    params = of(check=check)
    assert run(params)[1].shape == (STEPS, HIDDEN)
    with pytest.raises(ValueError, match=r"^scan: give w_ih\.$"):
        run(jaxgru.Stack((dataclasses.replace(params, w_ih=None),)))


def test_no_pytree():
    jaxgru.register(Leaf, step=plain_step, **COMMON)
    with pytest.raises(TypeError, match=r"scan: Leaf must be a pytree.*register_dataclass"):
        jaxgru.scan(Leaf(), draw_xs())
