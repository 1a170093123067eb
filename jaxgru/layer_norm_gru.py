"""The GRU with layer norms inside, in two published forms.

In DreamerV2 one norm sees the sum of the contributions of the input and of the state. In Ba et al.
2016 each of the two has norms of its own.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgru import checks, initializers
from jaxgru.cell import flat, matmul, split, total
from jaxgru.register import register

#: These constants are added to the variance. DreamerV2 uses the layer norm of Keras and its default
#: constant. The paper of Ba et al. has no such constant, but the program of its authors has.
EPS, EPS_SEPARATE = 1e-3, 1e-5
#: DreamerV2 shifts the update gate by this, so that a fresh cell keeps more than it replaces.
UPDATE_BIAS = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNormGRUParams:
    """The weights of a GRU with layer norms, a pytree.

    The middle axis is the gate: reset, update, candidate. All leaves have one dtype.

    Args:
        w_ih: input weights `[I, 3, H]`.
        w_hh: recurrent weights `[H, 3, H]`.
        gain: the factors of the normalized values, `[3, H]`. With `separate=True` they are
            `[2, 3, H]`, first for the contribution of the input and then for that of the state.
        b: the biases that are added after that, of the shape of gain, or None.
        separate: whether input and state have norms of their own. It is static.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.layer_norm_gru_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> params.gain.shape, params.separate
        ((3, 64), False)
    """

    w_ih: Array
    w_hh: Array
    gain: Array
    b: Array | None
    separate: bool = dataclasses.field(metadata={"static": True})


def layer_norm_gru_init(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    separate: bool = False,
    bias: bool = True,
    init: str = "orthogonal",
    dtype: Any = jnp.float32,
) -> LayerNormGRUParams:
    """Draw the weights of a GRU with layer norms.

    Gains are one, and biases are zero. There is no `chrono`. After a norm the gates vary by about
    one, whatever the weights are, so biases alone do not set the memory.

    Args:
        key: a `jax.random.key`.
        input_size: I, the number of input features.
        hidden_size: H, the number of units.
        separate: which of the two forms to draw. `layer_norm_gru_step` has their equations.
        bias: whether there are biases.
        init: the initial w_ih and w_hh. `"orthogonal"` draws LeCun-normal input weights, and an
            orthogonal recurrent block for each gate. `"torch"`, `"keras"`, `"flax"` and `"haiku"`
            draw what those libraries draw as the weights of a GRU.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        LayerNormGRUParams with w_ih `[I, 3, H]`, w_hh `[H, 3, H]`, gain and b `[3, H]`, or
        `[2, 3, H]` with `separate=True`.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.layer_norm_gru_init(jax.random.key(0), 8, 64, separate=True)
        >>> params.b.shape
        (2, 3, 64)
    """
    name = "layer_norm_gru_init"
    checks.flag(name, "separate", separate)
    checks.flag(name, "bias", bias)
    checks.key(name, key)
    drawn = initializers.draw(name, key, input_size, hidden_size, 3, init, dtype)
    shape = (2, *drawn.b_ih.shape) if separate else drawn.b_ih.shape
    return LayerNormGRUParams(
        w_ih=drawn.w_ih,
        w_hh=drawn.w_hh,
        gain=jnp.ones(shape, dtype),
        b=jnp.zeros(shape, dtype) if bias else None,
        separate=separate,
    )


def layer_norm_gru_step(params: LayerNormGRUParams, h: Array, x: Array) -> Array:
    """One time step of a GRU with layer norms.

        r, z, n = LN(x W + h U)                         separate=False: one norm of 3 H values
        r  = sigmoid(r)
        z  = sigmoid(z - 1)
        n  = tanh(r * n)

        r, z = LN(x W_rz) + LN(h U_rz)                  separate=True: norms of 2 H values
        r  = sigmoid(r)
        z  = sigmoid(z)
        n  = tanh(LN(x W_n) + r * LN(h U_n))            norms of H values

        h' = (1 - z) * h + z * n                        both forms

        LN(a) = gain * (a - mean(a)) / sqrt(var(a) + eps) + b

    W are the gates of w_ih, and U are those of w_hh. Each LN has its own part of gain and b. The
    variance is the mean of the squared deviations, so it is divided by the number of values. eps is
    1e-3, and 1e-5 with `separate=True`. Products and norms are computed in at least float32.

    `separate=False` is the cell in the program of DreamerV2, with the gates in another order. That
    program also has a bias before the norm. If one of your inputs is always 1, its row of w_ih is
    such a bias. `separate=True` is the cell in the paper of Ba et al. The paper has no eps. In its
    notation, gains start at zero and biases at one. The program of its authors starts with gains of
    one and biases of zero, as `layer_norm_gru_init` does. In that program z weighs the old state,
    and there are biases before the norms of the inputs.

    Args:
        params: LayerNormGRUParams.
        h: state `[H]`, of the dtype of params.
        x: input `[I]`, of the dtype of params.

    Returns:
        The next state `[H]`, which is also the output.

    Raises:
        TypeError, ValueError: a structure, shape or dtype does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.layer_norm_gru_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> h = jnp.zeros(64, "float32")
        >>> jaxgru.layer_norm_gru_step(params, h, jnp.ones(8, "float32")).shape
        (64,)

    Source: Hafner et al. 2020, "Mastering Atari with discrete world models", arXiv:2010.02193, and
    `GRUCell` in github.com/danijar/dreamerv2; `separate=True`: Ba et al. 2016, "Layer
    normalization", arXiv:1607.06450, supplementary material, "Order embeddings and skip-thoughts",
    and `lngru_layer` in github.com/ryankiros/layer-norm.
    """
    params, h, x = checks.step("layer_norm_gru_step", LayerNormGRUParams, params, h, x)
    return _step(params, h, _project(params, x))[0]


def _norm(a: Array, gain: Array, b: Array | None, eps: float) -> Array:
    """The layer norm LN over the last axis, the only axis of gain and b."""
    a = a - jnp.mean(a, axis=-1, keepdims=True)
    a = a * lax.rsqrt(jnp.mean(a * a, axis=-1, keepdims=True) + eps)
    return total(a * jnp.broadcast_to(gain.astype(a.dtype), a.shape), b)


def _norms(params: LayerNormGRUParams, a: Array, side: int) -> tuple[Array, Array]:
    """The norms of the contribution `[..., 3 H]` of one side: (gates, candidate)."""
    gain, b = params.gain[side], None if params.b is None else params.b[side]
    size = params.w_hh.shape[0]
    gates, candidate = lax.split(a, (2 * size, size), axis=a.ndim - 1)
    b_gates, b_candidate = (None, None) if b is None else (flat(b[:2]), b[2])
    return (
        _norm(gates, flat(gain[:2]), b_gates, EPS_SEPARATE),
        _norm(candidate, gain[2], b_candidate, EPS_SEPARATE),
    )


def _project(params: LayerNormGRUParams, xs: Array) -> tuple[Array, ...]:
    """The products of the inputs, with their own norms if `separate` is True."""
    products = matmul(flat(params.w_ih), xs)
    return _norms(params, products, 0) if params.separate else (products,)


def _step(params: LayerNormGRUParams, h: Array, projected: tuple[Array, ...]) -> Any:
    products = matmul(flat(params.w_hh), h)
    if params.separate:
        (x_gates, x_n), (h_gates, h_n) = projected, _norms(params, products, 1)
        r, z = split(jax.nn.sigmoid(x_gates + h_gates), 2)
        n = jnp.tanh(x_n + r * h_n)
    else:
        normed = _norm(projected[0] + products, flat(params.gain), flat(params.b), EPS)
        a_r, a_z, a_n = split(normed, 3)
        r, z = jax.nn.sigmoid(a_r), jax.nn.sigmoid(a_z + UPDATE_BIAS)
        n = jnp.tanh(r * a_n)
    h = ((1 - z) * h.astype(z.dtype) + z * n).astype(h.dtype)
    return h, h


def _check(caller: str, params: LayerNormGRUParams) -> None:
    checks.flag(caller, "LayerNormGRUParams.separate", params.separate)
    size = checks.hidden_size(params.w_hh, 3)
    norms = (2, 3, size) if params.separate else (3, size)
    checks.weights(caller, params, w_hh=(size, 3, size), w_ih=("I", 3, size), gain=norms, b=norms)


register(
    LayerNormGRUParams,
    step=_step,
    project=_project,
    initial_carry=lambda params: jnp.zeros_like(params.w_hh[0, 0]),
    sizes=lambda params: (params.w_ih.shape[0], params.w_hh.shape[0]),
    check=_check,
    forms={
        "layer_norm_gru": {"separate": False},
        "layer_norm_gru_separate": {"separate": True},
    },
)
