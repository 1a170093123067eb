"""The optimizer and the learning rate of a study, built from Optax."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import optax
from jax import Array

from experiments.common.settings import Settings

RULES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": optax.scale_by_adam,
    "nadam": partial(optax.scale_by_adam, nesterov=True),
    "rmsprop": optax.scale_by_rms,
    "sgd": optax.identity,
}


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """The optimizer without the learning rate, which can differ between the runs of a program."""
    rule = RULES[settings.optimizer]()
    if not settings.clip_norm:
        return rule
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), rule)


def learning_rate(settings: Settings, peak: Array, count: Array) -> Array:
    """The learning rate after `count` updates of the schedule."""
    schedule = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, settings.updates),
        "exponential": lambda: optax.exponential_decay(
            peak, settings.half_life, 0.5, end_value=settings.floor * peak
        ),
    }[settings.schedule]()
    return jnp.asarray(schedule(count))
