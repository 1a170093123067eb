"""The gated recurrent unit: parameters, initial values, one step and its derivative.

Equations, with z_t the weight of the *new* content:

    r_t = sigmoid(W_r [h_{t-1}, x_t])                 reset gate
    z_t = sigmoid(W_z [h_{t-1}, x_t])                 update gate: input and forget gate in one
    n_t = tanh(W [r_t * h_{t-1}, x_t])                candidate
    h_t = (1 - z_t) * h_{t-1} + z_t * n_t             new state, and the output
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks, initializers
from jaxgru.cell import Cell, matmul, project, register, total, unstack


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class GRUParams:
    """The weights of a GRU, in either form; a pytree.

    The middle axis is the gate: reset, update, candidate. All leaves have one dtype: float16,
    bfloat16, float32 or float64. Nothing is checked here, since tree transformations build
    instances of anything: the functions that take params check them.

    Args:
        w_ih: input weights `[I, 3, H]`.
        w_hh: recurrent weights `[H, 3, H]`.
        b: biases `[3, H]`, or None.
        b_hn: the candidate's bias inside the reset product, `[H]`, or None; only with
            `reset_after=True`.
        reset_after: whether the reset gate acts after the recurrent product. Static: it survives
            `jax.tree.map`, `jax.vmap` and checkpoints.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> params.w_ih.shape, params.reset_after
        ((8, 3, 64), False)
    """

    w_ih: Array
    w_hh: Array
    b: Array | None
    b_hn: Array | None
    reset_after: bool = dataclasses.field(metadata={"static": True})


def gru_init(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    reset_after: bool = False,
    bias: bool = True,
    init: str = "orthogonal",
    chrono: float | None = None,
    dtype: Any = jnp.float32,
) -> GRUParams:
    """Draw the weights of a GRU.

    Args:
        key: a `jax.random.key`.
        input_size: I.
        hidden_size: H.
        reset_after: which of the two forms; see `gru_step`.
        bias: whether there are biases.
        init: `"orthogonal"` (LeCun-normal input weights, one orthogonal recurrent block a gate,
            zero biases), or `"torch"`, `"keras"`, `"flax"`, `"haiku"`: what those libraries draw.
        chrono: the longest memory to expect, T_max, in time steps: draws the update gate's bias
            as -log(u), u ~ U[1, T_max - 1], so that a fresh unit forgets over u steps.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        GRUParams with w_ih `[I, 3, H]`, w_hh `[H, 3, H]`, b `[3, H]`, b_hn `[H]`.

    Raises:
        TypeError, ValueError: an argument does not fit; chrono without biases.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), 8, 64, chrono=1000)
        >>> bool((params.b[1] <= 0).all())
        True

    Source: Cho et al. 2014, arXiv:1406.1078v3; chrono: Tallec & Ollivier 2018, arXiv:1804.11188.
    """
    key, chrono_key = jax.random.split(checks.key("gru_init", key))
    drawn = initializers.draw("gru_init", key, input_size, hidden_size, 3, init, dtype)
    b = b_hn = None
    if bias and reset_after:
        b, b_hn = drawn.b_ih + drawn.b_hh.at[2].set(0), drawn.b_hh[2]
    elif bias:
        b = drawn.b_ih + drawn.b_hh
    if chrono is not None:
        b = initializers.chrono("gru_init", chrono_key, b, chrono, {1: -1})
    return GRUParams(w_ih=drawn.w_ih, w_hh=drawn.w_hh, b=b, b_hn=b_hn, reset_after=reset_after)


def gru_step(params: GRUParams, h: Array, x: Array) -> Array:
    """One time step of a GRU.

        r  = sigmoid(x W_r + h U_r + b_r)
        z  = sigmoid(x W_z + h U_z + b_z)
        n  = tanh(x W_n + (r * h) U_n + b_n)                  reset_after=False
        n  = tanh(x W_n + b_n + r * (h U_n + b_hn))           reset_after=True
        h' = (1 - z) * h + z * n

    W are the gates of w_ih, U those of w_hh. Products accumulate in at least float32.

    Args:
        params: GRUParams.
        h: state `[H]`, of the dtype of params.
        x: input `[I]`, of the dtype of params.

    Returns:
        The next state `[H]`, which is the output too.

    Raises:
        TypeError, ValueError: a structure, shape or dtype does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> jaxgru.gru_step(params, jnp.zeros(64, "float32"), jnp.ones(8, "float32")).shape
        (64,)

    Source: Cho et al. 2014, arXiv:1406.1078v3; reset_after=True: cuDNN's and PyTorch's form.
    """
    checks.step("gru_step", GRUParams, params, h, x)
    return _advance(params, h, _project(params, x))[0]


def _sizes(params: GRUParams) -> tuple[int, int]:
    return params.w_ih.shape[0], params.w_ih.shape[-1]


def _check(caller: str, params: GRUParams) -> None:
    size = checks.hidden_size(params.w_hh, 3)
    checks.weights(
        caller, params, w_hh=(size, 3, size), w_ih=("I", 3, size), b=(3, size), b_hn=(size,)
    )
    checks.flag(caller, "GRUParams.reset_after", params.reset_after)
    if params.b_hn is not None and not params.reset_after:
        fix = "The candidate has a second bias only in the form with reset_after=True."
        raise checks.error(
            ValueError, caller, "GRUParams.b_hn", "None with reset_after=False", "an array", fix
        )


def _carry_shape(params: GRUParams) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(params.w_hh.shape[-1:], checks.dtype_of(params.w_hh))


def _project(params: GRUParams, xs: Array) -> tuple[Array, Array, Array]:
    a = project(xs, params.w_ih, params.b)
    return a[..., 0, :], a[..., 1, :], a[..., 2, :]


def _advance(params: GRUParams, h: Array, projected) -> tuple[Array, Any]:
    x_r, x_z, x_n = projected
    wide = h.astype(x_r.dtype)
    if params.reset_after:
        a_r, a_z, a_n = jnp.unstack(matmul(h, params.w_hh), axis=0)
        if params.b_hn is not None:
            a_n = a_n + params.b_hn.astype(a_n.dtype)
        r = jax.nn.sigmoid(x_r + a_r)
        z = jax.nn.sigmoid(x_z + a_z)
        n = jnp.tanh(x_n + r * a_n)
        gates = (r, z, n, a_n)
    else:
        a_r, a_z = jnp.unstack(matmul(h, params.w_hh[:, :2]), axis=0)
        r = jax.nn.sigmoid(x_r + a_r)
        z = jax.nn.sigmoid(x_z + a_z)
        n = jnp.tanh(x_n + matmul((r * wide).astype(h.dtype), params.w_hh[:, 2]))
        gates = (r, z, n)
    return ((1 - z) * wide + z * n).astype(h.dtype), gates


def _blocks(params: GRUParams):
    w_ih, w_hh = unstack(params.w_ih, 3, axis=1), unstack(params.w_hh, 3, axis=1)
    return w_ih, w_hh, unstack(params.b, 3, axis=0), params.b_hn


def _linearize(blocks, dblocks, xs, dxs, h, gates):
    # c_k is dh'/da_k, what gate k's pre-activation does to the new state. The form with
    # reset_after=True is the one that keeps a fourth array, the candidate's recurrent product.
    w_ih = blocks[0]
    dw_ih, dw_hh, db, db_hn = dblocks

    def source(k, h):
        return total(r, (dxs, w_ih[k]), (xs, dw_ih[k]), db[k], (h, dw_hh[k]))

    r, z, n = gates[:3]
    wide = h.astype(r.dtype)
    c_n = z * (1 - n * n)
    c_z = (n - wide) * z * (1 - z)
    if len(gates) == 4:
        a_n = gates[3]
        c_r = c_n * a_n * r * (1 - r)
        s_n = total(r, (dxs, w_ih[2]), (xs, dw_ih[2]), db[2])
        s_hn = total(r, (h, dw_hh[2]), db_hn)
        s = c_r * source(0, h) + c_z * source(1, h) + c_n * (s_n + r * s_hn)
        return (1 - z, c_r, c_z, c_n * r), s
    s = c_z * source(1, h) + c_n * source(2, (r * wide).astype(h.dtype))
    return (1 - z, r, wide * r * (1 - r), c_z, c_n), (source(0, h), s)


def _tangent(blocks, coefficients, dh, sources):
    u_r, u_z, u_n = blocks[1]
    leak = coefficients[0]
    wide = dh.astype(leak.dtype)
    if len(coefficients) == 4:
        _, c_r, c_z, c_n = coefficients
        new = leak * wide + c_r * matmul(dh, u_r) + c_z * matmul(dh, u_z) + c_n * matmul(dh, u_n)
        return (new + sources).astype(dh.dtype)
    _, r, c_r, c_z, c_n = coefficients  # here c_r is d(r * h)/da_r
    s_r, s = sources
    drh = r * wide + c_r * (matmul(dh, u_r) + s_r)
    new = leak * wide + c_z * matmul(dh, u_z) + c_n * matmul(drh.astype(dh.dtype), u_n)
    return (new + s).astype(dh.dtype)


_CELL = Cell(
    sizes=_sizes,
    check=_check,
    carry_shape=_carry_shape,
    output=lambda h: h,
    project=_project,
    advance=_advance,
    blocks=_blocks,
    linearize=_linearize,
    tangent=_tangent,
)
register(GRUParams, _CELL)
