"""The gated recurrent unit: parameters, initial values and one step.

In these equations z_t is the weight of the *new* content:

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
from jaxgru.cell import Blocks, advance, flat, register, total
from jaxgru.derivative import derived
from jaxgru.forms import weights


@weights(gru={"reset_after": False}, gru_after={"reset_after": True})
@dataclasses.dataclass(frozen=True, kw_only=True)
class GRUParams:
    """The weights of a GRU in either form, a pytree.

    The middle axis is the gate: reset, update, candidate. All leaves have one dtype: float16,
    bfloat16, float32 or float64. The class checks nothing, since tree transformations build
    instances with leaves of any kind. The functions that take params check them.

    Args:
        w_ih: input weights `[I, 3, H]`.
        w_hh: recurrent weights `[H, 3, H]`.
        b: biases `[3, H]`, or None.
        b_hn: the bias of the candidate inside the reset product, `[H]`, or None. Only the form with
            `reset_after=True` has it.
        reset_after: whether the reset gate acts after the recurrent product. It is static, so it
            survives `jax.tree.map` and `jax.vmap`. The names of the leaves in a checkpoint contain
            it, so no checkpoint is restored into the other form: see docs/recipes/saving.md.

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
        input_size: I, the number of input features.
        hidden_size: H, the number of units.
        reset_after: which of the two forms to draw. `gru_step` has their equations.
        bias: whether there are biases.
        init: the initial weights. `"orthogonal"` draws LeCun-normal input weights, an orthogonal
            recurrent block for each gate, and zero biases. `"torch"`, `"keras"`, `"flax"` and
            `"haiku"` draw what those libraries draw.
        chrono: the longest memory to expect, T_max, in time steps. It draws the bias of the update
            gate as -log(u), u ~ U[1, T_max - 1], so that a fresh unit forgets over u steps.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        GRUParams with w_ih `[I, 3, H]`, w_hh `[H, 3, H]`, b `[3, H]`, b_hn `[H]`.

    Raises:
        TypeError, ValueError: an argument does not fit, or chrono is given without biases.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), 8, 64, chrono=1000)
        >>> bool((params.b[1] <= 0).all())
        True

    Source: Cho et al. 2014, arXiv:1406.1078v3; chrono: Tallec & Ollivier 2018, arXiv:1804.11188.
    """
    checks.flag("gru_init", "reset_after", reset_after)
    checks.flag("gru_init", "bias", bias)
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

    W are the gates of w_ih, and U are those of w_hh. Products accumulate in at least float32.

    Args:
        params: GRUParams.
        h: state `[H]`, of the dtype of params.
        x: input `[I]`, of the dtype of params.

    Returns:
        The next state `[H]`, which is also the output.

    Raises:
        TypeError, ValueError: a structure, shape or dtype does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> jaxgru.gru_step(params, jnp.zeros(64, "float32"), jnp.ones(8, "float32")).shape
        (64,)

    Source: Cho et al. 2014, arXiv:1406.1078v3. `reset_after=True` is the form of cuDNN and PyTorch.
    """
    params, h, x = checks.step("gru_step", GRUParams, params, h, x)
    return advance(_CELL, _blocks(params), h, x)[0]


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


def _blocks(params: GRUParams) -> Blocks:
    w_hh: Any = params.w_hh  # it may be None in a tangent
    if w_hh is None:
        products = (None,) if params.reset_after else (None, None)
    elif params.reset_after:
        products = (flat(w_hh),)
    else:  # the product of the candidate needs the reset gate first
        products = (flat(w_hh[:, :2]), w_hh[:, 2])
    return Blocks(flat(params.w_ih), products, flat(params.b), params.b_hn)


def _advance(products, blocks: Blocks, h: Array, projected: tuple[Array, ...]) -> tuple[Array, Any]:
    x_r, x_z, x_n = projected
    wide = h.astype(x_r.dtype)
    if len(products) == 1:
        a_r, a_z, a_n = products[0](h)
        a_n = total(a_n, blocks.b_hn)
        r = jax.nn.sigmoid(x_r + a_r)
        z = jax.nn.sigmoid(x_z + a_z)
        n = jnp.tanh(x_n + r * a_n)
        gates = (r, z, n, a_n)
    else:
        a_r, a_z = products[0](h)
        r = jax.nn.sigmoid(x_r + a_r)
        z = jax.nn.sigmoid(x_z + a_z)
        n = jnp.tanh(x_n + products[1]((r * wide).astype(h.dtype))[0])
        gates = (r, z, n)
    return ((1 - z) * wide + z * n).astype(h.dtype), gates


_CELL = derived(
    counts=lambda gates: (3,) if len(gates) == 4 else (2, 1),
    gates=3,
    sizes=_sizes,
    check=_check,
    carry_shape=_carry_shape,
    output=lambda h: h,
    blocks=_blocks,
    advance=_advance,
    bound=lambda start, steps: jnp.maximum(start, 1),
)
register(GRUParams, _CELL)
