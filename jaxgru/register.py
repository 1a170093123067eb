"""Cells that are made from their step: cells of your own, and some cells of this library."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax import Array

from jaxgru import cell, checks
from jaxgru.cell import StepCell
from jaxgru.equations import Weights, family
from jaxgru.forms import FORMS, weights
from jaxgru.layers import Bidirectional, Stack

#: The field names of `Stack` and `Bidirectional`. No form may have one of these names.
TAKEN = ("layers", "forward", "backward")
#: General containers, which cannot be params of a cell.
CONTAINERS = (object, dict, list, tuple)
#: The arguments of each function of a cell.
TAKEN_BY: dict[str, tuple[str, ...]] = {
    "step": ("params", "carry", "x"),
    "initial_carry": ("params",),
    "sizes": ("params",),
    "project": ("params", "xs"),
    "weights": ("params",),
    "check": ("caller", "params"),
}
STEP_WITH_WEIGHTS = ("params", "carry", "parts", "products")


def register(
    params_type: type,
    *,
    step: Callable[..., tuple[Any, Array]],
    initial_carry: Callable[[Any], Any],
    sizes: Callable[[Any], tuple[int, int]],
    project: Callable[[Any, Array], Any] | None = None,
    weights: Callable[[Any], Weights] | None = None,
    forms: Mapping[str, dict[str, Any]] | None = None,
    check: Callable[[str, Any], None] | None = None,
) -> None:
    """Make params of your own type a cell, which runs wherever the other cells do.

        carry_t, y_t = step(params, carry_{t-1}, x_t)
        carry_t, y_t = step(params, carry_{t-1}, u_t),    u = project(params, xs)
        carry_t, y_t = step(params, carry_{t-1}, parts_t, products)

    The second form is that of a cell with project, and the third that of a cell with weights.
    Afterwards `scan`, `step`, `Stack`, `Bidirectional` and `initial_carry` accept such params,
    alone or together with other cells, and with every option except compute_dtype, which needs
    weights. The cell supports `vmap` over data and params, and derivatives of any order in both
    modes. With forms, `save`, `to_dict` and the programs of `jax.export` accept the params too.
    `newton_scan` and the diagnostics of states, gradients and Jacobians accept them if the carry
    consists of floats of the dtype of params. Without weights, the cell runs as a `loop` over its
    step.

    With weights, the step names its products. The cell then runs like the built-in ones: in their
    loop, with their derivative, which sums the gradients of weights in a few large products, and
    with compute_dtype. The kernels run it too if its equations consist of arithmetic, comparisons,
    exp, sigmoid and tanh. `jaxgru/mgu.py` defines its cell in this way.

    Args:
        params_type: a class whose instances are pytrees with arrays of one float dtype as leaves,
            such as a frozen dataclass with `jax.tree_util.register_dataclass`. With forms, it must
            be a dataclass that is not a pytree yet. Its fields hold arrays. Fields whose names
            begin with b, for biases, may be None. If you pass params of several classes to one
            `jax.jit` of your own, register these classes with forms. JAX treats the structures of
            two classes as equal if `register_dataclass` made both pytrees and they have the same
            number of fields. It may then run the program that it compiled for the other class.
        step: a pure function of one time step, (params, carry, x `[I]`) -> (carry, y `[H]`). The
            carry keeps its structure, shapes and dtypes, and y has the dtype of params. With
            project or weights, the step takes other arguments in place of x.
        initial_carry: params -> the carry where a sequence starts, a tree of arrays. It need not be
            zeros. Segments start from it too, unless reset_carry is given.
        sizes: params -> (I, H), from the shapes of the leaves.
        project: (params, xs `[T, I]`) -> a tree of arrays `[T, ...]`. The step then gets the part
            of this tree at t in place of x. Part t must depend on row t of xs only, since `step`
            passes one row, and segments do not see each other. Use project, for instance, for the
            products of the inputs with their weights. JAX then computes one large product for the
            whole sequence, and one for its gradient. On two CPU cores a step that takes x was
            faster at most sizes that we tried.
        weights: params -> `Weights`. The step then takes parts and products in place of x.
            parts has one array for each of the G gates of w_ih: x W_g + b_g. products has a
            function for each array of w_hh. It takes an operand and returns a tuple of the products
            with each gate. The step calls each function once, in the order of w_hh. Between these
            calls it acts on each unit by itself, and uses no other array. Carries, parts and
            operands are all `[..., H]`, in at least float32. y is one of the arrays of the next
            carry. The params that the step gets serve only for their static fields, and to see
            which biases are None. To use a vector of params in the step, such as a decay for each
            unit, make it the bias of one more gate, with zeros in w_ih. Its part is then this
            vector.
        forms: the names of the weights in files, and the static fields that belong to each name:
            `{"mine": {}}`, or `{"slow": {"rate": 0.1}, "fast": {"rate": 0.5}}`. Params with other
            values of static fields run, but cannot be saved. Static fields have
            `metadata={"static": True}`. With forms, `register` makes params_type a pytree, whose
            leaves are called `mine.w_hh` and so on. If you define the class again, as in a
            notebook, the new class takes over the names.
        check: (caller, params) -> None. It raises an error if the shapes of params do not fit
            together. The caller is the name of the function that was called, such as "scan", with
            which the message should begin. `check` runs before `sizes`.

    Raises:
        TypeError: an argument has the wrong type, or the class is registered already.
            With forms, the class is not a dataclass, or it is a pytree already. Errors in a step
            are raised when it is first traced.
        ValueError: a form has a name that is taken, or does not set every static field. Both
            project and weights are given. Errors in weights are raised when they are first used.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxgru
        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class LeakyParams:
        ...     w_in: jax.Array
        ...     w_rec: jax.Array
        >>> def leaky_step(params, h, x):
        ...     h = 0.9 * h + 0.1 * jnp.tanh(x @ params.w_in + h @ params.w_rec)
        ...     return h, h
        >>> jaxgru.register(
        ...     LeakyParams,
        ...     step=leaky_step,
        ...     initial_carry=lambda params: jnp.zeros_like(params.w_rec[0]),
        ...     sizes=lambda params: params.w_in.shape,
        ... )
        >>> leaky = LeakyParams(jnp.ones((3, 8), "float32"), jnp.zeros((8, 8), "float32"))
        >>> params = jaxgru.Stack((leaky, jaxgru.gru_init(jax.random.key(0), 8, 4)))
        >>> jaxgru.scan(params, jnp.ones((20, 3), "float32"), length=12)[1].shape
        (20, 4)

        The same equations with weights, for a faster gradient:

        >>> @jax.tree_util.register_dataclass
        ... @dataclasses.dataclass(frozen=True)
        ... class FastLeakyParams(LeakyParams):
        ...     pass
        >>> def fast_leaky_step(params, h, parts, products):
        ...     (drive,), (recurrent,) = parts, products
        ...     h = 0.9 * h + 0.1 * jnp.tanh(drive + recurrent(h)[0])
        ...     return h, h
        >>> jaxgru.register(
        ...     FastLeakyParams,
        ...     step=fast_leaky_step,
        ...     weights=lambda p: jaxgru.Weights(p.w_in[:, None], (p.w_rec[:, None],)),
        ...     initial_carry=lambda params: jnp.zeros_like(params.w_rec[0]),
        ...     sizes=lambda params: params.w_in.shape,
        ... )
        >>> fast = FastLeakyParams(leaky.w_in, leaky.w_rec)
        >>> one, other = (jaxgru.scan(p, jnp.ones((20, 3), "float32"))[1] for p in (leaky, fast))
        >>> bool(jnp.allclose(one, other))
        True
    """
    if not isinstance(params_type, type):
        got = checks.describe(params_type)
        raise checks.error(TypeError, "register", "params_type", "a class", got)
    if params_type in (Stack, Bidirectional) or cell.knows(params_type):
        expected = "a class that is not registered yet"
        fix = "Compiled programs would keep the old cell. Define the class again."
        raise checks.error(
            TypeError, "register", "params_type", expected, params_type.__name__, fix
        )
    if params_type in CONTAINERS or issubclass(params_type, Array):
        expected, got = "a class of your own", params_type.__name__
        fix = "Use a dataclass with a field for each array."
        raise checks.error(TypeError, "register", "params_type", expected, got, fix)
    functions = {"step": step, "initial_carry": initial_carry, "sizes": sizes}
    optional = {"project": project, "weights": weights, "check": check}
    functions |= {name: given for name, given in optional.items() if given is not None}
    if project is not None and weights is not None:
        fix = "w_ih of the Weights has the weights of the inputs."
        raise checks.error(
            ValueError, "register", "project", "None with weights", "a function", fix
        )
    for name, function in functions.items():
        arguments = TAKEN_BY[name]
        if name == "step" and weights is not None:
            arguments = STEP_WITH_WEIGHTS
        expected = f"a function of {', '.join(arguments)}"
        if not callable(function):
            raise checks.error(TypeError, "register", name, expected, checks.describe(function))
        if not _takes(function, len(arguments)):
            got = f"a function of {inspect.signature(function)}"
            other = STEP_WITH_WEIGHTS if weights is None else TAKEN_BY["step"]
            mixed = name == "step" and _takes(function, len(other))
            without = "only with weights=" if weights is None else "only without weights="
            fix = f"A step takes {', '.join(other)} {without}." if mixed else ""
            raise checks.error(TypeError, "register", name, expected, got, fix)

    def check_all(caller: str, params: Any) -> None:
        if check is not None:
            check(caller, params)
        _check_leaves(caller, params)
        _check_sizes(caller, params, sizes)

    if forms is not None:
        _name(params_type, forms)
    start = partial(_start, initial_carry)
    if weights is None:
        project = _as_they_are if project is None else project
        cell.register(params_type, StepCell(step, project, sizes, check_all, start))
    else:
        name = params_type.__name__
        cell.register(params_type, family(name, step, weights, start, sizes, check_all))


def _name(params_type: type, forms: Any) -> None:
    """Make a dataclass of weights a pytree with these names in its paths."""
    if not isinstance(forms, Mapping) or not forms:
        fix = f'Pass {{"{params_type.__name__.lower()}": {{}}}}, for example.'
        expected = "a mapping of names to static fields"
        got = "an empty mapping" if isinstance(forms, Mapping) else checks.describe(forms)
        raise checks.error(TypeError, "register", "forms", expected, got, fix)
    if not dataclasses.is_dataclass(params_type):
        got = params_type.__name__
        raise checks.error(
            TypeError, "register", "params_type", "a dataclass if forms are given", got
        )
    fields = dataclasses.fields(params_type)
    static = {field.name for field in fields if field.metadata.get("static")}
    for name, options in forms.items():
        if not (isinstance(name, str) and name.isidentifier()):
            expected = "a mapping whose keys are valid names of variables"
            raise checks.error(ValueError, "register", "forms", expected, checks.shown(name))
        if name in TAKEN or (name in FORMS and not _again(params_type, FORMS[name].params_type)):
            raise checks.error(
                ValueError, "register", "forms", "a mapping whose keys are not taken", name
            )
        if not isinstance(options, dict) or set(options) != static:
            expected = f"a dict of the static fields {sorted(static)} for {name!r}"
            got = f"{list(options)}" if isinstance(options, dict) else checks.shown(options)
            values = ", ".join(f'"{field}": ...' for field in sorted(static))
            fix = f'Pass {{"{name}": {{{values}}}}}, with the value of each field.'
            if not static:
                fix = 'Fields with metadata={"static": True} are static, and this class has none.'
            raise checks.error(ValueError, "register", "forms", expected, got, fix)
    try:
        weights(**forms)(params_type)
    except ValueError as error:  # JAX raises it if the type is already a pytree
        fix = "With forms, do not call jax.tree_util.register_dataclass."
        expected, got = "a class that is not a pytree yet", params_type.__name__
        raise checks.error(TypeError, "register", "params_type", expected, got, fix) from error


def _again(new: type, old: type) -> bool:
    """Whether new is old defined once more, as happens in a notebook."""
    return (new.__module__, new.__qualname__) == (old.__module__, old.__qualname__)


def _start(initial_carry: Callable[[Any], Any], params: Any) -> Any:
    """The carry that a sequence starts from. All its leaves must be arrays."""
    carry = initial_carry(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if not checks.is_array(leaf):
            caller = f"initial_carry of {type(params).__name__}"
            name = "what it returns" + jax.tree_util.keystr(path)
            got, fix = checks.describe(leaf), "jnp.zeros(shape, dtype) makes one."
            raise checks.error(TypeError, caller, name, "an array", got, fix)
    return carry


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether the function accepts this number of arguments, or has no signature."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # some functions written in C have no signature
        return True
    return True


def _as_they_are(params: Any, xs: Array) -> Array:
    del params
    return xs


def _check_leaves(caller, params):
    name = type(params).__name__
    structure = jax.tree.structure(params)
    if jax.tree_util.treedef_is_leaf(structure):
        fix = "jax.tree_util.register_dataclass makes a dataclass a pytree."
        raise checks.error(TypeError, caller, name, "a pytree", "a leaf", fix)
    if structure.num_leaves == 0:
        raise checks.error(
            ValueError, caller, name, "a pytree that contains arrays", "one without leaves"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = name + jax.tree_util.keystr(path)
        if not (checks.is_array(leaf) and checks.dtype_of(leaf).name in checks.DTYPES):
            expected = f"an array of dtype {checks.FLOATS}"
            plain = isinstance(leaf, bool | int | float | str)
            fix = 'If it is no weight, give its field metadata={"static": True}.' if plain else ""
            raise checks.error(TypeError, caller, where, expected, checks.describe(leaf), fix)


def _check_sizes(caller, params, sizes):
    name, found = type(params).__name__, sizes(params)
    if not (isinstance(found, tuple) and len(found) == 2):
        expected = "a tuple of two sizes, (I, H)"
        raise checks.error(TypeError, caller, f"sizes of {name}", expected, checks.describe(found))
    for size in found:
        checks.size(caller, f"sizes of {name}", size)
