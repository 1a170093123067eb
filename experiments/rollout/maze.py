"""A T-maze (after Bakker 2002), as pure functions. A cue at the entrance says where to turn.

The first observation of an episode shows the cue, left or right. A corridor of random length
follows. All observations in it are the same, and any action leads one step further. At the junction
the action that the cue named earns 1, and the other action costs 1. The next observation is the
first of another episode.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

OBSERVATION = 4  # cue left, cue right, corridor, junction
ACTIONS = 2  # left, right


class Maze(NamedTuple):
    """The state of one environment."""

    cue: Array  # int32: the action that will be right
    ahead: Array  # int32: steps to the junction
    fresh: Array  # bool: whether this is the first step of an episode


def enter(key: Array, shortest: int, longest: int) -> Maze:
    """Begin an episode whose junction is from shortest to longest steps ahead."""
    cue_key, length_key = jax.random.split(key)
    cue = jax.random.randint(cue_key, (), 0, ACTIONS, jnp.int32)
    ahead = jax.random.randint(length_key, (), shortest, longest + 1, jnp.int32)
    return Maze(cue, ahead, jnp.array(True))


def observe(maze: Maze) -> Array:
    """The observation, a one-hot vector `[4]`."""
    place = jnp.where(maze.ahead == 0, 3, 2)
    return jax.nn.one_hot(jnp.where(maze.fresh, maze.cue, place), OBSERVATION, dtype=jnp.float32)


def walk(maze: Maze, action: Array, another: Maze) -> tuple[Maze, Array, Array]:
    """(the maze after the action, or another one, the reward, whether the episode is over)."""
    done = maze.ahead == 0
    right = jnp.where(action == maze.cue, 1.0, -1.0).astype(jnp.float32)
    onward = Maze(maze.cue, maze.ahead - 1, jnp.array(False))
    maze = jax.tree.map(lambda new, old: jnp.where(done, new, old), another, onward)
    return maze, jnp.where(done, right, jnp.zeros_like(right)), done
