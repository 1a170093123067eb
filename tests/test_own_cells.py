"""The cells of this library that `register` defines, against the equations in NumPy."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxgru
import oracle
from cases import (
    GRAD_TOL,
    HIDDEN,
    INPUT,
    MARKS,
    OWN,
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

pytestmark = pytest.mark.usefixtures("x64")
VALUES, GRADS = VALUE_TOL["float64"], GRAD_TOL["float64"]

#: The output of one cell is its carry, and that of the other is not.
SHORT = ("mgu", "leaky_rate_softplus")
NETWORKS = ("cell", "mixed")


def network(kind, name, dtype="float64", bias=True):
    """The cell alone, or a Stack: a Bidirectional of it and a GRU, and the cell again."""
    if name == "cell":
        return draw(kind, dtype=dtype, bias=bias)
    two = jaxgru.Bidirectional(draw(kind, dtype=dtype), draw("gru", dtype=dtype))
    return jaxgru.Stack((two, draw(kind, 2 * HIDDEN, HIDDEN + 1, dtype, seed=4, bias=bias)))


@pytest.mark.parametrize(
    ("hidden", "bias"), [(HIDDEN, True), (1, False), slow(1, True), slow(HIDDEN, False)]
)
@pytest.mark.parametrize("kind", only(SHORT, OWN))
def test_step_is_the_equations(kind, hidden, bias):
    params = draw(kind, hidden=hidden, bias=bias)
    h, x = draw_carry(params), draw_xs()[0]
    after, y = oracle.step(params, h, x)
    both = jax.jit(lambda *arguments: (OWN[kind][1](*arguments), jaxgru.step(*arguments)))
    assert_close(both(params, h, x), (after, (after, y)), VALUES)


@pytest.mark.parametrize("reverse", [False, slow(True)])
@pytest.mark.parametrize("options", only(["all"], MARKS))
@pytest.mark.parametrize("name", only(["mixed"], NETWORKS))
@pytest.mark.parametrize("kind", only(["layer_norm_gru"], OWN))
def test_scan_is_the_equations(kind, name, options, reverse):
    """The results do not depend on what the steps that are not real hold."""
    params, chosen = network(kind, name), MARKS[options]
    real = np.arange(STEPS) < chosen.get("length", STEPS)
    real &= np.asarray(chosen.get("mask", np.ones(STEPS, bool)))
    xs, carry = draw_xs(), draw_carry(params)
    starts = {"reset_carry": draw_carry(params, seed=9)} if "reset" in chosen else {}
    expected = oracle.scan(params, xs, carry, reverse=reverse, **starts, **chosen)
    xs = jnp.where(real[:, None], xs, jnp.nan)
    checkpoint = 2 if options == "all" else None
    found = jaxgru.scan(
        params, xs, carry, reverse=reverse, checkpoint=checkpoint, **starts, **chosen
    )
    assert_close(found, expected, VALUES)


@pytest.mark.parametrize("kind", only(["leaky_rate_softplus"], OWN))
def test_derivatives(kind):
    """Derivatives in both modes, for params, inputs and carry. Those of the padding are zero."""
    params, length = draw(kind), 4
    xs, carry = draw_xs(), draw_carry(params)
    run = jax.jit(lambda *arguments: jaxgru.scan(*arguments, length=length))
    check_grads(run, (params, xs, carry), order=1, modes=("fwd", "rev"))
    grad = jax.jit(jax.grad(lambda *arguments: weigh(run(*arguments)[0]), argnums=(0, 1, 2)))
    grads = grad(params, xs.at[length:].set(jnp.nan), carry)
    assert_close(grads, grad(params, xs, carry), 0)
    assert not np.any(grads[1][length:])


@pytest.mark.slow
@pytest.mark.parametrize("kind", only(SHORT, OWN))
def test_second_derivatives(kind):
    params = draw(kind)
    check_grads(jaxgru.scan, (params, draw_xs(), draw_carry(params)), 2, ("fwd", "rev"))


@pytest.mark.parametrize("kind", only(SHORT, OWN))
def test_batches_of_data_and_of_params(kind):
    one, other = draw(kind), draw(kind, seed=8)
    xs = jnp.stack([draw_xs(), draw_xs(seed=5)])
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, other)
    found = jax.vmap(jaxgru.scan)(both, xs)
    expected = [oracle.scan(*pair) for pair in ((one, xs[0]), (other, xs[1]))]
    assert_close(found, tuple(map(np.stack, zip(*expected, strict=True))), VALUES)


@pytest.mark.parametrize("kind", only(SHORT, OWN))
def test_steps_streamed_are_the_scan(kind):
    params = jaxgru.Stack((draw(kind), draw("gru", HIDDEN, 2)))
    xs, carry = draw_xs(), draw_carry(params)
    last, ys = jaxgru.scan(params, xs, carry)
    step, outputs = jax.jit(jaxgru.step), []
    for x in xs:
        carry, y = step(params, carry, x)
        outputs.append(y)
    assert_close((carry, jnp.stack(outputs)), (last, ys), VALUES)


@pytest.mark.parametrize("dtype", ["bfloat16", slow("float16"), slow("float32")])
@pytest.mark.parametrize("kind", OWN)
def test_the_narrow_dtypes(kind, dtype):
    """Results have the dtype of params, and their rounding errors are small.

    Each step rounds the carry to half an ulp of 1, and the next ones multiply it by less than 2 in
    all. One ulp for each step is generous for 16 bits, and leaves float32 room for its arithmetic.
    """
    params, xs = draw(kind, dtype=dtype), draw_xs(dtype=dtype)
    carry = draw_carry(params)
    found = jaxgru.scan(params, xs, carry)
    assert_close(found, oracle.scan(params, xs, carry), STEPS * float(jnp.finfo(dtype).eps))
    grad = jax.grad(lambda *arguments: weigh(jaxgru.scan(*arguments)), argnums=(0, 1, 2))
    grads = jax.eval_shape(grad, params, xs, carry)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((found, grads))} == {dtype}


@pytest.mark.parametrize("kind", only(["mgu"], OWN))
def test_gradients_of_narrow_weights_are_added_up_in_float32(kind):
    """2,000 nearly equal terms are added up.

    In bfloat16 their sum would stop at 256 terms, an eighth. A state rounded to bfloat16 causes
    errors of a few percent.
    """
    params = draw(kind, dtype="bfloat16")
    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), params)

    @jax.jit
    def grad(params):
        xs = jnp.ones((2000, INPUT), params.w_hh.dtype)
        loss = lambda params: jnp.sum(jaxgru.scan(params, xs)[1].astype("float32"))  # noqa: E731
        return jax.grad(loss)(params).w_hh

    expected = grad(wide)
    assert_close(grad(params), expected, 0.1 * np.max(np.abs(expected)))


@pytest.mark.parametrize("bias", [False, slow(True)])
@pytest.mark.parametrize("kind", OWN)
def test_save_and_load(kind, bias, tmp_path):
    params = network(kind, "mixed", bias=bias)
    assert f"layers.1.{kind}.w_hh" in jaxgru.to_dict(params)
    jaxgru.save(tmp_path / "file", params)
    assert_same(jaxgru.load(tmp_path / "file"), params)


@pytest.mark.slow
@pytest.mark.parametrize("kind", only(SHORT, OWN))
def test_export_of_any_batch_and_time(kind):
    params, xs = network(kind, "mixed"), jnp.stack([draw_xs(), draw_xs(seed=5)])
    batch, steps = jax.export.symbolic_shape("batch, steps")
    of = jax.ShapeDtypeStruct((batch, steps, INPUT), xs.dtype)
    run = jax.jit(jax.vmap(jaxgru.scan, (None, 0)))
    again = jax.export.deserialize(jax.export.export(run)(params, of).serialize())
    assert_close(again.call(params, xs), run(params, xs), VALUES)


@pytest.mark.parametrize("kind", OWN)
def test_params_that_do_not_fit_together(kind):
    """The message names a field without an axis, a unit or any array, or with another dtype."""
    params, xs = draw(kind), draw_xs()
    step = OWN[kind][1]
    for field in dataclasses.fields(params):
        value, name = getattr(params, field.name), f"{type(params).__name__}.{field.name}"
        if field.metadata.get("static"):
            wrong = [None, "no such form"]
        else:
            wrong = [value[None], value.astype("float32"), "text"]
            wrong += [value[..., :-1]] if value.ndim else []
            wrong += [] if field.name.startswith("b") else [None]
        for bad in wrong:
            changed = dataclasses.replace(params, **{field.name: bad})
            with pytest.raises((TypeError, ValueError)) as raised:
                jaxgru.scan(changed, xs)
            # If a last axis is too short, the message names w_hh or w_ih, whichever comes second.
            assert str(raised.value).startswith(f"scan: {type(params).__name__}."), raised.value
            short = bad is not None and getattr(bad, "ndim", 0) == getattr(value, "ndim", 0)
            assert name in str(raised.value) or short, raised.value
            with pytest.raises((TypeError, ValueError), match=rf"^{step.__name__}: "):
                step(changed, draw_carry(params), xs[0])
    with pytest.raises(TypeError, match=rf"^{step.__name__}: params must be "):
        step(draw("gru"), draw_carry(params), xs[0])
    with pytest.raises(ValueError, match=rf"^{step.__name__}: x must be .*\[3\], got"):
        step(params, draw_carry(params), xs[0, :2])
    with pytest.raises(ValueError, match=rf"^{step.__name__}: carry must be .*\[4\], got"):
        step(params, draw_carry(params)[:2], xs[0])


@pytest.mark.parametrize("kind", only(["mgu"], OWN))
def test_init(kind):
    """Orthogonal blocks are drawn separately, in the requested dtype."""
    init, inputs, hidden = OWN[kind][0], 5, 8
    draw = jax.jit(init, static_argnums=(1, 2), static_argnames="dtype")
    params = draw(jax.random.key(0), inputs, hidden, dtype="float64")
    blocks = np.asarray(params.w_hh).reshape(hidden, -1, hidden).swapaxes(0, 1)
    for block in blocks:
        # The bound is ten float64 ulp, for a sum of eight products.
        np.testing.assert_allclose(block @ block.T, np.eye(hidden), rtol=0, atol=2e-15)
    assert len({block.tobytes() for block in blocks}) == len(blocks)
    # LeCun normal means variance 1 / I. The bound is five standard errors of n entries.
    many = np.asarray(draw(jax.random.key(1), 50, hidden, dtype="float64").w_ih)
    np.testing.assert_allclose(np.std(many) * np.sqrt(50), 1, atol=5 / np.sqrt(2 * many.size))
    assert not np.any(params.b)
    for bias in (True, False):
        drawn = jax.eval_shape(lambda key, bias=bias: init(key, 3, 4, bias=bias), jax.random.key(0))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(drawn)} == {"float32"}
        assert (drawn.b is None) is not bias


@pytest.mark.parametrize("kind", OWN)
def test_init_takes_no_wrong_argument(kind):
    init, right = OWN[kind][0], {"key": jax.random.key(0), "input_size": 3, "hidden_size": 4}
    name = OWN[kind][1].__name__.replace("_step", "_init")
    wrong = {"key": 3, "input_size": 0, "hidden_size": 2.0, "bias": 1, "init": "no", "chrono": 1,
             "dtype": "int8", "alpha": 2.0, "nonlinearity": "no", "separate": 1}  # fmt: skip
    taken = inspect.signature(init).parameters
    for argument in taken:
        with pytest.raises((TypeError, ValueError), match=rf"^{name}: {argument} must be "):
            init(**(right | {argument: wrong[argument]}))
    if "chrono" in taken:
        with pytest.raises(ValueError, match=rf"^{name}: bias must be True with chrono"):
            init(**right, bias=False, chrono=10)


@pytest.mark.parametrize("kind", only(SHORT, OWN))
def test_stack_init(kind):
    def run(key, xs):
        params = jaxgru.stack_init(key, 3, 4, 2, cell=OWN[kind][0], bidirectional=True)
        return jaxgru.scan(params, xs)[1]

    outputs = jax.eval_shape(run, jax.random.key(0), draw_xs(dtype="float32"))
    assert outputs.shape == (STEPS, 8)
