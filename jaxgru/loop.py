"""A loop over one sequence for any step: `jax.lax.scan` with lengths, resets and random keys."""

import weakref
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgru import checks, sequence
from jaxgru.backends.scans import scan_chunks
from jaxgru.cell import is_cell
from jaxgru.mesh import alike


def loop(
    step: Callable[..., tuple[Any, Any]],
    carry: Any,
    xs: Any,
    *,
    length: Any = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reset_carry: Any = None,
    reverse: bool = False,
    key: Array | None = None,
    checkpoint: int | None = None,
) -> tuple[Any, Any]:
    """Run a step of your own over one sequence, with the lengths and resets of `scan`.

        carry_t, y_t = step(carry_{t-1}, x_t),    t = 0 .. T - 1

    With a key the step is called as step(carry_{t-1}, x_t, jax.random.fold_in(key, t)), in either
    direction. `jax.vmap` runs a batch.

    The step also runs in the padding and at holes. There it gets the input and the key of the first
    real step, and the carry before that step, and its results are dropped. So its derivatives in
    the padding are finite if those of the first real step are. If no step is real, the step gets
    `carry` and inputs of 0.5, or 0 for integers. A step that has no derivative at these values must
    handle this case itself.

    Args:
        step: a pure function (carry, x) -> (carry, y) of one time step. The carry keeps its
            structure, shapes and dtypes.
        carry: where to start, any tree of arrays.
        xs: any tree of arrays `[T, ...]`, with at least one leaf. For a step without inputs, pass
            `jnp.arange(T)`: each step then gets its number. Keys of your own are inputs like any
            other.
        length: how many of the T steps are real. It is an integer scalar, and may be traced. The
            steps after them are the padding, where every leaf of ys is zero or False. The returned
            carry is the one after the last real step. The contents of the padding, NaN included,
            affect neither values nor gradients. A traced length outside [0, T] is clipped.
        mask: bool `[T]`. False at t makes a hole of step t: the loop runs as if the sequence had no
            such step. With length, a step is real if the mask is True there and the step is not in
            the padding.
        reset: bool `[T]`. True at t starts a new segment at t. Nothing passes from one segment to
            another, in either direction. A reset at a hole still starts its segment. Flags at and
            after length are ignored.
        reset_carry: a tree like carry, from which segments start. None stands for zeros and False.
            With reset it must be given if carry holds random keys.
        reverse: whether to run from the last real step to the first. The ys stay in the order of
            xs.
        key: a `jax.random.key`, from which every step gets a key of its own.
        checkpoint: k saves the carry only every k steps. The gradient computes the others again.
            None saves the carries of all steps.

    Returns:
        (carry after the last step processed, the ys of all steps, leaves `[T, ...]`).

    Raises:
        TypeError: the step is not a function, does not return a pair, or changes the structure or
            a dtype of the carry; or an argument has the wrong type.
        ValueError: the step changes a shape of the carry; a shape or value does not fit; or an
            option would have no effect.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> def step(total, x):
        ...     total = {"sum": total["sum"] + x, "count": total["count"] + 1}
        ...     return total, total["sum"] / total["count"]
        >>> start = {"sum": jnp.zeros(()), "count": jnp.zeros(())}
        >>> xs = jnp.asarray([1.0, 3.0, 8.0, jnp.nan])
        >>> total, means = jaxgru.loop(step, start, xs, length=3)
        >>> total["sum"].item(), means.tolist()
        (12.0, [1.0, 2.0, 4.0, 0.0])
        >>> reset = jnp.asarray([False, False, True, False])
        >>> jaxgru.loop(step, start, xs, reset=reset, length=3)[1].tolist()
        [1.0, 2.0, 8.0, 0.0]
    """
    _check(step, carry, xs, length, mask, reset, reset_carry, reverse, key)
    if checkpoint is not None:
        checkpoint = checks.size("loop", "checkpoint", checkpoint)
    data = (carry, xs, length, mask, reset, reset_carry, key)
    return _program(step, _Options(reverse, checkpoint))(*jax.tree.map(jnp.asarray, data))


class _Options(NamedTuple):
    """The options that are part of the program, and not data."""

    reverse: bool
    checkpoint: int | None


_programs: Any = weakref.WeakKeyDictionary()


def _program(step: Callable[..., Any], options: _Options) -> Callable[..., Any]:
    """The loop over this step, which JAX compiles once per shape as long as the step lives.

    Only functions are cached: any other callable object may have changed since the last call.
    """
    if not isinstance(step, FunctionType):
        return partial(_run, step, options)
    programs = _programs.setdefault(step, {})
    if options not in programs:
        alive: Any = weakref.ref(step)  # otherwise the table would keep its own key alive

        def program(*data):
            return _run(alive(), options, *data)

        programs[options] = jax.jit(program)
    return programs[options]


def _run(step, options, carry, xs, length, mask, reset, reset_carry, key):
    steps = jax.tree.leaves(xs)[0].shape[0]
    if steps == 0:
        length = mask = reset = None
    inputs = (xs,)
    if key is not None:
        inputs = (xs, jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(steps)))
    if reset_carry is None:
        reset_carry = jax.tree.map(jnp.zeros_like, carry)
    marks = sequence.marks(length, reset, steps, mask)
    return run("loop", step, carry, inputs, marks, reset_carry, *options)


def run(
    caller: str,
    step: Callable[..., tuple[Any, Any]],
    carry: Any,
    inputs: tuple[Any, ...],
    marks: sequence.Marks,
    reset_carry: Any,
    reverse: bool,
    checkpoint: int | None,
) -> tuple[Any, Any]:
    """Run the loop over step(carry, *inputs of a time step). The arguments are checked arrays."""
    fresh, valid = sequence.entered(marks, reverse), marks.valid
    carry, reset_carry, inputs, fresh, valid = alike((carry, reset_carry, inputs, fresh, valid))
    again = None
    if valid is not None:
        again = first_real(reverse, carry, reset_carry, inputs, fresh, valid)

    def body(carry, now):
        inputs, fresh, real = now
        before = carry if fresh is None else _select(fresh, reset_carry, carry)
        if real is None:
            return checked(caller, step(before, *inputs), carry)
        at, inputs = _select(real, (before, inputs), again)
        after, y = checked(caller, step(at, *inputs), carry)
        return _select(real, after, before), _select(real, y, jax.tree.map(jnp.zeros_like, y))

    def stretch(carry, now):
        return lax.scan(body, carry, now, reverse=reverse)

    stream = (inputs, fresh, valid)
    if checkpoint is None:
        return stretch(carry, stream)
    stretch = jax.checkpoint(stretch, prevent_cse=False)
    return scan_chunks(stretch, carry, stream, checkpoint, reverse)


def _select(which, one, other):
    return jax.tree.map(partial(jnp.where, which), one, other)


def first_real(
    reverse: bool, carry: Any, reset_carry: Any, inputs: Any, fresh: Array | None, valid: Array
) -> tuple[Any, Any]:
    """(carry, inputs) of the first real step in this direction.

    The step runs on them in the padding. To select among the results would not be enough: where the
    step's derivative is infinite, zero times it is NaN, and this NaN would enter the gradient of
    everything that the step closes over. The gradient of these copies is zero, so it is not
    computed.
    """
    steps = valid.shape[0]
    ahead = jnp.flip(valid) if reverse else valid
    at = jnp.argmax(ahead)  # 0 if no step is real
    at = steps - 1 - at if reverse else at
    if fresh is not None:
        passed = jnp.arange(steps) >= at if reverse else jnp.arange(steps) <= at
        carry = _select(jnp.any(fresh & passed), reset_carry, carry)
    inputs = jax.tree.map(lambda a: a[at], inputs)
    inputs = _select(jnp.any(valid), inputs, jax.tree.map(_harmless, inputs))
    return lax.stop_gradient((carry, inputs))


def _harmless(x):
    """Inputs if no step is real. They are not 0, where logarithms and roots have no derivative."""
    return jnp.full_like(x, 0.5) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.zeros_like(x)


def checked(caller: str, result: Any, carry: Any) -> tuple[Any, Any]:
    """Check that the step returned (next carry, y), and return it."""
    if type(result) is not tuple or len(result) != 2:  # LSTMCarry(h, c) is no such pair
        got = f"{len(result)} values" if type(result) is tuple else checks.describe(result)
        fix = "If the carry is also the output, return carry, carry."
        raise checks.error(TypeError, caller, "what step returns", "a tuple (carry, y)", got, fix)
    after, y = jax.tree.map(jnp.asarray, result)
    fix = "A carry keeps its structure, shapes and dtypes. Cast it in the step or at the start."
    _check_like(caller, "the next carry", after, carry, fix)
    return after, y


def _check(step, carry, xs, length, mask, reset, reset_carry, reverse, key):
    if not callable(step):
        fix = "jaxgru.scan runs a network with these params." if is_cell(step) else ""
        expected = "a function (carry, x) -> (carry, y)"
        raise checks.error(TypeError, "loop", "step", expected, checks.describe(step), fix)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if not _is_data(leaf):
            name, fix = _name("carry", path), "jnp.float32(0), for example, is an array."
            raise checks.error(TypeError, "loop", name, "an array", checks.describe(leaf), fix)
    steps = _check_xs(xs)
    if length is not None:
        checks.length("loop", length, steps)
    if mask is not None:
        checks.flags("loop", "mask", mask, (steps,))
    if reset is not None:
        checks.flags("loop", "reset", reset, (steps,))
    if reset_carry is not None:
        checks.reset_given("loop", reset)
        _check_like(
            "loop", "reset_carry", reset_carry, carry, "Segments start from a tree like carry."
        )
    elif reset is not None and any(map(_is_key, jax.tree.leaves(carry))):
        fix = "Zeros, the default, would give all segments the same keys."
        expected = "given if carry contains keys"
        raise checks.error(ValueError, "loop", "reset_carry", expected, "None", fix)
    checks.flag("loop", "reverse", reverse)
    if key is not None:
        checks.key("loop", key)


def _check_xs(xs) -> int:
    """Check xs, and return the number of steps."""
    leaves = jax.tree_util.tree_leaves_with_path(xs)
    fix = "For a step without inputs, pass xs=jnp.arange(T)."
    if not leaves:
        raise checks.error(
            ValueError, "loop", "xs", "a tree that contains an array", f"{xs!r}", fix
        )
    first, steps = "", 0
    for path, leaf in leaves:
        name, got = _name("xs", path), checks.describe(leaf)
        if not _is_data(leaf) or len(leaf.shape) == 0:
            raise checks.error(TypeError, "loop", name, "an array of shape [T, ...]", got, fix)
        if not first:
            first, steps = name, leaf.shape[0]
        elif leaf.shape[0] != steps:
            expected = f"an array of shape [{steps}, ...], as many steps as {first} has"
            raise checks.error(ValueError, "loop", name, expected, got)
    return steps


def _check_like(caller, name, value, like, fix):
    """Check that value has the structure, shapes and dtypes of the carry `like`."""
    if jax.tree.structure(value) != jax.tree.structure(like):
        expected, got = (str(checks.value_types(tree)) for tree in (like, value))
        raise checks.error(TypeError, caller, name, f"{expected}, like carry", got, fix)
    pairs = zip(jax.tree_util.tree_leaves_with_path(value), jax.tree.leaves(like), strict=True)
    for (path, leaf), other in pairs:
        same_dtype = _is_data(leaf) and checks.dtype_of(leaf) == checks.dtype_of(other)
        if not same_dtype or leaf.shape != other.shape:
            expected = f"{checks.dtype_of(other)}{list(other.shape)}, like carry"
            kind = ValueError if same_dtype else TypeError
            got = checks.describe(leaf)
            raise checks.error(kind, caller, _name(name, path), expected, got, fix)


def _name(name, path):
    return name + jax.tree_util.keystr(path)


def _is_data(leaf):
    """Whether leaf is an array that JAX can hold. Arrays of strings or objects are not."""
    kinds = (jnp.number, jnp.bool_, jax.dtypes.prng_key)
    return checks.is_array(leaf) and any(
        jnp.issubdtype(checks.dtype_of(leaf), kind) for kind in kinds
    )


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
