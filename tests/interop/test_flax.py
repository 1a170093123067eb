"""The modules for Flax replace its own in a model that optax trains."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgru
import peers
import recipes
from cases import HIDDEN, INPUT, STEPS, assert_close, assert_same, draw, draw_like, draw_xs

nnx = peers.peer("flax.nnx")
linen = peers.peer("flax.linen")
from flax.traverse_util import unflatten_dict  # noqa: E402

from jaxgru.interop.flax import RNN, LinenRNN  # noqa: E402, needs flax

pytestmark = pytest.mark.usefixtures("x64", "lenient")

BATCH = 3
LENGTHS = jnp.array([2, STEPS, 0])
TOL = peers.TOL


def data(seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((BATCH, STEPS, INPUT)))


def resets():
    return jnp.asarray(np.random.default_rng(3).random((BATCH, STEPS)) < 0.3)


def masks():
    return jnp.asarray(np.random.default_rng(4).random((BATCH, STEPS)) < 0.7)


def expected(params, carry=None, starts=None, **options):
    def run(xs, carry, length, mask, reset, starts):
        marks = {"length": length, "mask": mask, "reset": reset, "reset_carry": starts}
        return jaxgru.scan(params, xs, carry, **marks, **options)

    return jax.vmap(run)(data(), carry, LENGTHS, masks(), resets(), starts)


def of_nnx(params, **options):
    return RNN(params, return_carry=True, **options)


def of_linen(params, **options):
    """A module with its variables. Its methods are called by name."""
    module = LinenRNN(lambda key, size: params, return_carry=True, **options)
    variables = {"params": unflatten_dict(jaxgru.to_dict(params), sep=".")}
    call = functools.partial(module.apply, variables)
    call.step = functools.partial(call, method="step")  # type: ignore[attr-defined]
    call.initialize_carry = module.initialize_carry  # type: ignore[attr-defined]
    return call


@pytest.mark.parametrize("make", [of_nnx, of_linen])
@pytest.mark.parametrize(
    "options", [{}, {"reverse": True}, {"checkpoint": 2}, {"compute_dtype": "float32"}]
)
@pytest.mark.parametrize("kind", ["gru", "mixed"])
def test_is_scan(make, kind, options):
    params = draw(kind)
    carry = draw_like(jaxgru.initial_carry(params, (BATCH,)))
    starts = draw_like(carry, seed=5)
    arguments = {"initial_carry": carry, "seq_lengths": LENGTHS, "mask": masks(), "reset": resets()}
    actual = make(params, **options)(data(), reset_carry=starts, **arguments)
    assert_same(actual, expected(params, carry, starts, **options))


@pytest.mark.parametrize("make", [of_nnx, of_linen])
@pytest.mark.parametrize("axes", [0, 1, 2])
def test_time_major(make, axes):
    """Put time first, and then the batch. Carries and lengths stay as they are."""
    params = draw("lstm")
    stack = {0: lambda a: a[0], 1: lambda a: a, 2: lambda a: jnp.stack([a, a])}[axes]
    carry = draw_like(jaxgru.initial_carry(params, (BATCH,)))
    xs, reset, lengths, carry = jax.tree.map(stack, (data(), resets(), LENGTHS, carry))
    arguments = {"initial_carry": carry, "seq_lengths": lengths}
    last, ys = make(params)(xs, reset=reset, **arguments)
    xs, reset = jnp.moveaxis(xs, -2, 0), jnp.moveaxis(reset, -1, 0)
    actual = make(params, time_major=True)(xs, reset=reset, **arguments)
    assert_close(actual, (last, jnp.moveaxis(ys, -2, 0)), TOL)


@pytest.mark.parametrize("make", [of_nnx, of_linen])
def test_any_number_of_batch_axes(make):
    params = draw("lstm")
    carry, ys = make(params)(data())
    assert_same(make(params)(data()[0]), jaxgru.scan(params, data()[0]))
    twice = jax.tree.map(lambda a: jnp.stack([a, a]), (data(), carry))
    carries, outputs = make(params)(twice[0], initial_carry=twice[1])
    expected = make(params)(data(), initial_carry=carry)
    assert_close((carries.h[1], outputs[1]), (expected[0].h, expected[1]), TOL)
    assert ys.shape == (BATCH, STEPS, HIDDEN)


def test_in_the_place_of_nnx():
    """The results equal those of nnx.RNN over a cell with the same weights, where nnx is right."""
    cell = nnx.GRUCell(INPUT, HIDDEN, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    rnn = RNN(jaxgru.interop.from_nnx(cell))
    assert_close(rnn(data()), nnx.RNN(cell)(data()), TOL)


class Model(nnx.Module):
    def __init__(self, rngs):
        cell = jaxgru.stack_init(rngs.params(), INPUT, HIDDEN, 2, dtype=jnp.float64)
        self.rnn = RNN(cell)
        self.head = nnx.Linear(HIDDEN, 1, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, xs, **options):
        return self.head(self.rnn(xs, **options))


def test_the_models_of_the_page():
    """docs/migrate/flax.md"""
    blocks = recipes.blocks("migrate/flax.md")
    (block,) = (b for b in blocks if "class LinenModel" in b)
    names: dict = {}
    exec(compile(block, "migrate/flax.md", "exec"), names)
    xs, done = data().astype("float32"), resets().astype("float32")
    assert names["Model"](nnx.Rngs(0))(xs, LENGTHS, done).shape == (BATCH, STEPS, 1)
    ys, variables = names["LinenModel"]().init_with_output(jax.random.key(0), xs, LENGTHS, done)
    assert ys.shape == (BATCH, STEPS, 1)
    (block,) = (b for b in blocks if "of a LinenRNN; inside" in b)
    names |= {"unflatten_dict": unflatten_dict, "variables": {}}
    names["variables"]["params"] = before = variables["params"]["LinenRNN_0"]
    exec(compile(block, "migrate/flax.md", "exec"), names)
    assert_same(names["variables"]["params"], before)
    assert_same(names["params"], jaxgru.from_dict(before))


def error(model, xs):
    return jnp.mean((model(xs, seq_lengths=LENGTHS) - 0.5) ** 2)


def test_nnx_model_trains():
    """Every weight moves, the loss falls, and a copy by split and merge computes the same."""
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    before = jax.tree.map(jnp.copy, model.rnn.params)

    @nnx.jit
    def update(model, optimizer, xs):
        loss, grads = nnx.value_and_grad(error)(model, xs)
        optimizer.update(model, grads)
        return loss

    losses = [float(update(model, optimizer, data())) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, model.rnn.params)
    assert all(jax.tree.leaves(moved))
    copy = nnx.merge(*nnx.split(model))
    assert_same(copy(data()), model(data()))


def test_linen_model_trains():
    model = LinenRNN(functools.partial(jaxgru.gru_init, hidden_size=1, dtype=jnp.float64))
    variables = model.init(jax.random.key(0), data())
    assert variables["params"]["gru"]["w_ih"].shape == (INPUT, 3, 1)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(variables)

    @jax.jit
    def update(variables, state):
        def loss(variables):
            ys = model.apply(variables, data(), reset=resets())
            return jnp.mean((ys - 0.5) ** 2)

        value, grads = jax.value_and_grad(loss)(variables)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(variables, updates), state, value

    losses = []
    for _ in range(50):
        variables, state, loss = update(variables, state)
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", ["gru", "min_gru", "mixed"])
def test_linen_takes_the_input_size_from_the_data(kind):
    """This also holds if the first call is a step, and inside any other module."""
    init = {
        "gru": functools.partial(jaxgru.gru_init, hidden_size=HIDDEN),
        "min_gru": functools.partial(jaxgru.min_gru_init, hidden_size=HIDDEN),
        "mixed": functools.partial(
            jaxgru.stack_init, hidden_size=HIDDEN, num_layers=2, bidirectional=True
        ),
    }[kind]
    init = functools.partial(init, dtype=jnp.float64)
    model = linen.Sequential([linen.Dense(7, param_dtype=jnp.float64), LinenRNN(init)])
    variables = model.init(jax.random.key(0), data())
    found = jaxgru.from_dict(variables["params"]["layers_1"])
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, init(jax.random.key(0), 7))
    if kind != "mixed":
        rnn = LinenRNN(init)
        start = rnn.initialize_carry((BATCH,)), data()[:, 0]
        variables = rnn.init(jax.random.key(0), *start, method="step")
        assert_same(variables, rnn.init(jax.random.key(0), data()))


def test_linen_draws_two_directions_apart():
    def init(key, size):
        cells = (jaxgru.gru_init(key, size, HIDDEN, dtype="float64") for _ in range(2))
        return jaxgru.Bidirectional(*cells)

    variables = LinenRNN(init).init(jax.random.key(0), data())
    params = jaxgru.from_dict(variables["params"])
    assert abs(params.forward.w_ih - params.backward.w_ih).max() > 0.1


@pytest.mark.parametrize("make", [of_nnx, of_linen])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int32", "uint8"])
def test_resets_are_what_environments_say(make, dtype):
    """Acting and learning accept done as a number. Any value but zero of JAX or NumPy counts."""
    rnn, numbers = make(draw("gru")), 3 * np.asarray(resets()).astype(jnp.dtype(dtype))
    assert_same(rnn(data(), reset=numbers), rnn(data(), reset=resets()))
    carry = draw_like(rnn.initialize_carry((BATCH,)))
    x, (numbers, flags) = data()[:, 0], (numbers[:, 0], resets()[:, 0])
    assert flags.any()
    assert_same(rnn.step(carry, x, reset=jnp.asarray(numbers)), rnn.step(carry, x, reset=flags))


@pytest.mark.parametrize("make", [of_nnx, of_linen])
def test_one_environment_says_done(make):
    rnn = make(draw("gru"))
    carry, x = draw_like(rnn.initialize_carry()), data()[0, 0]
    fresh, kept = rnn.step(rnn.initialize_carry(), x), rnn.step(carry, x)
    for value in (True, 1, 1.0, np.True_, np.float32(1)):
        assert_same(rnn.step(carry, x, reset=value), fresh)
    for value in (False, 0, 0.0, None):
        assert_same(rnn.step(carry, x, reset=value), kept)


@pytest.mark.parametrize("make", [of_nnx, of_linen])
@pytest.mark.parametrize("kind", ["gru", "lstm", "stack"])
def test_step_by_step(make, kind):
    """Acting one step at a time equals the call over the whole sequence, for any batch axes."""
    rnn = make(draw(kind))
    carry = draw_like(rnn.initialize_carry((2, BATCH)))
    starts = draw_like(carry, seed=5)
    xs, reset = (jnp.stack([a, jnp.flip(a, 1)]) for a in (data(), resets()))
    whole = rnn(xs, initial_carry=carry, reset=reset, reset_carry=starts)
    ys = []
    for t in range(STEPS):
        carry, y = rnn.step(carry, xs[:, :, t], reset=reset[:, :, t], reset_carry=starts)
        ys.append(y)
    assert_close((carry, jnp.stack(ys, 2)), whole, TOL)


@pytest.mark.parametrize("make", [of_nnx, of_linen])
def test_a_step_computes_as_the_module_does(make):
    params = draw("gru")
    rnn = make(params, compute_dtype="bfloat16")
    carry, x = draw_like(rnn.initialize_carry((BATCH,))), data()[:, 0]
    run = functools.partial(jaxgru.step, compute_dtype="bfloat16")
    ours, y = rnn.step(carry, x)
    assert_close((ours, y), jax.vmap(run, (None, 0, 0))(params, carry, x), TOL)
    assert abs(y - make(params).step(carry, x)[1]).max() > 1e-5  # 16 bits hold 3 digits


@pytest.mark.parametrize("make", [of_nnx, of_linen])
@pytest.mark.parametrize("kind", ["lstm", "mixed"])
def test_initialize_carry(make, kind):
    params = draw(kind)
    for batch in ((), (2, 3)):
        found = make(params).initialize_carry(batch)
        assert_same(found, jaxgru.initial_carry(params, batch))
    with pytest.raises(TypeError, match="batch must be a tuple of sizes, got int"):
        make(params).initialize_carry(3)


@dataclasses.dataclass(frozen=True)
class Learnt:
    """The carry of a cell that learns where it starts."""

    w: Any
    start: Any


def learnt(start):
    return lambda params: {"h": start(params), "steps": jnp.int32(0)}


jaxgru.register(
    Learnt,
    step=lambda params, carry, x: ({**carry, "h": carry["h"] + x @ params.w}, carry["h"]),
    initial_carry=learnt(lambda params: params.start),
    sizes=lambda params: params.w.shape,
    forms={"learnt": {}},
)


@dataclasses.dataclass(frozen=True)
class Ones(Learnt):
    pass


jaxgru.register(
    Ones,
    step=lambda params, carry, x: ({**carry, "h": carry["h"] + x @ params.w}, carry["h"]),
    initial_carry=learnt(lambda params: jnp.ones_like(params.start)),
    sizes=lambda params: params.w.shape,
    forms={"ones": {}},
)


@pytest.mark.parametrize("kind", [Learnt, Ones])
def test_initialize_carry_of_a_registered_cell(kind):
    """The module never takes zeros for another carry."""
    params = kind(draw_xs(INPUT, HIDDEN), draw_xs(1, HIDDEN)[0])
    rnn = LinenRNN(lambda key, size: params, return_carry=True)
    variables = rnn.init(jax.random.key(0), data())
    expected = jaxgru.initial_carry(params, (BATCH,))
    assert_same(rnn.bind(variables).initialize_carry((BATCH,)), expected)
    assert_same(RNN(params).initialize_carry((BATCH,)), expected)
    if kind is Ones:
        assert_same(rnn.initialize_carry((BATCH,)), expected)
    else:
        with pytest.raises(ValueError, match=r"^LinenRNN.initialize_carry: the carry must be the"):
            rnn.initialize_carry((BATCH,))

    class Model(linen.Module):
        """A module that makes its own carry, with and without variables."""

        @linen.compact
        def __call__(self, xs):
            inner = LinenRNN(lambda key, size: params)
            start = None if self.is_initializing() else inner.initialize_carry((BATCH,))
            return inner(xs, initial_carry=start)

    model = Model()
    outputs = model.apply(model.init(jax.random.key(0), data()), data())
    assert_same(outputs, jax.vmap(jaxgru.scan, (None, 0))(params, data())[1])


def test_dropout_of_nnx():
    """Dropout is that of `scan` with a key for each sequence. `eval()` switches it off."""
    params, rngs = draw("stack"), nnx.Rngs(0)
    rnn = RNN(params, dropout=0.5, rngs=rngs)
    stream = nnx.Rngs(0)["dropout"].fork()
    same = jnp.broadcast_to(data()[0], (BATCH, STEPS, INPUT))
    for _ in range(2):  # every call has a new key
        keys = jax.random.split(stream(), BATCH)
        run = jax.vmap(lambda xs, key: jaxgru.scan(params, xs, dropout=0.5, key=key)[1])
        ys = rnn(same)
        assert_same(ys, run(same, keys))
        assert (abs(ys - ys[0]).max((1, 2)) > 0.01).tolist() == [False, True, True]
    without = RNN(params)(same)
    assert_same(rnn(same, deterministic=True), without)
    assert_same(nnx.view(rnn, deterministic=True)(same), without)
    rnn.eval()
    assert_same(rnn(same), without)
    assert abs(rnn(same, deterministic=False) - without).max() > 0.01
    rnn.train()
    assert abs(rnn(same) - without).max() > 0.01


def test_dropout_of_linen():
    params = draw("stack")
    same = jnp.broadcast_to(data()[0], (BATCH, STEPS, INPUT))
    _, without = of_linen(params)(same)
    call = of_linen(params, dropout=0.5)
    one, again, other = (
        call(same, deterministic=False, rngs={"dropout": jax.random.key(seed)})[1]
        for seed in (0, 0, 1)
    )
    assert_same(one, again)
    for ys in (other, without, jnp.roll(one, 1, 0)):
        assert (abs(one - ys).max((1, 2)) > 0.01).all()
    assert_same(call(same, deterministic=True)[1], without)
    assert_same(of_linen(params, dropout=0.5, deterministic=True)(same)[1], without)
    with pytest.raises(ValueError, match="deterministic"):
        call(same)


def test_dropout_needs_what_it_draws_from():
    with pytest.raises(
        ValueError, match=r"^RNN: rngs must be given with dropout, got None\. .* rngs="
    ):
        RNN(draw("stack"), dropout=0.5)
    with pytest.raises(ValueError, match=r"^scan: dropout must be 0 for params without a Stack"):
        RNN(draw("gru"), dropout=0.5, rngs=nnx.Rngs(0))(data())


@pytest.mark.parametrize("other", [{"reset_after": True}, {"num_layers": 1}, {"num_layers": 3}])
def test_linen_refuses_weights_of_another_form(other):
    """Flax compares only shapes, and only of the arrays that both have."""
    options = {"num_layers": 2, "hidden_size": HIDDEN, "bias": False, "dtype": "float64"}
    params = jaxgru.stack_init(jax.random.key(0), INPUT, **(options | other))
    variables = {"params": unflatten_dict(jaxgru.to_dict(params), sep=".")}
    expected = r"^LinenRNN: parameters must be those of init_params, layers\.0\.gru\.w_ih, .*, got "
    with pytest.raises(ValueError, match=expected):
        LinenRNN(functools.partial(jaxgru.stack_init, **options)).apply(variables, data())


@pytest.mark.parametrize("make", [of_nnx, of_linen])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": jnp.ones(3)}, r"inputs must be an array of shape \[\.\.\., T, I\], got float"),
        ({"seq_lengths": LENGTHS[:2]}, r"seq_lengths must be an array of shape \[3\], got int"),
        ({"mask": masks()[0]}, r"mask must be an array of shape \[3, 6\], got bool\[6\]"),
        ({"reset": resets()[0]}, r"reset must be an array of shape \[3, 6\], got bool\[6\]"),
        ({"reset": resets().astype(complex)}, r"reset must be of bools, integers or floats"),
        ({"reset": [True]}, r"reset must be an array of shape \[3, 6\], got list"),
        ({"initial_carry": jnp.ones(4)}, r"initial_carry must be an array of shape \[3, 4\]"),
        ({"reset": resets(), "reset_carry": jnp.ones(4)}, r"reset_carry must be an array of shape"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_wrong_arguments(make, arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"^(Linen)?RNN: {message}"):
        make(draw("gru"))(**({"inputs": data()} | arguments))


@pytest.mark.parametrize("make", [of_nnx, of_linen])
def test_wrong_steps(make):
    rnn = make(draw("gru"))
    carry, x = rnn.initialize_carry((BATCH,)), data()[:, 0]
    for arguments, message in (
        ((carry[0], x), r"carry must be an array of shape \[3, 4\], got float64\[4\]\. The mod"),
        ((None, x), r"carry must be a carry of params, float64\[3, 4\], got None"),
        ((carry, x, resets()), r"reset must be an array of shape \[3\], got bool\[3, 6\]"),
        ((carry, 1.0), r"x must be an array of shape \[\.\.\., I\], got float"),
    ):
        carry_, x_, *reset = arguments
        with pytest.raises((TypeError, ValueError), match=rf"^(Linen)?RNN\.step: {message}"):
            rnn.step(carry_, x_, reset=reset[0] if reset else None)
    with pytest.raises(ValueError, match=r"RNN\.step: reverse must be False, got True"):
        make(draw("gru"), reverse=True).step(carry, x)
    both = make(draw("bidirectional"))
    with pytest.raises(TypeError, match="got Bidirectional"):
        both.step(both.initialize_carry((BATCH,)), x)


def test_wrong_params():
    with pytest.raises(TypeError, match=r"^RNN: params must be GRUParams, "):
        RNN({"w": jnp.ones(3)})
