"""What says how a platform runs the loop, and what happens where its kernel cannot run."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple


class Plan(NamedTuple):
    """How a platform runs the loop: sizes from which another way becomes faster there."""

    in_loop: int
    """Inputs up to this size are projected step by step, others a stretch of time at once."""
    hoisted: int
    """Bytes of projected inputs up to which all of time is one stretch, and backward too."""
    wide: float
    """H from here on: states are kept as columns, and weights stand left in the product."""
    wide_tangent: float
    """H from here on: the backward product takes the weights as they are."""
    rows: int
    """Rows of a product over a stretch of time, where the next two do not allow for more."""
    forward: int
    """Rows times H over a stretch of the forward pass."""
    backward: int
    """Rows times H over a stretch of the backward pass."""
    unroll: int
    """Steps in one turn of the loop."""
    gates_in_loop: bool
    """Whether saved gates are written by the loop, or computed a stretch at once after it."""
    merged: bool = True
    """Whether time and batch are one axis in the products over a stretch."""
    divided: bool = False
    """Whether a batch may lie on several devices."""
    kernel: Any = None
    """None, or () -> a function like `jaxgru.backends.hopper.scan`, which runs the loop over a
    stretch of time. Both may raise `Declined`."""
    loop: Any = None
    """The plan where the kernel cannot run."""


class Declined(Exception):
    """The kernel of a plan cannot run this."""


def or_loop(run: Callable[..., Any]) -> Callable[..., Any]:
    """run(plan, ...), by the plan's loop where its kernel cannot run."""

    @wraps(run)
    def chosen(plan: Plan, *rest: Any, **options: Any) -> Any:
        try:
            return run(plan, *rest, **options)
        except Declined:
            return run(plan.loop, *rest, **options)

    return chosen
