"""Training on the device: many updates in one compiled call, on data drawn from the key.

A task is two pure functions of one example: `sample(key) -> example` and
`loss(params, example) -> scalar`. To train several seeds in one program, `jax.vmap` over the state:

    jax.vmap(train_chunk, in_axes=(0, None, None))(states, updates, test_set)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

Sample = Callable[[Array], Any]
Loss = Callable[[Any, Any], Array]

EVAL_BATCH = 100  # bounds the memory of an evaluation, whatever the size of the test set


class TrainState(NamedTuple):
    params: Any
    opt_state: optax.OptState
    key: Array  # of the training data; that of update k is fold_in(key, k)
    update: Array  # int32: updates done


class Losses(NamedTuple):
    train: Array  # mean over the chunk's updates, each taken before its update
    test: Array  # after the chunk


TrainChunk = Callable[[TrainState, Array, Any], tuple[TrainState, Losses]]


def train_init(params: Any, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    return TrainState(params, optimizer.init(params), key, jnp.zeros((), jnp.int32))


def draw_batch(sample: Sample, key: Array, size: int) -> Any:
    return jax.vmap(sample)(jax.random.split(key, size))


def make_train_chunk(
    sample: Sample, loss: Loss, optimizer: optax.GradientTransformation, batch_size: int
) -> TrainChunk:
    """`(state, updates, test_set) -> (state, losses)`: that many updates, then an evaluation.

    `updates` is an int32 scalar and may be traced, so one program serves chunks of every size, and
    how a run is cut into chunks changes nothing that it computes.
    """

    def batch_loss(params: Any, batch: Any) -> Array:
        return jax.vmap(loss, in_axes=(None, 0))(params, batch).mean()

    def train_chunk(state: TrainState, updates: Array, test_set: Any) -> tuple[TrainState, Losses]:
        def one_update(_: Array, carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            (params, opt_state, key, update), total = carry
            batch = draw_batch(sample, jax.random.fold_in(key, update), batch_size)
            value, grads = jax.value_and_grad(batch_loss)(params, batch)
            steps, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, steps)
            return TrainState(params, opt_state, key, update + 1), total + value

        start = (state, jnp.zeros((), jnp.float32))
        state, total = lax.fori_loop(jnp.zeros_like(updates), updates, one_update, start)
        test_losses = lax.map(lambda e: loss(state.params, e), test_set, batch_size=EVAL_BATCH)
        return state, Losses(total / updates.astype(jnp.float32), test_losses.mean())

    return train_chunk
