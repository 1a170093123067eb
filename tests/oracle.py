"""The equations again, as float64 NumPy loops. Every test of values compares with them.

This file shares nothing with the library except the field names of params. It has one `for` over
time, one matrix product for each gate, and no selects. It does not compute padding or holes.
"""

import numpy as np

import jaxgru
from own_gru import NamedParams, OwnParams


def f64(x):
    return np.asarray(x, np.float64)


def sigmoid(a):
    return 1.0 / (1.0 + np.exp(-a))


def _bias(b, shape):
    return np.zeros(shape) if b is None else f64(b)


def gru_step(params, h, x):
    w_ih, w_hh = f64(params.w_ih), f64(params.w_hh)
    h, x = f64(h), f64(x)
    hidden = w_hh.shape[0]
    b = _bias(params.b, (3, hidden))
    r = sigmoid(x @ w_ih[:, 0] + h @ w_hh[:, 0] + b[0])
    z = sigmoid(x @ w_ih[:, 1] + h @ w_hh[:, 1] + b[1])
    if getattr(params, "reset_after", False):
        b_hn = _bias(params.b_hn, (hidden,))
        n = np.tanh(x @ w_ih[:, 2] + b[2] + r * (h @ w_hh[:, 2] + b_hn))
    else:
        n = np.tanh(x @ w_ih[:, 2] + b[2] + (r * h) @ w_hh[:, 2])
    return (1.0 - z) * h + z * n


def lstm_step(params, carry, x):
    w_ih, w_hh = f64(params.w_ih), f64(params.w_hh)
    h, c, x = f64(carry[0]), f64(carry[1]), f64(x)
    b = _bias(params.b, (4, w_hh.shape[0]))
    i, f, g, o = (x @ w_ih[:, k] + h @ w_hh[:, k] + b[k] for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def elman_step(params, h, x):
    w_ih, w_hh = f64(params.w_ih), f64(params.w_hh)
    return np.tanh(f64(x) @ w_ih + f64(h) @ w_hh + _bias(params.b, w_hh.shape[0]))


def min_gru_step(params, h, x):
    w_ih, h, x = f64(params.w_ih), f64(h), f64(x)
    b = _bias(params.b, w_ih.shape[1:])
    z = sigmoid(x @ w_ih[:, 0] + b[0])
    a = x @ w_ih[:, 1] + b[1]
    n = np.where(a >= 0, a + 0.5, sigmoid(a))
    return (1.0 - z) * h + z * n


def mgu_step(params, h, x):
    w_ih, w_hh = f64(params.w_ih), f64(params.w_hh)
    h, x = f64(h), f64(x)
    b = _bias(params.b, w_ih.shape[1:])
    f = sigmoid(x @ w_ih[:, 0] + h @ w_hh[:, 0] + b[0])
    n = np.tanh(x @ w_ih[:, 1] + (f * h) @ w_hh[:, 1] + b[1])
    return (1.0 - f) * h + f * n


def _layer_norm(a, gain, b, eps):
    a = (a - np.mean(a)) / np.sqrt(np.var(a) + eps)
    return f64(gain).reshape(-1) * a + _bias(b, gain.shape).reshape(-1)


def layer_norm_gru_step(params, h, x):
    """The order of the gates in the publications.

    It is reset, candidate, update in the first form, and update, reset in the second. Our axis has
    reset, update, candidate.
    """
    w, u, h, x = f64(params.w_ih), f64(params.w_hh), f64(h), f64(x)
    gain, hidden = f64(params.gain), np.shape(params.w_hh)[0]
    b = _bias(params.b, gain.shape)
    if not params.separate:
        order = [0, 2, 1]
        w, u = (np.concatenate([a[:, k] for k in order], axis=1) for a in (w, u))
        both = np.concatenate([x, h]) @ np.concatenate([w, u])
        parts = _layer_norm(both, gain[order], b[order], 1e-3)
        reset, cand, update = np.split(parts, 3)
        cand = np.tanh(sigmoid(reset) * cand)
        update = sigmoid(update - 1.0)
        return update * cand + (1.0 - update) * h
    order = [1, 0]
    w_x, w_h = (np.concatenate([a[:, k] for k in order], axis=1) for a in (w, u))
    gates = _layer_norm(h @ w_h, gain[1, order], b[1, order], 1e-5)
    gates = gates + _layer_norm(x @ w_x, gain[0, order], b[0, order], 1e-5)
    z, r = gates[:hidden], gates[hidden:]
    n = _layer_norm(x @ w[:, 2], gain[0, 2], b[0, 2], 1e-5)
    n = np.tanh(n + sigmoid(r) * _layer_norm(h @ u[:, 2], gain[1, 2], b[1, 2], 1e-5))
    return (1.0 - sigmoid(z)) * h + sigmoid(z) * n


RATES = {
    "relu": lambda h: np.where(h > 0, h, 0.0),
    "tanh": np.tanh,
    "softplus": lambda h: np.logaddexp(0.0, h),
    "sigmoid": sigmoid,
}


def leaky_step(params, h, x):
    w_in, w_rec, h, x = f64(params.w_ih), f64(params.w_hh), f64(h), f64(x)
    alpha, rates = f64(params.alpha), RATES[params.nonlinearity](h)
    drive = w_rec.T @ rates + w_in.T @ x + _bias(params.b, h.shape)
    return (1.0 - alpha) * h + alpha * drive


CELLS = {
    jaxgru.GRUParams: gru_step,
    OwnParams: gru_step,
    NamedParams: gru_step,
    jaxgru.LSTMParams: lstm_step,
    jaxgru.ElmanParams: elman_step,
    jaxgru.MinGRUParams: min_gru_step,
    jaxgru.MGUParams: mgu_step,
    jaxgru.LayerNormGRUParams: layer_norm_gru_step,
    jaxgru.LeakyParams: leaky_step,
}


def _cell_step(params, carry, x):
    """Run one step of a cell: (the new carry, the output)."""
    carry = CELLS[type(params)](params, carry, x)
    if isinstance(params, jaxgru.LeakyParams):
        return carry, RATES[params.nonlinearity](carry)
    return carry, carry[0] if isinstance(params, jaxgru.LSTMParams) else carry


def initial_carry(params):
    if isinstance(params, jaxgru.Bidirectional):
        return initial_carry(params.forward), initial_carry(params.backward)
    if isinstance(params, jaxgru.Stack):
        return tuple(initial_carry(layer) for layer in params.layers)
    zeros = np.zeros(output_size(params))
    return (zeros, zeros) if isinstance(params, jaxgru.LSTMParams) else zeros


def output_size(params):
    if isinstance(params, jaxgru.Bidirectional):
        return output_size(params.forward) + output_size(params.backward)
    if isinstance(params, jaxgru.Stack):
        return output_size(params.layers[-1])
    return np.shape(params.w_ih)[-1]


def step(params, carry, x):
    """Run one step of a cell or of a stack: (the new carry, the output)."""
    if not isinstance(params, jaxgru.Stack):
        return _cell_step(params, carry, x)
    carries = []
    for layer, layer_carry in zip(params.layers, carry, strict=True):
        layer_carry, x = _cell_step(layer, layer_carry, x)
        carries.append(layer_carry)
    return tuple(carries), x


def scan(
    params,
    xs,
    carry=None,
    *,
    length=None,
    mask=None,
    reset=None,
    reset_carry=None,
    reverse=False,
):
    """Return (carry, outputs) of any params type, with the semantics of `jaxgru.scan`."""
    carry = initial_carry(params) if carry is None else carry
    reset_carry = initial_carry(params) if reset_carry is None else reset_carry
    options = {"length": length, "mask": mask, "reset": reset}
    if isinstance(params, jaxgru.Stack):
        carries, ys = [], xs
        for layer, start, restart in zip(params.layers, carry, reset_carry, strict=True):
            last, ys = scan(layer, ys, start, reset_carry=restart, reverse=reverse, **options)
            carries.append(last)
        return tuple(carries), ys
    if isinstance(params, jaxgru.Bidirectional):
        ahead, hs = scan(
            params.forward, xs, carry[0], reset_carry=reset_carry[0], reverse=reverse, **options
        )
        back, gs = scan(
            params.backward,
            xs,
            carry[1],
            reset_carry=reset_carry[1],
            reverse=not reverse,
            **options,
        )
        return (ahead, back), np.concatenate([hs, gs], axis=1)
    assert type(params) in CELLS
    steps = np.shape(xs)[0]
    length = steps if length is None else int(length)
    starts = np.zeros(steps, bool) if reset is None else np.asarray(reset)
    there = np.ones(steps, bool) if mask is None else np.asarray(mask)
    ys = np.zeros((steps, output_size(params)))
    for t in reversed(range(length)) if reverse else range(length):
        # Backwards, a segment begins at its end, the step before the start of the next segment.
        first = (t + 1 < length and starts[t + 1]) if reverse else starts[t]
        carry = reset_carry if first else carry
        if there[t]:
            carry, ys[t] = _cell_step(params, carry, xs[t])
    return _float(carry), ys


def _float(carry):
    return tuple(f64(part) for part in carry) if isinstance(carry, tuple) else f64(carry)
