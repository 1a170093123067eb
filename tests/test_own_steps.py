"""The examples of docs/recipes/own_steps.md against the same equations in float64 NumPy."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import oracle
import recipes
from cases import GRAD_TOL, HIDDEN, INPUT, STEPS, VALUE_TOL, assert_close, assert_same, draw, weigh
from oracle import sigmoid

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
page = functools.partial(recipes.names_of, "recipes/own_steps.md")


def normal(rng, *shape):
    return 0.6 * rng.standard_normal(shape)


def pick(key, logits):
    """JAX draws, and NumPy computes the logits."""
    return np.asarray(jax.random.categorical(key, jnp.asarray(logits)))


# --- The rate network.


def test_the_rate_network():
    params = page()["dale"]
    assert page()["outputs"].shape == (20, 4)
    xs = np.random.default_rng(2).standard_normal((STEPS, 3)).astype("float32")
    w_in, w_rec, b = (np.asarray(a, np.float64) for a in jax.tree.leaves(params))
    sign = np.where(np.arange(10) < 8, 1, -1)[:, None]
    v, expected = np.zeros(10), []
    for x in xs:
        v = 0.9 * v + 0.1 * (np.maximum(v, 0) @ (sign * abs(w_rec)) + x @ w_in + b)
        expected.append(np.maximum(v, 0))
    values = jaxgru.scan(params, jnp.asarray(xs))
    assert_close(values, (v, np.stack(expected)), VALUE_TOL["float32"])


def test_a_number_for_each_unit():
    params, xs = page()["decays"], np.ones((20, 3))
    w_ih, w_hh, b, log_tau, h = jax.tree.leaves(params)

    def total(w_ih, w_hh, b, log_tau, h):
        hs = []
        for x in xs:
            new = jnp.tanh(x @ w_ih + h @ w_hh + b)
            kept = jnp.exp(-jnp.exp(-log_tau))
            h = kept * h + (1 - kept) * new
            hs.append(h)
        return jnp.stack(hs).sum()

    wide = [jnp.asarray(leaf, "float64") for leaf in (w_ih, w_hh, b, log_tau, h)]
    expected = jax.grad(total, range(5))(*wide)
    assert_close(tuple(jax.tree.leaves(page()["grads"])), expected, GRAD_TOL["float32"])


@dataclasses.dataclass(frozen=True)
class Window:
    """A quasi-recurrent network with a window of two, which keeps parts in its carry."""

    w_ih: Any  # [I, 6, H]: the input of this step, and that of the step before
    b: Any  # [6, H]


def window_step(params, carry, parts, products):
    del params, products
    c, h, *before = carry
    z, f, o = (now + then for now, then in zip(parts[:3], before, strict=True))
    f = jax.nn.sigmoid(f)
    c = f * c + (1 - f) * jnp.tanh(z)
    h = jax.nn.sigmoid(o) * c
    return (c, h, *parts[3:]), h


jaxgru.register(
    Window,
    step=window_step,
    weights=lambda params: jaxgru.Weights(params.w_ih, (), params.b),
    initial_carry=lambda params: (jnp.zeros_like(params.b[0]),) * 5,
    sizes=lambda params: (params.w_ih.shape[0], params.w_ih.shape[2]),
    forms={"window": {}},
)


def test_a_window_of_two():
    rng = np.random.default_rng(3)
    w, b, xs = normal(rng, INPUT, 6, HIDDEN), normal(rng, 6, HIDDEN), normal(rng, STEPS, INPUT)
    starts = np.arange(STEPS) == 2
    c, expected, before = np.zeros(HIDDEN), [], np.zeros((3, HIDDEN))
    for x, start in zip(xs, starts, strict=True):
        c, before = (0 * c, 0 * before) if start else (c, before)
        parts = np.einsum("i,igh->gh", x, w) + b
        z, f, o = parts[:3] + before
        c = sigmoid(f) * c + (1 - sigmoid(f)) * np.tanh(z)
        expected.append(sigmoid(o) * c)
        before = parts[3:]
    params = Window(jnp.asarray(w), jnp.asarray(b))
    _, outputs = jaxgru.scan(params, jnp.asarray(xs), reset=jnp.asarray(starts))
    assert_close(outputs, np.stack(expected), TOL)


# --- The decoder.

VOCABULARY = 7


def decoder_params():
    rng = np.random.default_rng(0)
    embedding, readout = normal(rng, VOCABULARY, INPUT), 3 * normal(rng, HIDDEN, VOCABULARY)
    return {
        "gru": draw("gru"),
        "embedding": jnp.asarray(embedding),
        "readout": jnp.asarray(readout),
    }


def numpy_sample(params, h, token, steps, key):
    tokens, all_logits = [], []
    for t in range(steps):
        h = oracle.gru_step(params["gru"], h, np.asarray(params["embedding"])[token])
        all_logits.append(h @ np.asarray(params["readout"]))
        token = pick(jax.random.fold_in(key, t), all_logits[-1])
        tokens.append(token)
    return np.array(tokens), np.array(all_logits)


def test_the_decoder():
    params, h = decoder_params(), jnp.asarray(normal(np.random.default_rng(1), HIDDEN))
    for seed in range(3):
        key = jax.random.key(seed)
        tokens, logits = page()["sample"](params, h, jnp.int32(2), 20, key)
        assert tokens.dtype == jnp.int32
        expected, expected_logits = numpy_sample(params, h, 2, 20, key)
        assert tokens.tolist() == expected.tolist()
        assert len(set(tokens.tolist())) > 2
        assert_close(logits, expected_logits, TOL)


def test_many_decoders():
    params, keys = decoder_params(), jax.random.split(jax.random.key(5), 3)
    hs, tokens = jnp.asarray(normal(np.random.default_rng(1), 3, HIDDEN)), jnp.arange(3)
    many = jax.vmap(page()["sample"], (None, 0, 0, None, 0))(params, hs, tokens, 10, keys)
    for k in range(3):
        alone = page()["sample"](params, hs[k], tokens[k], 10, keys[k])
        assert many[0][k].tolist() == alone[0].tolist()
        assert_close(many[1][k], alone[1], TOL)


# --- The world model.

BLOCKS, DETER, WIDTH, TOKENS, ACTIONS = 8, 16, 5, 6, 2
STOCH = (3, 4)


def rssm_params():
    rng = np.random.default_rng(0)

    def layer(*shape, out=None):
        out = shape[-1] if out is None else out
        return {"w": normal(rng, *shape), "b": normal(rng, out), "scale": 1 + normal(rng, out)}

    block = DETER // BLOCKS
    params = {
        "deter": layer(DETER, WIDTH),
        "stoch": layer(STOCH[0] * STOCH[1], WIDTH),
        "action": layer(ACTIONS, WIDTH),
        "hidden": layer(BLOCKS, block + 3 * WIDTH, block, out=DETER),
        "gates": {"w": normal(rng, BLOCKS, block, 3, block), "b": normal(rng, 3, DETER)},
        "posterior": layer(DETER + TOKENS, WIDTH),
        "logits": {"w": 3 * normal(rng, WIDTH, STOCH[0] * STOCH[1])},
    }
    params["logits"]["b"] = normal(rng, STOCH[0] * STOCH[1])
    return jax.tree.map(jnp.asarray, params)


def rssm_data(length=STEPS):
    rng = np.random.default_rng(1)
    tokens = rng.standard_normal((STEPS, TOKENS))
    tokens[length:] = np.nan
    actions = 2 * rng.standard_normal((STEPS, ACTIONS))  # they exceed 1, so some are clipped
    carry = {
        "deter": np.tanh(rng.standard_normal(DETER)),
        "stoch": np.eye(STOCH[1])[rng.integers(0, STOCH[1], STOCH[0])],
    }
    reset = np.array([False, False, True, False, False, True])
    return jax.tree.map(jnp.asarray, (carry, tokens, actions, reset))


def numpy_norm_silu(layer, x):
    x = layer["scale"] * x / np.sqrt(np.mean(x**2) + 1e-4)
    return x * sigmoid(x)


def numpy_dense(layer, x):
    return numpy_norm_silu(layer, x @ layer["w"] + layer["b"])


def numpy_core(params, deter, stoch, action):
    """Compute block by block, as the equations do."""
    action = action / np.maximum(1, np.abs(action))
    u = np.concatenate(
        [
            numpy_dense(params["deter"], deter),
            numpy_dense(params["stoch"], stoch.flatten()),
            numpy_dense(params["action"], action),
        ]
    )
    hidden, gates, size = params["hidden"], params["gates"], DETER // BLOCKS
    rows = [slice(g * size, (g + 1) * size) for g in range(BLOCKS)]
    v = [np.concatenate([deter[rows[g]], u]) @ hidden["w"][g] for g in range(BLOCKS)]
    v = numpy_norm_silu(hidden, np.concatenate(v) + hidden["b"])
    after = np.empty(DETER)
    for g, here in enumerate(rows):
        r, n, z = (v[here] @ gates["w"][g, :, k] + gates["b"][k, here] for k in range(3))
        z = sigmoid(z - 1)
        after[here] = z * np.tanh(sigmoid(r) * n) + (1 - z) * deter[here]
    return after


def numpy_observe(params, carry, tokens, actions, reset, key, length):
    deter, stoch, states = carry["deter"], carry["stoch"], []
    for t in range(length):
        action = actions[t]
        if reset[t]:
            deter, stoch, action = np.zeros(DETER), np.zeros(STOCH), np.zeros(ACTIONS)
        deter = numpy_core(params, deter, stoch, action)
        x = numpy_dense(params["posterior"], np.concatenate([deter, tokens[t]]))
        logits = (x @ params["logits"]["w"] + params["logits"]["b"]).reshape(STOCH)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        probabilities = 0.99 * probabilities + 0.01 / STOCH[1]
        stoch = np.eye(STOCH[1])[pick(jax.random.fold_in(key, t), np.log(probabilities))]
        states.append({"deter": deter, "stoch": stoch, "logits": logits})
    blank = jax.tree.map(np.zeros_like, states[0])
    states += [blank] * (STEPS - length)
    return {"deter": deter, "stoch": stoch}, jax.tree.map(lambda *s: np.stack(s), *states)


@functools.cache
def observe():
    return jax.jit(page()["observe"])


@pytest.mark.parametrize("length", [1, 4, STEPS])
def test_the_world_model(length):
    params, data, key = rssm_params(), rssm_data(length), jax.random.key(3)
    actual = observe()(params, *data, key, length)
    as_numpy = jax.tree.map(np.asarray, (params, *data))
    assert_close(actual, numpy_observe(*as_numpy, key, length), TOL)


def test_gradients_of_the_world_model_do_not_see_the_padding():
    params, key = rssm_params(), jax.random.key(3)

    @jax.jit
    def slope(data, length):
        def loss(params):
            return weigh(page()["observe"](params, *data, key, length))

        return jax.grad(loss)(params)

    dirty, clean = rssm_data(4), jax.tree.map(jnp.nan_to_num, rssm_data(4))
    grads = slope(dirty, 4)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads))
    assert_same(grads, slope(clean, 4))


def test_a_batch_of_world_models():
    params, keys = rssm_params(), jax.random.split(jax.random.key(0), 2)
    carry, tokens, actions, reset = rssm_data()
    data = carry, tokens, actions, reset
    other = carry, tokens[::-1], actions, reset[::-1]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), data, other)
    many = jax.jit(jax.vmap(page()["observe"], (None, 0, 0, 0, 0, 0)))(params, *batch, keys)
    for k, alone in enumerate((data, other)):
        expected = observe()(params, *alone, keys[k], STEPS)
        assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], many), expected, TOL)


def test_the_first_example():
    assert page()["carry"] == 5
    assert page()["ys"].tolist() == [0, 1, 2, 3, 4]
