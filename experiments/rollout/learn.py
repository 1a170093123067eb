"""Advantage actor-critic with a recurrent network. Both acting and learning run on the device.

All functions are for one environment, and `jax.vmap` runs many. A flag marks where an episode
begins. There, acting starts the step from zeros. Learning passes the flags of the whole rollout to
`jaxgru.scan` as `reset`, with the carry at the start of the rollout.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

import jaxgru
from experiments.rollout.maze import ACTIONS, OBSERVATION, Maze, enter, observe, walk
from experiments.rollout.settings import RolloutSettings

VALUE = 0.5  # the weight of the critic's loss
CLIP = 1.0  # largest global norm of a gradient


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Agent:
    """A GRU and a linear read-out `[H, A + 1]` for the logits of the actions and the value."""

    cell: jaxgru.GRUParams
    w_out: Array
    b_out: Array


class Actor(NamedTuple):
    """One environment and the network's memory of it."""

    maze: Maze
    carry: Array


class Steps(NamedTuple):
    """A rollout of one environment, leaves `[T, ...]`."""

    xs: Array
    reset: Array  # bool: whether the state was reset before this step
    action: Array
    reward: Array
    done: Array
    logits: Array


class Learner(NamedTuple):
    agent: Agent
    opt_state: optax.OptState
    actors: Actor  # [environments, ...]
    memory: Array  # bool: if False, the state is reset at every step
    key: Array


Advance = Callable[[Learner], tuple[Learner, dict[str, Array]]]


def agent_init(key: Array, hidden_size: int) -> Agent:
    cell_key, out_key = jax.random.split(key)
    w_out = jax.random.normal(out_key, (hidden_size, ACTIONS + 1), jnp.float32)
    return Agent(
        cell=jaxgru.gru_init(cell_key, OBSERVATION, hidden_size),
        w_out=0.1 * w_out / hidden_size**0.5,
        b_out=jnp.zeros(ACTIONS + 1, jnp.float32),
    )


def read_out(agent: Agent, hs: Array) -> tuple[Array, Array]:
    """`[..., H] ->` (logits `[..., A]`, values `[...]`)."""
    both = hs @ agent.w_out
    both = both + jnp.broadcast_to(agent.b_out, both.shape)
    return both[..., :ACTIONS], both[..., ACTIONS]


def act(
    settings: RolloutSettings, agent: Agent, memory: Array, actor: Actor, key: Array
) -> tuple[Actor, Steps]:
    """Act in one environment: (the actor after these steps, the steps)."""

    def one(actor: Actor, key: Array) -> tuple[Actor, Steps]:
        action_key, maze_key = jax.random.split(key)
        maze = actor.maze
        reset = maze.fresh | ~memory
        carry, h = jaxgru.step(agent.cell, actor.carry, observe(maze), reset=reset)
        logits, _ = read_out(agent, h)
        action = jax.random.categorical(action_key, logits).astype(jnp.int32)
        another = enter(maze_key, settings.shortest, settings.longest)
        onward, reward, done = walk(maze, action, another)
        return Actor(onward, carry), Steps(observe(maze), reset, action, reward, done, logits)

    return lax.scan(one, actor, jax.random.split(key, settings.steps))


def relearn(agent: Agent, carry: Array, steps: Steps) -> tuple[Array, Array]:
    """(logits `[T, A]`, values `[T]`) of a rollout that began with this carry."""
    _, hs = jaxgru.scan(agent.cell, steps.xs, carry, reset=steps.reset)
    return read_out(agent, hs)


def returns(discount: float, steps: Steps, last: Array) -> Array:
    """The discounted returns `[T]` of each episode. A value stands in for the part cut off.

    G_t = r_t + discount * (1 - done_t) * G_{t+1},    G_{T+1} = last
    """

    def one(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = step
        now = reward + jnp.where(done, jnp.zeros_like(later), discount * later)
        return now, now

    return lax.scan(one, last, (steps.reward, steps.done), reverse=True)[1]


def loss(
    settings: RolloutSettings, memory: Array, agent: Agent, start: Actor, end: Actor, steps: Steps
) -> Array:
    """The loss of one environment's rollout from start to end."""
    logits, values = relearn(agent, start.carry, steps)
    reset = end.maze.fresh | ~memory
    _, h = jaxgru.step(agent.cell, end.carry, observe(end.maze), reset=reset)
    _, last = read_out(agent, h)
    targets = returns(settings.discount, steps, lax.stop_gradient(last))
    logs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logs, steps.action[:, None], axis=1)[:, 0]
    advantage = targets - values
    actor_loss = -(chosen * lax.stop_gradient(advantage)).mean()
    entropy = -(jnp.exp(logs) * logs).sum(axis=1).mean()
    return actor_loss + VALUE * (advantage**2).mean() - settings.entropy * entropy


def make_learner(
    settings: RolloutSettings,
) -> tuple[Callable[[Array], Learner], Callable[[int], Advance]]:
    """(`memory -> learner`, `updates -> (learner -> (learner, what happened))`).

    What happened consists of `success`, the share of finished episodes that ended well, the number
    of these `episodes`, and the mean `loss`.
    """
    rate = settings.learning_rate
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(rate))

    def init(memory: Array) -> Learner:
        agent_key, maze_key, key = jax.random.split(jax.random.key(settings.seed), 3)
        agent = agent_init(agent_key, settings.hidden_size)
        keys = jax.random.split(maze_key, settings.environments)
        mazes = jax.vmap(lambda key: enter(key, settings.shortest, settings.longest))(keys)
        carries = jnp.zeros((settings.environments, settings.hidden_size), jnp.float32)
        opt_state = optimizer.init(cast(Any, agent))
        return Learner(agent, opt_state, Actor(mazes, carries), memory, key)

    def update(learner: Learner, _: None) -> tuple[Learner, dict[str, Array]]:
        agent, opt_state, actors, memory, key = learner
        key, act_key = jax.random.split(key)
        keys = jax.random.split(act_key, settings.environments)
        run = jax.vmap(lambda actor, key: act(settings, agent, memory, actor, key))
        ends, steps = run(actors, keys)

        def mean_loss(agent: Agent) -> Array:
            each = jax.vmap(lambda *rollout: loss(settings, memory, agent, *rollout))
            return each(actors, ends, steps).mean()

        value, grads = jax.value_and_grad(mean_loss)(agent)
        changes, opt_state = optimizer.update(grads, opt_state, cast(Any, agent))
        changed: Any = optax.apply_updates(cast(Any, agent), changes)
        counts = {
            "loss": value,
            "episodes": steps.done.sum(dtype=jnp.int32),
            "well": (steps.reward > 0).sum(dtype=jnp.int32),
        }
        return Learner(changed, opt_state, ends, memory, key), counts

    def advance(updates: int, learner: Learner) -> tuple[Learner, dict[str, Array]]:
        learner, counts = lax.scan(update, learner, None, length=updates)
        episodes = counts["episodes"].sum(dtype=jnp.int32)
        well = counts["well"].sum(dtype=jnp.int32)
        success = well.astype(jnp.float32) / episodes.astype(jnp.float32)
        return learner, {"loss": counts["loss"].mean(), "episodes": episodes, "success": success}

    return init, lambda updates: partial(advance, updates)
