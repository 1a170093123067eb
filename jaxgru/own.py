"""Cells that are registered without weights. They run like `jaxgru.loop`."""

from typing import Any

import jax
from jax import Array

from jaxgru import checks, sequence
from jaxgru.cell import Carry, Params, StepCell, accumulator, cell_of
from jaxgru.loop import checked
from jaxgru.loop import run as run_loop


def run(
    params: Params,
    xs: Array,
    carry: Carry,
    marks: sequence.Marks,
    reset_carry: Carry | None,
    reverse: bool,
    checkpoint: int | None,
) -> tuple[Carry, Array]:
    """(last carry, outputs `[T, H]`) over one sequence."""
    projected = inputs("scan", params, xs)

    # The gradient of params is a sum over time, in the dtype of the params that the loop closes
    # over. A sum in 16 bits stops growing after some hundred steps, so the loop closes over copies
    # of at least 32 bits.
    wide = jax.tree.map(lambda leaf: leaf.astype(accumulator(leaf.dtype)), params)

    def step(carry: Carry, inputs: Any) -> tuple[Carry, Array]:
        same = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), wide, params)
        return advance("scan", same, carry, inputs)

    return run_loop("scan", step, carry, (projected,), marks, reset_carry, reverse, checkpoint)


def inputs(caller: str, params: Params, xs: Array) -> Any:
    """The inputs of the steps, computed from xs: a tree of `[T, ...]`."""
    projected = cell_of(params).project(params, xs)
    if not jax.tree.leaves(projected):
        expected = "a tree with an array in it"
        raise checks.error(TypeError, caller, "what project returns", expected, f"{projected}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(projected):
        if not (checks.is_array(leaf) and leaf.shape[:1] == xs.shape[:1]):
            name = "what project returns" + jax.tree_util.keystr(path)
            expected = f"an array of shape [{xs.shape[0]}, ...]"
            raise checks.error(TypeError, caller, name, expected, checks.describe(leaf))
    return projected


def advance(caller: str, params: Params, carry: Carry, inputs: Any) -> tuple[Carry, Array]:
    """Run one step, and check that it returns (next carry, output `[H]`)."""
    cell: StepCell = cell_of(params)
    after, y = checked(caller, cell.step(params, carry, inputs), carry)
    size, dtype = cell.sizes(params)[1], checks.dtype_of(jax.tree.leaves(params)[0])
    name = f"the output of {type(params).__name__}'s step"
    if not isinstance(y, jax.Array):
        expected, got = f"an array of shape [{size}]", checks.describe(y)
        raise checks.error(TypeError, caller, name, expected, got)
    checks.array(caller, name, y, (size,), "Its sizes say so.")
    if y.dtype != dtype:
        raise checks.error(TypeError, caller, name, f"{dtype} as params are", checks.describe(y))
    return after, y
