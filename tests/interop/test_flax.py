"""The modules for flax: in the place of flax' own, in a model that optax trains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgru
import peers
from cases import HIDDEN, INPUT, STEPS, assert_close, assert_same, draw

nnx = peers.peer("flax.nnx")
linen = peers.peer("flax.linen")
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


def expected(params, **options):
    def run(xs, length, mask, reset):
        return jaxgru.scan(params, xs, length=length, mask=mask, reset=reset, **options)

    return jax.vmap(run)(data(), LENGTHS, masks(), resets())


def of_nnx(params, **options):
    return RNN(params, return_carry=True, **options)


def of_linen(params, **options):
    module = LinenRNN(lambda key: params, return_carry=True, **options)
    return functools.partial(module.apply, {"params": {"rnn": params}})


@pytest.mark.parametrize("make", [of_nnx, of_linen])
@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"checkpoint": 2}])
@pytest.mark.parametrize("kind", ["gru", "mixed"])
def test_is_scan(make, kind, options):
    params = draw(kind)
    streams = {"seq_lengths": LENGTHS, "mask": masks(), "reset": resets()}
    actual = make(params, **options)(data(), **streams)
    assert_same(actual, expected(params, **options))


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
    """The same numbers as nnx.RNN over a cell with the same weights, where nnx is right."""
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


def test_nnx_names():
    names = nnx.to_pure_dict(nnx.state(RNN(draw("stack"))))["weights"]
    assert {"layers_0_gru_w_ih", "layers_1_gru_after_b_hn"} < set(names)


def test_linen_model_trains():
    init = functools.partial(jaxgru.gru_init, input_size=INPUT, hidden_size=1, dtype=jnp.float64)
    model = LinenRNN(init)
    variables = model.init(jax.random.key(0), data())
    assert variables["params"]["rnn"].w_hh.shape == (1, 3, 1)
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


@pytest.mark.parametrize("make", [of_nnx, of_linen])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": jnp.ones(3)}, r"inputs must be an array of shape \[\.\.\., T, I\], got float"),
        ({"seq_lengths": LENGTHS[:2]}, r"seq_lengths must be an array of shape \[3\], got int"),
        ({"mask": masks()[0]}, r"mask must be an array of shape \[3, 6\], got bool\[6\]"),
        ({"reset": resets()[0]}, r"reset must be an array of shape \[3, 6\], got bool\[6\]"),
        ({"initial_carry": jnp.ones(4)}, r"initial_carry must be an array of shape \[3, 4\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_wrong_arguments(make, arguments, message):
    with pytest.raises(ValueError, match=f"^(Linen)?RNN: {message}"):
        make(draw("gru"))(**({"inputs": data()} | arguments))


def test_wrong_params():
    with pytest.raises(TypeError, match=r"^RNN: params must be GRUParams, "):
        RNN({"w": jnp.ones(3)})
