"""Train on the adding problem: `python -m experiments.adding_task --help`."""

import dataclasses
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
import tyro
from jax import Array
from rich.console import Console

from experiments.adding_task import task
from experiments.adding_task.config import Config, check
from experiments.common import training
from experiments.common.model import network_init, parameter_count
from experiments.common.run import EXIT_CODES, Plan, UsageError, make_folder, run

TEST_KEY = 2**32 - 1
TEST_EXAMPLES = 1000


def make_optimizer(config: Config) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), optax.adam(config.learning_rate)
    )


def init(config: Config, seed: Array) -> training.TrainState:
    """The state before the first update; a pure function of the seed."""
    network_key, data_key = jax.random.split(jax.random.key(seed))
    network = network_init(
        network_key, config.cell, task.INPUT_SIZE, config.hidden_size, task.OUTPUT_SIZE
    )
    return training.train_init(network, make_optimizer(config), data_key)


def train(config: Config, console: Console) -> int:
    sample = task.sampler(config.layout, config.length)
    state = jax.jit(init, static_argnums=0)(config, jnp.uint32(config.seed))
    test_set = training.draw_batch(sample, jax.random.key(TEST_KEY), TEST_EXAMPLES)
    train_chunk = training.make_train_chunk(
        sample, task.squared_error, make_optimizer(config), config.batch_size
    )
    plan = Plan(
        title=f"Adding problem, T={config.length}, {config.layout}, {config.cell} "
        f"of {config.hidden_size} units",
        config=dataclasses.asdict(config) | {"out": str(config.out)},
        parameters=parameter_count(state.params),
        updates=config.updates,
        eval_every=config.eval_every,
        batch_size=config.batch_size,
        baseline=task.BASELINE,
        threshold=task.SOLVED,
    )
    return run(console, plan, config.out, train_chunk, state, test_set)


def main(args: Sequence[str] | None = None) -> int:
    config = tyro.cli(Config, prog="python -m experiments.adding_task", args=args)
    try:
        check(config)
        make_folder(config.out)
        return train(config, Console(highlight=False))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before there was anything to record
        return EXIT_CODES["interrupted"]


if __name__ == "__main__":
    sys.exit(main())
