"""Cells and steps that users define, compared with handwritten `lax.scan` over their equations."""

import dataclasses
import functools
import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

import jaxgru
from benchmarks import peers
from benchmarks.timing import BOTH, Row, by_two_clocks, wait

PAGE = Path(__file__).parents[1] / "docs" / "recipes" / "own_steps.md"
#: DreamerV3's smallest model: B, T, and the sizes of its parts.
BATCH, STEPS, BLOCKS, DETER, WIDTH, STOCH, TOKENS, ACTIONS = 16, 64, 8, 512, 64, (32, 4), 256, 6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OwnParams:
    """The weights of a GRU, gate by gate."""

    w_r: Array
    w_z: Array
    w_n: Array
    u_r: Array
    u_z: Array
    u_n: Array
    b_r: Array
    b_z: Array
    b_n: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NamedParams(OwnParams):
    """The same, for a cell that names its products."""


def own_step(params: OwnParams, h: Array, x: Array) -> tuple[Array, Array]:
    """A GRU in four lines."""
    r = jax.nn.sigmoid(x @ params.w_r + h @ params.u_r + params.b_r)
    z = jax.nn.sigmoid(x @ params.w_z + h @ params.u_z + params.b_z)
    n = jnp.tanh(x @ params.w_n + (r * h) @ params.u_n + params.b_n)
    h = (1 - z) * h + z * n
    return h, h


def weights(params: NamedParams) -> jaxgru.Weights:
    return jaxgru.Weights(
        w_ih=jnp.stack((params.w_r, params.w_z, params.w_n), 1),
        w_hh=(jnp.stack((params.u_r, params.u_z), 1), params.u_n[:, None]),
        b=jnp.stack((params.b_r, params.b_z, params.b_n)),
    )


def named_step(
    params: NamedParams, h: Array, parts: tuple[Array, ...], products: tuple[Any, ...]
) -> tuple[Array, Array]:
    del params
    x_r, x_z, x_n = parts
    a_r, a_z = products[0](h)
    r = jax.nn.sigmoid(x_r + a_r)
    z = jax.nn.sigmoid(x_z + a_z)
    (a_n,) = products[1](r * h)
    n = jnp.tanh(x_n + a_n)
    h = (1 - z) * h + z * n
    return h, h


def _start(params: OwnParams) -> Array:
    return jnp.zeros_like(params.b_r)


def _sizes(params: OwnParams) -> tuple[int, int]:
    inputs, hidden = params.w_r.shape
    return inputs, hidden


jaxgru.register(OwnParams, step=own_step, initial_carry=_start, sizes=_sizes)
jaxgru.register(NamedParams, step=named_step, weights=weights, initial_carry=_start, sizes=_sizes)


def own(rounds: int) -> Iterator[Row]:
    """Time a GRU registered by its step, and a world model run by `loop`, against `lax.scan`."""
    for sizes in peers.GRID:
        problem = peers.problem("gru_before", *sizes)
        models = {
            name: peers.jax_model(apply, weights, problem)
            for name, (apply, weights) in cells(problem).items()
        }
        both = {name: m.gradient for name, m in models.items() if m.gradient is not None}
        peers.assert_equal(*(model.forward() for model in models.values()))
        peers.assert_equal(*(call() for call in both.values()))
        yield from _rows(peers.name(sizes), both, rounds)
        del models, both
        gc.collect()
    args = (world_params(), world_data())
    runs = world_models()
    found = [jax.tree.leaves(run(*args)) for run in runs.values()]
    for grads in zip(*found, strict=True):
        peers.assert_equal(*grads)
    calls = {name: functools.partial(wait, run, *args) for name, run in runs.items()}
    case = f"DreamerV3, B={BATCH} T={STEPS} deter={DETER}"
    yield from _rows(case, calls, rounds)


def _rows(case: str, calls: dict[str, Callable[[], Any]], rounds: int) -> Iterator[Row]:
    wall, processors = by_two_clocks(calls, rounds)
    yield Row("own", case, BOTH, "s", wall)
    yield Row("own", case, f"{BOTH}, time of processors", "s", processors)


def cells(problem: peers.Problem) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Functions (weights, xs) -> outputs, and their weights. All are the GRU of the problem."""
    built_in = problem.params
    parts = [
        part for w in (built_in.w_ih, built_in.w_hh, built_in.b) for part in jnp.unstack(w, axis=-2)
    ]

    def by_hand(params, xs):
        start = jnp.zeros((xs.shape[0], params.b_r.shape[0]))
        step = functools.partial(own_step, params)
        return lax.scan(step, start, xs.swapaxes(0, 1))[1].swapaxes(0, 1)

    return {
        "jaxgru": (peers.batched, OwnParams(*parts)),
        "lax.scan": (by_hand, OwnParams(*parts)),
        "with weights": (peers.batched, NamedParams(*parts)),
        "the built-in GRU": (peers.batched, built_in),
    }


def world_models() -> dict[str, Any]:
    """Functions (params, data) -> the gradient of params."""
    (code,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
        if "def world_step" in block
    )
    page: dict[str, Any] = {"jax": jax, "jnp": jnp, "jaxgru": jaxgru}
    exec(compile(code, PAGE, "exec"), page)

    def by_hand(params, carry, tokens, actions, reset, key):
        def step(carry, inputs):
            x, fresh, key = inputs
            carry = jax.tree.map(lambda part: jnp.where(fresh, 0, part), carry)
            return page["world_step"](params, carry, x, key)

        actions = jnp.where(reset[:, None], 0, actions)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(STEPS))
        return lax.scan(step, carry, ((tokens, actions), reset, keys))

    def gradient(run):
        def loss(params, data):
            _, states = jax.vmap(run, (None, 0, 0, 0, 0, 0))(params, *data)
            return sum(jnp.mean(leaf * leaf) for leaf in states.values())

        return jax.jit(jax.grad(loss))

    return {"jaxgru": gradient(page["observe"]), "lax.scan": gradient(by_hand)}


def world_params() -> dict[str, Any]:
    """Random weights of the world model of docs/recipes/own_steps.md."""
    keys = iter(jax.random.split(jax.random.key(0), 10))

    def layer(*shape, out=None):
        w = jax.random.normal(next(keys), shape) * shape[-2] ** -0.5
        out = shape[-1] if out is None else out
        return {"w": w, "b": jnp.zeros(out), "scale": jnp.ones(out)}

    block, drawn = DETER // BLOCKS, STOCH[0] * STOCH[1]
    w = jax.random.normal(next(keys), (BLOCKS, block, 3, block)) * block**-0.5
    logits = layer(WIDTH, drawn)
    return {
        "deter": layer(DETER, WIDTH),
        "stoch": layer(drawn, WIDTH),
        "action": layer(ACTIONS, WIDTH),
        "hidden": layer(BLOCKS, block + 3 * WIDTH, block, out=DETER),
        "gates": {"w": w, "b": jnp.zeros((3, DETER))},
        "posterior": layer(DETER + TOKENS, WIDTH),
        "logits": {"w": logits["w"], "b": logits["b"]},
    }


def world_data() -> tuple[Any, ...]:
    """(carries, tokens, actions, reset, keys) of a batch."""
    keys = jax.random.split(jax.random.key(1), 4)
    carry = {"deter": jnp.zeros((BATCH, DETER)), "stoch": jnp.zeros((BATCH, *STOCH))}
    tokens = jax.random.normal(keys[0], (BATCH, STEPS, TOKENS))
    actions = jax.random.normal(keys[1], (BATCH, STEPS, ACTIONS))
    reset = jax.random.bernoulli(keys[2], 0.05, (BATCH, STEPS))
    return carry, tokens, actions, reset, jax.random.split(keys[3], BATCH)
