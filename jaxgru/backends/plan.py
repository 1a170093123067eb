"""How a platform runs the loop, and the fallback if its kernel cannot run."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple


class Plan(NamedTuple):
    """How a platform runs the loop, with the sizes at which another method becomes faster."""

    in_loop: int
    """Inputs up to this size are projected at each step. Larger ones are projected by stretches."""
    hoisted: int
    """If the projected inputs take at most this many bytes, there is one stretch, also backward."""
    wide: float
    """From this H on, states are columns, and weights are the left operand of a product. This
    also needs a number of examples that is a multiple of `wide_batch`."""
    wide_tangent: float
    """From this H on, the backward product takes the weights without transposing them first."""
    rows: int
    """The rows of a product over a stretch of time, unless the next two fields allow more."""
    forward: int
    """The largest number of rows times H in a stretch of the forward pass."""
    backward: int
    """The largest number of rows times H in a stretch of the backward pass."""
    unroll: int
    """The number of steps in one iteration of the loop."""
    gates_in_loop: bool
    """Whether the loop writes the gates to save. Otherwise they are computed by stretches later."""
    wide_batch: int = 32
    """See `wide`. With other numbers of examples, products with columns take longer."""
    packed: bool = False
    """Whether arrays with several gates side by side stay in one piece. Then each step splits its
    projected inputs, and each backward step computes the operand of a product only once."""
    merged: bool = True
    """Whether products over a stretch merge time and batch into one axis."""
    batch_first: bool = False
    """Whether it can read inputs and outputs that a program stores with the batch before time."""
    divided: bool = False
    """Whether a batch may lie on several devices."""
    kernel: Any = None
    """None, or () -> a function like `jaxgru.backends.hopper.scan`, which runs the loop over a
    stretch of time. Both may raise `Declined`."""
    loop: Any = None
    """The plan if the kernel cannot run."""


class Declined(Exception):
    """Raised if the kernel of a plan cannot run a computation."""


def or_loop(run: Callable[..., Any]) -> Callable[..., Any]:
    """Make run(plan, ...) use the plan's `loop` if its kernel cannot run."""

    @wraps(run)
    def chosen(plan: Plan, *rest: Any, **options: Any) -> Any:
        try:
            return run(plan, *rest, **options)
        except Declined:
            return run(plan.loop, *rest, **options)

    return chosen
