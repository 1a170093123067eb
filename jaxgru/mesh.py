"""The mesh axes that the arrays of one call have in common."""

from collections.abc import Iterable
from typing import Any

import jax
from jax import lax


def alike(tree: Any) -> Any:
    """Make all arrays vary over every mesh axis over which one of them varies.

    Inside `jax.shard_map` the type of an array says over which axes it differs from device to
    device. The carry that enters a loop must have the type of the carry that leaves it. A default
    carry is the same on all devices, but a batch is not.
    """
    leaves, structure = jax.tree.flatten(tree)
    every = frozenset().union(*map(varying, leaves))
    if not every:
        return tree
    return structure.unflatten([vary(leaf, every) for leaf in leaves])


def vary(leaf: Any, axes: Iterable[Any]) -> Any:
    """Make an array vary over these mesh axes too."""
    missing = tuple(sorted(frozenset(axes) - varying(leaf)))
    return lax.pcast(leaf, missing, to="varying") if missing else leaf


def varying(leaf: Any) -> frozenset[Any]:
    """The mesh axes along which an array differs from device to device, by its type."""
    return jax.typeof(leaf).manual_axis_type.varying
