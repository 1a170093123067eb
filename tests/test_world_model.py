"""The core of DreamerV3 from docs/recipes/own_steps.md, at its real size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peers
import recipes
from cases import assert_close

torch = peers.peer("torch")
pytestmark = pytest.mark.usefixtures("x64")
page = functools.partial(recipes.names_of, "recipes/own_steps.md")

BATCH, STEPS, BLOCKS, DETER = 16, 64, 8, 512
WIDTH, STOCH, TOKENS, ACTIONS = 64, (32, 4), 24, 6


def normal(rng, *shape):
    return rng.standard_normal(shape)


def draw_params(dtype):
    """Weights that keep the size of their input. No bias is 0, and no scale is 1."""
    rng = np.random.default_rng(0)

    def layer(*shape, out=None):
        out = shape[-1] if out is None else out
        w = normal(rng, *shape) * shape[-2] ** -0.5
        return {"w": w, "b": 0.1 * normal(rng, out), "scale": 1 + 0.1 * normal(rng, out)}

    block, drawn = DETER // BLOCKS, STOCH[0] * STOCH[1]
    params = {
        "deter": layer(DETER, WIDTH),
        "stoch": layer(drawn, WIDTH),
        "action": layer(ACTIONS, WIDTH),
        "hidden": layer(BLOCKS, block + 3 * WIDTH, block, out=DETER),
        "gates": layer(BLOCKS, block, 3 * block, out=3 * DETER),
        "posterior": layer(DETER + TOKENS, WIDTH),
        "logits": layer(WIDTH, drawn),
    }
    gates = params["gates"]
    w, b = gates["w"].reshape(BLOCKS, block, 3, block), gates["b"].reshape(3, DETER)
    params["gates"] = {"w": w, "b": b}
    del params["logits"]["scale"]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def draw_data(dtype):
    """Draw (carries, tokens, actions), and the beginnings of episodes."""
    rng = np.random.default_rng(1)
    hot = np.eye(STOCH[1])[rng.integers(0, STOCH[1], (BATCH, STOCH[0]))]
    carry = {"deter": np.tanh(normal(rng, BATCH, DETER)), "stoch": hot}
    tokens = normal(rng, BATCH, STEPS, TOKENS)
    actions = 2 * normal(rng, BATCH, STEPS, ACTIONS)  # they exceed 1, so some are clipped
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (carry, tokens, actions))
    return data, jnp.asarray(rng.random((BATCH, STEPS)) < 0.1)


KEYS = jax.random.split(jax.random.key(3), BATCH)
observe = jax.vmap(page()["observe"], (None, 0, 0, 0, 0, 0))


# --- The transcription to PyTorch, block by block, with derivatives of PyTorch.


def torch_norm_silu(layer, x):
    x = torch.nn.functional.rms_norm(x + layer["b"], x.shape[-1:], layer["scale"], 1e-4)
    return torch.nn.functional.silu(x)


def torch_dense(layer, x):
    return torch_norm_silu(layer, x @ layer["w"])


def torch_core(params, deter, stoch, action):
    action = action / torch.clamp(action.abs(), min=1).detach()
    u = [("deter", deter), ("stoch", stoch.flatten(1)), ("action", action)]
    u = torch.cat([torch_dense(params[name], x) for name, x in u], 1)
    parts = deter.chunk(BLOCKS, 1)
    hidden, gates = params["hidden"], params["gates"]
    v = [torch.cat([part, u], 1) @ w for part, w in zip(parts, hidden["w"], strict=True)]
    v = torch_norm_silu(hidden, torch.cat(v, 1)).chunk(BLOCKS, 1)

    def gate(k):
        rows = [part @ w[:, k] for part, w in zip(v, gates["w"], strict=True)]
        return torch.cat(rows, 1) + gates["b"][k]

    r, n, z = map(gate, range(3))
    z = torch.sigmoid(z - 1)
    return z * torch.tanh(torch.sigmoid(r) * n) + (1 - z) * deter


def torch_observe(params, data, reset, drawn):
    """Compute the states, with the rows of stoch that were drawn."""
    carry, tokens, actions = data
    deter, stoch, states = carry["deter"], carry["stoch"], []
    for t in range(STEPS):
        begins = reset[:, t, None]
        deter, action = (torch.where(begins, 0, x) for x in (deter, actions[:, t]))
        stoch = torch.where(begins[..., None], 0, stoch)
        deter = torch_core(params, deter, stoch, action)
        x = torch_dense(params["posterior"], torch.cat([deter, tokens[:, t]], 1))
        logits = (x @ params["logits"]["w"] + params["logits"]["b"]).reshape(BATCH, *STOCH)
        probabilities = 0.99 * torch.softmax(logits, -1) + 0.01 / STOCH[1]
        stoch = drawn[:, t] + probabilities - probabilities.detach()
        states.append({"deter": deter, "stoch": stoch, "logits": logits})
    return {name: torch.stack([state[name] for state in states], 1) for name in states[0]}


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tol"), [("float32", 1e-5), ("float64", 1e-12)])
def test_gradients(dtype, tol):
    """Gradients of weights, inputs and carries, each relative to its largest entry.

    The transcription gets the draws of the library in float32, since float64 would draw others.
    """
    params, (data, reset) = draw_params(dtype), draw_data(dtype)
    rng = np.random.default_rng(2)
    shapes = {"deter": (DETER,), "stoch": STOCH, "logits": STOCH}
    weights = {name: normal(rng, BATCH, STEPS, *shape) for name, shape in shapes.items()}

    @jax.jit
    def run(arguments, cotangents):
        def states(arguments):
            params, data = arguments
            return observe(params, *data, reset, KEYS)[1]

        found, pull = jax.vjp(states, arguments)
        return found, pull(cotangents)[0]

    states, grads = run((params, data), jax.tree.map(lambda w: jnp.asarray(w, dtype), weights))
    drawn = np.round(np.asarray(states["stoch"], np.float64))
    assert 0.2 < drawn[..., 0].mean() < 0.3  # every class is drawn

    def leaf(a):
        return torch.tensor(np.asarray(a, np.float64), requires_grad=True)

    arguments = jax.tree.map(leaf, (params, data))
    found = torch_observe(*arguments, torch.tensor(np.asarray(reset)), torch.tensor(drawn))
    loss = sum((found[name] * torch.tensor(weights[name])).sum() for name in shapes)
    expected = torch.autograd.grad(loss, jax.tree.leaves(arguments))
    for name, state in found.items():
        assert_close(states[name], state.detach().numpy(), 20 * tol)
    for grad, other in zip(jax.tree.leaves(grads), expected, strict=True):
        size = other.abs().max().item()
        assert size > 0.1
        assert_close(np.asarray(grad, np.float64) / size, other.numpy() / size, tol)


# --- Acting and learning.


def test_a_rollout_and_its_learner_agree():
    """The actor takes one step at a time, and resets its carry itself.

    Its actions depend on its carry. The learner runs `loop` over the recorded rollout with resets.
    """
    params, ((carry, tokens, _), reset) = draw_params("float32"), draw_data("float32")
    policy = jnp.asarray(normal(np.random.default_rng(4), DETER, ACTIONS), "float32")

    @jax.jit
    @jax.vmap
    def act(carry, tokens, begins, key):
        carry = jax.tree.map(lambda part: jnp.where(begins, 0, part), carry)
        action = jnp.where(begins, 0, jnp.tanh(carry["deter"] @ policy))
        return *page()["world_step"](params, carry, (tokens, action), key), action

    start, acted = carry, []
    for t in range(STEPS):
        keys = jax.vmap(jax.random.fold_in, (0, None))(KEYS, t)
        carry, states, action = act(carry, tokens[:, t], reset[:, t], keys)
        acted.append((states, action))
    states, actions = jax.tree.map(lambda *parts: jnp.stack(parts, 1), *acted)
    again = jax.jit(observe)(params, start, tokens, actions, reset, KEYS)
    assert_close(again, (carry, states), 1e-6)
    lost = jax.jit(observe)(params, start, tokens, actions, jnp.zeros_like(reset), KEYS)
    assert abs(lost[1]["deter"] - states["deter"]).max() > 0.1  # so the resets matter
