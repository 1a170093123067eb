"""Training on the device: many updates in one compiled call, on data drawn from the seed.

All functions here are for one run. `jax.vmap` over the state runs several, with different seeds and
learning rates, in one program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from experiments.common.model import Network, network_init, read_out, states
from experiments.common.optimizers import learning_rate, make_optimizer
from experiments.common.settings import Settings
from experiments.common.task import Example, Stage, Task

WEIGHTS, DATA, TEST = range(3)  # the purposes of keys
TEST_SEED = 2**32 - 1
EVAL_STEPS = 100_000  # examples times time steps evaluated at once, which bounds the memory


class TrainState(NamedTuple):
    network: Network
    opt_state: optax.OptState
    seed: Array  # uint32
    learning_rate: Array
    update: Array  # int32: the number of updates done
    decayed: Array  # int32: how many of them advanced the schedule


class Chunk(NamedTuple):
    """The outcome of a chunk of updates."""

    means: dict[str, Array]  # over the updates, each measured before the update
    broken: Array  # int32: the first update with a loss, gradient or weight not finite, or 0


def train_init(task: Task, settings: Settings, seed: Array, peak: Array) -> TrainState:
    """The state before the first update, a pure function of the seed."""
    network_key, own_key = jax.random.split(_key(seed, WEIGHTS))
    network = network_init(network_key, settings, task.input_size, task.output_size)
    return first_state(settings, task.prepare(own_key, network), seed, peak)


def first_state(settings: Settings, network: Network, seed: Array, peak: Array) -> TrainState:
    """The state before the first update of a network."""
    opt_state = make_optimizer(settings).init(cast(Any, network))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(network, opt_state, seed, peak, zero, zero)


def make_train_chunk(
    task: Task, settings: Settings, length: int, axis: str | None = None
) -> Callable[[TrainState, Array, Array, Array], tuple[TrainState, Chunk]]:
    """`(state, updates, level, decay) -> (state, what happened)`.

    All three are int32 scalars and may be traced, so one program serves chunks of every size. The
    division of a run into chunks does not change its results. `level` and `decay` are those of a
    `Stage`. `axis` is the mesh axis over which the batch is divided.
    """
    sample = task.sampler(length)
    scale = task.loss_scale(length)
    optimizer = make_optimizer(settings)

    def batch_loss(network: Network, batch: Example) -> tuple[Array, dict[str, Array]]:
        measures = jax.vmap(lambda example: _measure(task, settings, network, example))(batch)
        means = jax.tree.map(lambda values: values.astype(jnp.float32).mean(), measures)
        return scale * means["loss"], means

    def train_chunk(
        state: TrainState, updates: Array, level: Array, decay: Array
    ) -> tuple[TrainState, Chunk]:
        data_key = _key(state.seed, DATA)

        def one_update(_: Array, carry: tuple[TrainState, Chunk]) -> tuple[TrainState, Chunk]:
            state, chunk = carry
            params: Any = state.network
            # JAX would sum the gradients of params that are the same on all devices.
            local = lax.pcast(params, axis, to="varying") if axis else params
            keys = jax.random.split(jax.random.fold_in(data_key, state.update), settings.batch_size)
            keys = keys[_share(settings.batch_size, axis)]
            batch = jax.vmap(sample, in_axes=(0, None))(keys, level)
            grads, means = jax.grad(batch_loss, has_aux=True)(local, batch)
            if axis:
                grads, means = lax.pmean((grads, means), axis)
            steps, opt_state = optimizer.update(grads, state.opt_state, params)
            rate = learning_rate(settings, state.learning_rate, state.decayed)
            steps = jax.tree.map(lambda step: -rate.astype(step.dtype) * step, steps)
            network: Any = optax.apply_updates(params, steps)
            fine = _finite((means["loss"], optax.tree.norm(grads), network))
            update = state.update + 1
            broken = jnp.where((chunk.broken == 0) & ~fine, update, chunk.broken)
            totals = jax.tree.map(jnp.add, chunk.means, means)
            decayed = state.decayed + decay
            state = state._replace(
                network=network, opt_state=opt_state, update=update, decayed=decayed
            )
            return state, Chunk(totals, broken)

        zero = jnp.zeros_like(state.learning_rate, jnp.float32)  # varies over devices like the rate
        start = Chunk(dict.fromkeys(task.measures, zero), zero.astype(jnp.int32))
        state, chunk = lax.fori_loop(jnp.zeros_like(updates), updates, one_update, (state, start))
        count = updates.astype(jnp.float32)
        return state, chunk._replace(means={k: v / count for k, v in chunk.means.items()})

    return train_chunk


def make_evaluate(
    task: Task, settings: Settings, stage: Stage, axis: str | None = None
) -> Callable[[Network], dict[str, Array]]:
    """`network ->` means over the test set, which is the same for every run of a task.

    `axis` is the mesh axis over which the test set is divided.
    """
    sample = task.sampler(stage.length)
    keys = test_keys(settings.test_examples)
    batch_size = min(settings.test_examples, max(1, EVAL_STEPS // stage.length))

    def evaluate(network: Network) -> dict[str, Array]:
        def one(key: Array) -> dict[str, Array]:
            return _measure(task, settings, network, sample(key, jnp.int32(stage.level)))

        mine = _share(len(keys), axis)
        counted = (mine < len(keys)).astype(jnp.float32)
        measures = lax.map(one, keys[jnp.minimum(mine, len(keys) - 1)], batch_size=batch_size)
        sums = jax.tree.map(lambda values: (counted * values.astype(jnp.float32)).sum(), measures)
        sums = lax.psum(sums, axis) if axis else sums
        return jax.tree.map(lambda total: total / len(keys), sums)

    return evaluate


def test_keys(count: int) -> Array:
    """The keys of the held-out examples, which are the same for every run."""
    return jax.random.split(_key(jnp.uint32(TEST_SEED), TEST), count)


def _share(count: int, axis: str | None) -> Array:
    """The indices of this device's share of `count` examples. The last share may exceed them."""
    if axis is None:
        return jnp.arange(count, dtype=jnp.int32)
    each = -(-count // lax.axis_size(axis))
    return lax.axis_index(axis) * each + jnp.arange(each, dtype=jnp.int32)


def _measure(
    task: Task, settings: Settings, network: Network, example: Example
) -> dict[str, Array]:
    hs = states(network, example.xs, settings.dtype, settings.checkpoint)
    return task.measure(read_out(network, hs), example)


def _finite(tree: Any) -> Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _key(seed: Array, purpose: int) -> Array:
    return jax.random.fold_in(jax.random.key(seed), purpose)
