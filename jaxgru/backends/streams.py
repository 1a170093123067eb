"""Streams of values over time that are not arrays with time first.

A scan over stretches of time reads them by the number of the first step of a stretch.
"""

import abc
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax


class Indexed(abc.ABC):
    """A stream whose stretches are read by the number of their first step."""

    @abc.abstractmethod
    def steps(self, start: Any, size: int) -> Any:
        """The stretch of `size` steps that begins at `start`."""

    @abc.abstractmethod
    def whole(self) -> Any:
        """The stretch of all steps."""


class Start(Indexed):
    """The number of the first step of each stretch."""

    def steps(self, start: Any, size: int) -> Any:
        """The number."""
        del size
        return start

    def whole(self) -> Any:
        """Zero."""
        return 0


@dataclass(frozen=True)
class BatchFirst(Indexed):
    """An array `[T, ..., B, F]` that is stored as `[B, T, ..., F]`.

    Each stretch is transposed when the loop reads it, and a stretch is small enough for a cache.
    Transposing the whole array would make another large array.
    """

    stored: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape with time first."""
        batch, *others, features = self.stored.shape
        return (*others, batch, features)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.stored.ndim

    @property
    def dtype(self) -> Any:
        """The dtype of the array."""
        return self.stored.dtype

    def steps(self, start: Any, size: int) -> Array:
        """A stretch with time first."""
        return jnp.moveaxis(stretch_at(self.stored, start, size, axis=1), 0, -2)

    def whole(self) -> Array:
        """The array with time first."""
        return jnp.moveaxis(self.stored, 0, -2)


def stretch_at(a: Array, start: Any, size: int, axis: int = 0) -> Array:
    """The elements of `a` from start to start + size along an axis, for start >= 0."""
    return lax.dynamic_slice_in_dim(a, start, size, axis, allow_negative_indices=False)
