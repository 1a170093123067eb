"""Shared parts of the converters: arrays by name, their checks, and the order of the gates."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgru import checks, layers
from jaxgru.cell import Params, accumulator
from jaxgru.elman import ElmanParams
from jaxgru.gru import GRUParams
from jaxgru.lstm import LSTMParams


class Form(NamedTuple):
    """How a library arranges the gates of one of its cells."""

    params_type: type
    order: tuple[int, ...]
    """The position of our k-th gate among theirs."""
    negated: tuple[int, ...] = ()
    """Our gates that are one minus theirs: sigmoid(-a) = 1 - sigmoid(a)."""
    reset_after: bool | None = None
    """The form of a GRU. None for other cells."""


class Packed(NamedTuple):
    """The weights of one cell, with the gates of a library side by side.

    Either both biases are None, or neither. The candidate of a GRU with `reset_after=True` uses the
    two biases separately. All other gates use their sum.
    """

    w_ih: np.ndarray
    """`[I, G * H]`."""
    w_hh: np.ndarray
    """`[H, G * H]`."""
    b_ih: np.ndarray | None = None
    """`[G * H]`."""
    b_hh: np.ndarray | None = None
    """`[G * H]`."""


def to_params(form: Form, packed: Packed) -> Params:
    """Make our params of the same cell."""
    w_ih, w_hh = _ours(form, packed.w_ih), _ours(form, packed.w_hh)
    b = b_hn = None
    if packed.b_ih is not None:
        b_hh = np.zeros_like(packed.b_ih) if packed.b_hh is None else packed.b_hh
        b, b_hh = _ours(form, packed.b_ih), _ours(form, b_hh)
        if form.reset_after:
            b_hn, b_hh = b_hh[2], np.stack([b_hh[0], b_hh[1], np.zeros_like(b_hh[2])])
        wide = accumulator(b.dtype)
        with np.errstate(all="ignore"):  # inf and NaN are valid values
            b = (b.astype(wide) + b_hh.astype(wide)).astype(b.dtype)
    if form.params_type is GRUParams:
        arrays = jax.tree.map(jnp.asarray, {"w_ih": w_ih, "w_hh": w_hh, "b": b, "b_hn": b_hn})
        return GRUParams(**arrays, reset_after=bool(form.reset_after))
    if form.params_type is ElmanParams:  # it has no axis of gates
        w_ih, w_hh, b = w_ih[:, 0], w_hh[:, 0], None if b is None else b[0]
    return form.params_type(**jax.tree.map(jnp.asarray, {"w_ih": w_ih, "w_hh": w_hh, "b": b}))


def to_packed(form: Form, params: Params) -> Packed:
    """Make their weights of the same cell. b_hh is zero except for a candidate's own bias."""
    leaves: Any = params
    w_ih, w_hh = np.asarray(leaves.w_ih), np.asarray(leaves.w_hh)
    if form.params_type is ElmanParams:
        w_ih, w_hh = w_ih[:, None], w_hh[:, None]
    kernels = _theirs(form, w_ih), _theirs(form, w_hh)
    b_hn = getattr(params, "b_hn", None)
    if leaves.b is None and b_hn is None:
        return Packed(*kernels)
    b, b_hh = np.zeros_like(w_ih[0]), np.zeros_like(w_ih[0])
    if leaves.b is not None:
        b[:] = leaves.b
    if b_hn is not None:
        b_hh[2] = b_hn
    return Packed(*kernels, _theirs(form, b), _theirs(form, b_hh))


def _ours(form: Form, w: np.ndarray) -> np.ndarray:
    """Convert `[..., G * H]` in their order to `[..., G, H]` in ours."""
    gates = len(form.order)
    w = w.reshape(*w.shape[:-1], gates, w.shape[-1] // gates)[..., list(form.order), :]
    return _negate(form, w)


def _theirs(form: Form, w: np.ndarray) -> np.ndarray:
    """The inverse of `_ours`."""
    w = _negate(form, w)[..., list(np.argsort(form.order)), :]
    return w.reshape(*w.shape[:-2], w.shape[-2] * w.shape[-1])


def _negate(form: Form, w: np.ndarray) -> np.ndarray:
    """Return a copy with the negated gates in the other sign."""
    w = w.copy()
    for gate in form.negated:
        w[..., gate, :] = -w[..., gate, :]
    return w


def form_of(caller: str, forms: Iterable[Form], params: Params, why: str = "") -> Form:
    """Find the form for the params of one cell. Raise an error if there is none.

    The error for params types without a counterpart ends with `why`.
    """
    forms = tuple(forms)
    layers.check(caller, params)
    same_type = [form for form in forms if form.params_type is type(params)]
    if not same_type:
        names = " or ".join(dict.fromkeys(form.params_type.__name__ for form in forms))
        raise checks.error(TypeError, caller, "params", names, type(params).__name__, why)
    reset_after = getattr(params, "reset_after", None)
    for form in same_type:
        if form.reset_after == reset_after:
            return form
    raise other_form(caller, "GRUParams.reset_after", not reset_after, bool(reset_after))


def other_form(caller: str, name: str, expected: bool, got: bool) -> Exception:
    """The error for a GRU whose reset gate acts on the other side of the product."""
    fix = (
        "A GRU with the reset gate before the recurrent product is another function than one with "
        "the gate after it, so the weights of one never fit the other."
    )
    return checks.error(ValueError, caller, name, str(expected), str(got), fix)


def as_numpy(caller: str, name: str, value: Any) -> np.ndarray:
    """Convert an array or a torch tensor to NumPy, and check that its dtype is enabled."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # a dtype that NumPy does not have
            value = np.asarray(value.float()).astype(jnp.bfloat16)
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise checks.error(TypeError, caller, name, "an array", checks.describe(value))
    value = np.asarray(value)
    checks.float_dtype(caller, f"the dtype of {name}", value.dtype)
    return value


def checked(caller: str, name: str, value: Any, shape: tuple[int | str, ...]) -> np.ndarray:
    """Like `as_numpy`, and check the shape. Letters stand for any size."""
    value = as_numpy(caller, name, value)
    fix = ""
    if value.ndim == len(shape) > 1:
        turned = zip(shape, (*value.shape[:-2], *value.shape[:-3:-1]), strict=True)
        if all(isinstance(n, str) or n == m for n, m in turned):
            fix = "It seems to be transposed."  # the message has this only if the shape is wrong
    checks.array(caller, name, value, shape, fix)
    return value


def mapping(caller: str, name: str, value: Any, expected: str = "a mapping of names") -> None:
    """Check that value is a mapping whose keys are strings. Raise a TypeError otherwise."""
    if not isinstance(value, Mapping):
        raise checks.error(TypeError, caller, name, expected, checks.describe(value))
    for key in value:
        if not isinstance(key, str):
            got = f"a mapping with a key of type {type(key).__name__}"
            raise checks.error(TypeError, caller, name, expected, got)


class Named:
    """Arrays by name. `finish` checks that the caller has used all of them."""

    def __init__(self, caller: str, arrays: Mapping[str, Any]) -> None:
        mapping(caller, "weights", arrays)
        self._caller, self._arrays, self._asked = caller, arrays, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def array(self, name: str, *shape: int | str) -> np.ndarray:
        """Return the array of this name, and check its shape. Letters stand for any size."""
        if name not in self._arrays:
            expected = f"given, with shape [{', '.join(map(str, shape))}]"
            got = f"only {listed(self._arrays)}"
            raise checks.error(ValueError, self._caller, repr(name), expected, got)
        self._asked.add(name)
        return checked(self._caller, repr(name), self._arrays[name], shape)

    def finish(self, fix: str = "") -> None:
        """Raise an error if there are arrays that the caller has not used."""
        rest = [name for name in self._arrays if name not in self._asked]
        if rest:
            expected = f"only {listed(sorted(self._asked))}"
            raise checks.error(
                ValueError, self._caller, "weights", expected, f"also {listed(rest)}", fix
            )


def listed(names: Iterable[str]) -> str:
    """List at most eight names in quotes."""
    names = list(names)
    shown = ", ".join(map(repr, names[:8]))
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "nothing"


GRU_LIKE_TORCH = Form(GRUParams, (0, 1, 2), negated=(1,), reset_after=True)
LSTM_LIKE_TORCH = Form(LSTMParams, (0, 1, 2, 3))
ELMAN = Form(ElmanParams, (0,))
