"""Weights of PyTorch: `nn.GRU`, `nn.LSTM`, `nn.RNN` (tanh) and their cells."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgru import checks, layers
from jaxgru.cell import Params
from jaxgru.interop.weights import (
    ELMAN,
    GRU_LIKE_TORCH,
    LSTM_LIKE_TORCH,
    Named,
    Packed,
    form_of,
    mapping,
    to_packed,
    to_params,
)
from jaxgru.layers import Bidirectional, Stack

FORMS = {1: ELMAN, 3: GRU_LIKE_TORCH, 4: LSTM_LIKE_TORCH}  # for each number of gates


def from_torch(source: Any, prefix: str = "") -> Params:
    """Read the weights of a recurrent module of PyTorch.

        b    = b_ih + b_hh                          LSTM, RNN
        b    = b_ih + [b_hr, b_hz, 0], b_hn         GRU, which becomes GRUParams(reset_after=True)

    The update gate of PyTorch weighs the old state, so its weights and bias are negated.

    Args:
        source: a module, or a mapping of names to arrays or tensors, such as a state dict,
            `torch.load(path, weights_only=True)`, `safetensors.numpy.load_file(path)` or
            `numpy.load(path)`. For a mapping PyTorch need not be installed. A mapping does not tell
            whether the nonlinearity of an RNN is relu or tanh, so the caller must know that.
        prefix: what the names begin with, such as `"encoder.rnn."`. Other names are ignored.

    Returns:
        Params of one cell, a Bidirectional if there are weights of a reverse direction, or a Stack
        if there are several layers. The dtype is that of the weights.

    Raises:
        TypeError, ValueError: a name is missing or not known, a shape or dtype does not fit, or the
            module is of a kind that has no counterpart (relu, projections).

    Example:
        >>> import jaxgru, numpy as np
        >>> weights = {"weight_ih_l0": np.ones((12, 3), "float32")}
        >>> weights["weight_hh_l0"] = np.ones((12, 4), "float32")
        >>> params = jaxgru.interop.from_torch(weights)
        >>> params.w_hh.shape, params.reset_after
        ((4, 3, 4), True)

    Source: the documentation of torch.nn.GRU, torch.nn.LSTM and torch.nn.RNN.
    """
    if hasattr(source, "state_dict"):
        _check_module(source, prefix)
        source = source.state_dict()
    if isinstance(source, type) or not hasattr(source, "items"):
        expected, got = "a module or a mapping of names to arrays", checks.describe(source)
        fix = "Read a file first, with torch.load(path, weights_only=True) or with safetensors."
        raise checks.error(TypeError, "from_torch", "source", expected, got, fix)
    source = dict(source.items())
    mapping("from_torch", "source", source)
    arrays = {k.removeprefix(prefix): v for k, v in source.items() if k.startswith(prefix)}
    _check_found(source, arrays, prefix)
    named = Named("from_torch", arrays)
    if "weight_hh" in named or "weight_ih" in named:
        params = _read(named, "", "I", *_kind(named, ""))
    else:
        params = _read_layers(named)
    named.finish("Pass the weights of one module. prefix= selects one of a model.")
    return params


def _check_found(source: Mapping[str, Any], arrays: Mapping[str, Any], prefix: str) -> None:
    if any(name.startswith(("weight_ih", "weight_hh")) for name in arrays):
        return
    ends = ("weight_ih_l0", "weight_ih")
    found = {name[: -len(end)] for name in source for end in ends if name.endswith(end)}
    fix = f"Pass prefix={' or '.join(map(repr, sorted(found)))}." if found else ""
    expected = f"the weights of a recurrent module under prefix={prefix!r}"
    got = ", ".join(list(map(repr, source))[:8]) or "nothing"
    raise checks.error(ValueError, "from_torch", "source", expected, got, fix)


def _check_module(module: Any, prefix: str) -> None:
    """Check what a state dict does not tell."""
    kind = getattr(module.get_submodule(prefix.rstrip(".")), "nonlinearity", "tanh")
    if kind != "tanh":
        fix = "The nonlinearity of ElmanParams is tanh."
        raise checks.error(ValueError, "from_torch", "nonlinearity", "'tanh'", repr(kind), fix)


def _read_layers(named: Named) -> Params:
    directions = ("", "_reverse") if "weight_hh_l0_reverse" in named else ("",)
    gates, size = _kind(named, "_l0")
    found: list[Any] = []
    while not found or f"weight_hh_l{len(found)}" in named:
        inputs = len(directions) * size if found else "I"
        suffixes = [f"_l{len(found)}{direction}" for direction in directions]
        sides = [_read(named, suffix, inputs, gates, size) for suffix in suffixes]
        found.append(Bidirectional(*sides) if len(sides) == 2 else sides[0])
    return Stack(tuple(found)) if len(found) > 1 else found[0]


def _kind(named: Named, suffix: str) -> tuple[int, int]:
    """The number of gates, which identifies the cell, and H."""
    name = f"weight_hh{suffix}"
    rows, size = named.array(name, "gates * H", "H").shape
    gates = rows // max(1, size)
    if gates in FORMS and gates * size == rows:
        return gates, size
    expected = "of shape [H, H] (RNN), [3 * H, H] (GRU) or [4 * H, H] (LSTM)"
    fix = ""
    if f"weight_hr{suffix}" in named:
        fix = "An LSTM with projections has no counterpart."
    elif rows and size in (3 * rows, 4 * rows):
        fix = "It seems to be transposed."
    raise checks.error(ValueError, "from_torch", repr(name), expected, f"[{rows}, {size}]", fix)


def _read(named: Named, suffix: str, inputs: int | str, gates: int, size: int) -> Params:
    width = gates * size
    w_hh = named.array(f"weight_hh{suffix}", width, size)
    w_ih = named.array(f"weight_ih{suffix}", width, inputs)
    biases = [f"bias_ih{suffix}", f"bias_hh{suffix}"]
    b: list[Any] = [None, None]
    if any(name in named for name in biases):
        b = [named.array(name, width) for name in biases]
    return to_params(FORMS[gates], Packed(w_ih.T, w_hh.T, *b))


def to_torch(params: Params, prefix: str = "", *, cell: bool = False) -> dict[str, Any]:
    """Write params as the state dict of a module of PyTorch, for `module.load_state_dict`.

        b_ih = b,  b_hh = [0, 0, b_hn]              GRU
        b_ih = b,  b_hh = 0                         LSTM, RNN

    Args:
        params: GRUParams with reset_after=True, LSTMParams or ElmanParams; or a Bidirectional, or a
            Stack, whose cells are all of one kind and size.
        prefix: what the names begin with.
        cell: whether the names are those of `nn.GRUCell`, `nn.LSTMCell`, `nn.RNNCell`.

    Returns:
        Tensors by name, of the dtype of params. If params have no biases, neither does the result.
        In this case, make the module with `bias=False`.

    Raises:
        TypeError, ValueError: no single module of PyTorch can hold params.

    Example:
        >>> import jax, jaxgru, torch
        >>> params = jaxgru.gru_init(jax.random.key(0), 3, 4, reset_after=True)
        >>> module = torch.nn.GRU(3, 4, batch_first=True)
        >>> module.load_state_dict(jaxgru.interop.to_torch(params))
        <All keys matched successfully>

    Source: the documentation of torch.nn.GRU, torch.nn.LSTM and torch.nn.RNN.
    """
    checks.flag("to_torch", "cell", cell)
    layers.check("to_torch", params)
    stack: list[Params] = [*params.layers] if isinstance(params, Stack) else [params]
    if cell and (len(stack) > 1 or isinstance(stack[0], Bidirectional)):
        expected = "the params of one cell, with cell=True"
        raise checks.error(TypeError, "to_torch", "params", expected, type(params).__name__)
    cells = _cells(stack)
    forms = {name: form_of("to_torch", FORMS.values(), one) for name, one in cells.items()}
    _check_alike(cells)
    packed = {name: to_packed(forms[name], one) for name, one in cells.items()}
    biased = any(one.b_ih is not None for one in packed.values())
    weights = {}
    for name, one in packed.items():
        suffix = "" if cell else name
        weights[f"{prefix}weight_ih{suffix}"] = _tensor(one.w_ih.T)
        weights[f"{prefix}weight_hh{suffix}"] = _tensor(one.w_hh.T)
        if biased:
            zeros = np.zeros(one.w_hh.shape[1:], one.w_hh.dtype)
            weights[f"{prefix}bias_ih{suffix}"] = _tensor(zeros if one.b_ih is None else one.b_ih)
            weights[f"{prefix}bias_hh{suffix}"] = _tensor(zeros if one.b_hh is None else one.b_hh)
    return weights


def _cells(stack: list[Params]) -> dict[str, Params]:
    """Return the cells by the suffix of their names."""
    cells = {}
    for k, layer in enumerate(stack):
        if isinstance(layer, Bidirectional):
            cells |= {f"_l{k}": layer.forward, f"_l{k}_reverse": layer.backward}
        else:
            cells[f"_l{k}"] = layer
    return cells


def _check_alike(cells: Mapping[str, Any]) -> None:
    """Check that all cells have one kind and size, and all layers the same directions."""
    reverse = [name.endswith("_reverse") for name in cells]
    if any(reverse) and 2 * sum(reverse) != len(cells):
        got = "layers with one direction and layers with two"
        raise checks.error(ValueError, "to_torch", "params", "layers with the same directions", got)
    kinds = [
        f"{type(cell).__name__} of hidden size {cell.w_hh.shape[0]}" for cell in cells.values()
    ]
    for name, kind in zip(cells, kinds, strict=True):
        if kind != kinds[0]:
            fix = "The layers of a PyTorch module have one kind and size. Write them one by one."
            raise checks.error(ValueError, "to_torch", f"layer {name[1:]}", kinds[0], kind, fix)


def _tensor(array: np.ndarray) -> Any:
    import torch

    if array.dtype == "bfloat16":  # torch does not read this dtype from NumPy
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))
