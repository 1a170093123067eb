"""Argument checks, which run before tracing. Errors state the expected and the given value."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.export import is_symbolic_dim

from jaxgru.cell import cell_of, check_leaves

INT32_MAX = 2**31 - 1
DTYPES = ("float16", "bfloat16", "float32", "float64")
#: The dtypes in messages.
FLOATS = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"


def error(
    kind: type[Exception], caller: str, name: str, expected: str, got: str, fix: str = ""
) -> Exception:
    """Make an error. Every error message of this library has this form."""
    return kind(f"{caller}: {name} must be {expected}, got {got}.{' ' + fix if fix else ''}")


def is_array(value: Any) -> bool:
    """Whether value is a tracer or an array of any library, with values, a shape and a dtype."""
    known = hasattr(value, "dtype") and isinstance(getattr(value, "shape", None), tuple)
    return known and not isinstance(value, jax.ShapeDtypeStruct)


def shape_of(value: Any) -> tuple[Any, ...]:
    """Return the shape of an array, and () for anything else."""
    return value.shape if is_array(value) else ()


def describe(value: Any) -> str:
    """Return `float32[10, 3]` for an array, and the name of the type for anything else."""
    if is_array(value) or isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    return f"{type(value).__name__}"


def shown(value: Any) -> str:
    """Return the value of an option if it is short, and otherwise its description."""
    plain = value is None or isinstance(value, str | bool | int | float)
    return repr(value) if plain else describe(value)


def dtype_of(value: Any) -> Any:
    """Return the dtype that JAX gives this array: float32 for float64 if 64-bit types are off.

    If JAX has no such dtype, as for strings or tensors of torch, return the object dtype, which no
    check accepts.
    """
    try:
        return jax.dtypes.canonicalize_dtype(value.dtype, allow_extended_dtype=True)
    except TypeError:
        return jnp.dtype(object)


def step(caller: str, params_type: type, params: Any, value: Any, x: Any) -> tuple[Any, Any, Any]:
    """Check that the arguments of a cell's own step fit together, and return them as JAX arrays."""
    if not isinstance(params, params_type):
        fix = "Use jaxgru.step, which takes any params."
        raise error(TypeError, caller, "params", params_type.__name__, describe(params), fix)
    check_leaves(caller, params)
    cell = cell_of(params)
    shape = cell.carry_shape(params)
    carry(caller, "carry", value, shape)
    inputs(caller, "x", x, cell.sizes(params)[:1], jax.tree.leaves(shape)[0].dtype)
    return jax.tree.map(jnp.asarray, (params, value, x))


def array(caller: str, name: str, value: Any, shape: tuple[int | str, ...], fix: str = "") -> None:
    """Check that value is an array of this shape. A string in the shape stands for any size."""
    expected = f"an array of shape [{', '.join(map(str, shape))}]"
    if not is_array(value):
        raise error(TypeError, caller, name, expected, type(value).__name__, fix)
    same = len(value.shape) == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    if not same:
        raise error(ValueError, caller, name, expected, describe(value), fix)


#: The meaning of True.
FLAGS = {"mask": "a real step", "reset": "the first step of a segment"}


def flags(caller: str, name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Check that value holds bools of this shape: one for each step of xs, or a single one."""
    if shape == () and isinstance(value, bool):
        return
    array(caller, name, value, shape, "Pass one flag for each step of xs." if shape else "")
    if dtype_of(value) != jnp.bool_:
        fix = f"True marks {FLAGS[name]}: pass {name}.astype(bool)."
        raise error(TypeError, caller, name, "bool", describe(value), fix)


def hidden_size(w_hh: Any, rank: int) -> int | str:
    """Return H, or the letter "H" if w_hh does not have this rank."""
    shape = shape_of(w_hh)
    return shape[0] if len(shape) == rank else "H"


def weights(caller: str, params: Any, **shapes: tuple[int | str, ...]) -> None:
    """Check that the named leaves have these shapes and one supported dtype. Biases may be None."""
    owner = type(params).__name__
    first = None
    for name, shape in shapes.items():
        leaf = getattr(params, name)
        if leaf is None and name.startswith("b"):
            continue
        fix = ""
        if len(shape_of(leaf)) > len(shape):
            fix = "Use jax.vmap over params for several networks."
        array(caller, f"{owner}.{name}", leaf, shape, fix)
        if dtype_of(leaf).name not in DTYPES:
            expected = f"an array of dtype {FLOATS}"
            raise error(TypeError, caller, f"{owner}.{name}", expected, describe(leaf))
        first = leaf if first is None else first
        if dtype_of(leaf) != dtype_of(first):
            expected = f"{dtype_of(first)}, like the other leaves"
            fix = "Cast all leaves to one dtype with jax.tree.map."
            raise error(TypeError, caller, f"{owner}.{name}", expected, describe(leaf), fix)


def float_dtype(caller: str, name: str, dtype: Any) -> None:
    """Check that dtype is supported and enabled: float64 needs jax_enable_x64."""
    expected = FLOATS
    try:
        if dtype is None or is_array(dtype):  # jnp.dtype would accept both
            raise TypeError
        wanted = jnp.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # NumPy raises these for things that are no dtype
        raise error(TypeError, caller, name, expected, shown(dtype)) from None
    if wanted.name not in DTYPES:
        raise error(TypeError, caller, name, expected, wanted.name)
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        fix = 'jax.config.update("jax_enable_x64", True) enables float64.'
        raise error(ValueError, caller, name, "a dtype that JAX has enabled", wanted.name, fix)


def compute_dtype(caller: str, dtype: Any, params: Any) -> Any:
    """Check that params may be narrowed to this dtype, and return it. None stays None."""
    if dtype is None:
        return None
    float_dtype(caller, "compute_dtype", dtype)
    narrow = jnp.dtype(dtype)
    if jnp.finfo(narrow).bits > jnp.finfo(params).bits:
        expected = f"at most as wide as {params}, the dtype of params"
        raise error(ValueError, caller, "compute_dtype", expected, narrow.name)
    return narrow


def same_dtype(caller: str, name: str, value: Any, dtype: Any) -> None:
    """Check that value has the dtype of params."""
    if dtype_of(value) != dtype:
        fix = f"jaxgru promotes no dtypes: pass {name}.astype({str(dtype)!r}), or cast params."
        raise error(TypeError, caller, name, f"{dtype}, the dtype of params", describe(value), fix)


def inputs(caller: str, name: str, xs: Any, shape: tuple[int | str, ...], dtype: Any) -> None:
    """Check that xs is one sequence (or x one step) of the size and dtype of params."""
    fix = f"The last axis is the input size of params, {shape[-1]}."
    if len(shape_of(xs)) > len(shape):
        fix = f"Use jax.vmap for a batch: jax.vmap({caller}, in_axes=...)."
    array(caller, name, xs, shape, fix)
    same_dtype(caller, name, xs, dtype)


def carry(
    caller: str,
    name: str,
    value: Any,
    expected: Any,
    what: str = "a carry of params",
    fix: str = "jaxgru.initial_carry(params) makes one.",
) -> None:
    """Check that value has the expected structure, shapes and dtypes, as of initial_carry."""
    fix = f"{fix}{_class_of_carry(value, expected, name)}"
    want = jax.tree.structure(expected)
    try:
        have = jax.tree.structure(value)
    except (TypeError, ValueError):  # the keys of a dict cannot be sorted
        shown = str(value_types(expected))
        got = type(value).__name__
        raise error(TypeError, caller, name, f"{what}, {shown}", got, fix) from None
    if have != want:
        got = describe(value) if jax.tree_util.treedef_is_leaf(have) else str(value_types(value))
        shown = str(value_types(expected))
        raise error(TypeError, caller, name, f"{what}, {shown}", got, fix)
    for (path, leaf), like in zip(
        jax.tree_util.tree_leaves_with_path(value), jax.tree.leaves(expected), strict=True
    ):
        label = name + jax.tree_util.keystr(path)
        array(caller, label, leaf, like.shape, fix)
        same_dtype(caller, label, leaf, like.dtype)


def _class_of_carry(value: Any, expected: Any, name: str) -> str:
    """How to make the expected class of the arrays in a plain tuple or list."""
    if isinstance(value, list) and type(expected) is tuple:
        return f" It is a tuple, not a list: tuple({name})."
    if hasattr(value, "_fields") or not isinstance(value, tuple | list):
        return ""
    named = jax.tree.leaves(expected, is_leaf=lambda part: hasattr(part, "_fields"))
    for part in named:
        if hasattr(part, "_fields"):
            fields = ", ".join(f"{field}=..." for field in part._fields)
            package = "jaxgru." if type(part).__module__.startswith("jaxgru.") else ""
            return f" {package}{type(part).__name__}({fields}) makes one of your own arrays."
    return ""


class _Shown(str):
    """A description that stands in a tree without quotation marks."""

    __repr__ = str.__str__


def value_types(tree: Any) -> Any:
    """The tree with a description in place of every array."""
    return jax.tree.map(lambda leaf: _Shown(describe(leaf)), tree)


def untraced(name: str, value: Any) -> str:
    """Return the fix for a traced option, which must be part of the program and not data."""
    if not isinstance(value, Tracer):
        return ""
    option = name.rpartition(".")[2]
    return (
        f"It is traced, but options must be known to compile the program: use "
        f"jax.jit(f, static_argnames={option!r}), or functools.partial(f, {option}=...) before "
        "jax.jit."
    )


def flag(caller: str, name: str, value: Any) -> None:
    """Check that value is a Python bool."""
    if not isinstance(value, bool):
        fix = untraced(name, value)
        raise error(TypeError, caller, name, "True or False", describe(value), fix)


def number(caller: str, name: str, value: Any, expected: str = "a Python number") -> None:
    """Check that value is a Python number."""
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise error(TypeError, caller, name, expected, describe(value), untraced(name, value))
    try:
        float(value)
    except OverflowError:
        got = "a larger integer"
        raise error(ValueError, caller, name, "a number that fits into a float", got) from None


def float_scalar(caller: str, name: str, value: Any) -> None:
    """Check that value is a Python number or a scalar array of floats, which may be traced."""
    expected = "a Python number or a scalar array of floats"
    if isinstance(value, float | int) or not is_array(value):
        number(caller, name, value, expected)
    elif not jnp.issubdtype(dtype_of(value), jnp.floating):
        raise error(TypeError, caller, name, expected, describe(value))
    elif value.shape != ():
        fix = "Use jax.vmap for several at once."
        raise error(ValueError, caller, name, expected, describe(value), fix)


def key(caller: str, value: Any) -> Array:
    """Check that value is one random key, and return it."""
    expected = "one key, jax.random.key(seed)"
    if not isinstance(value, Array):
        raise error(TypeError, caller, "key", expected, describe(value))
    typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not typed and value.dtype != jnp.uint32:
        raise error(TypeError, caller, "key", expected, describe(value))
    if value.ndim != (0 if typed else 1):
        fix = "Use jax.vmap for several at once."
        raise error(ValueError, caller, "key", expected, describe(value), fix)
    if not typed:
        try:
            jax.eval_shape(jax.random.wrap_key_data, value)
        except (TypeError, ValueError):  # it does not have as many words as a key
            raise error(ValueError, caller, "key", expected, describe(value)) from None
    return value


def size(caller: str, name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Check that value is an integer from least to most, and return it."""
    expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        fix = untraced(name, value)
        raise error(TypeError, caller, name, expected, describe(value), fix) from None
    if number < least:
        raise error(ValueError, caller, name, expected, str(number))
    if most is not None and number > most:
        raise error(ValueError, caller, name, f"at most {most}", str(number))
    return number


def length(caller: str, value: Any, steps: int) -> None:
    """Check for an integer scalar in [0, T]. A traced or symbolic one acts as if clipped."""
    expected = f"an integer in [0, {steps}] (xs has T = {steps})"
    plain = isinstance(value, int) or is_symbolic_dim(value)
    if isinstance(value, bool) or not (plain or is_array(value)):
        raise error(TypeError, caller, "length", expected, describe(value))
    if shape_of(value) != ():
        fix = (
            "Pass one length for one sequence. Use jax.vmap for a batch, and mask= for flags of "
            "single steps."
        )
        raise error(ValueError, caller, "length", expected, describe(value), fix)
    if not (plain or jnp.issubdtype(dtype_of(value), jnp.integer)):
        raise error(TypeError, caller, "length", expected, describe(value))
    if isinstance(value, Tracer) or is_symbolic_dim(value):
        return
    if int(value) < 0 or (not is_symbolic_dim(steps) and int(value) > steps):
        raise error(ValueError, caller, "length", expected, str(value))


def reset_given(caller: str, value: Any) -> None:
    """Check that reset is given together with reset_carry."""
    if value is None:
        fix = "Only resets use reset_carry. carry= sets where the sequence starts."
        raise error(ValueError, caller, "reset", "given with reset_carry", "None", fix)
