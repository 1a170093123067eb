"""What one time step does to a small change of the state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks
from jaxgru.cell import Carry, Params, advance, cell_of
from jaxgru.diagnostics.states import before, check, states_of
from jaxgru.gru import GRUParams
from jaxgru.programs import by_type


class GRUJacobianTerms(NamedTuple):
    """The terms of dh_t/dh_{t-1} of a GRU, `[T, H, H]` each. Their sum is the Jacobian."""

    leak: Array
    """D(1 - z), the diagonal matrix of the fraction of the state that the update gate keeps."""
    candidate: Array
    """The path through the candidate n, with all gates held fixed."""
    reset: Array
    """The path through the reset gate r."""
    update: Array
    """The path through the update gate z."""

    def total(self) -> Array:
        """The Jacobian, `[T, H, H]`."""
        return self.leak + self.candidate + self.reset + self.update

    def shares(self) -> Array:
        """The share of each term in the Jacobian, `[T, 4]`. The shares add up to 1.

            share_k = <A_k, J> / <J, J>,    <A, B> = sum_ij A_ij B_ij

        A term that works against the others has a negative share.
        """
        total = self.total()
        along = [(term * total).sum((-2, -1)) for term in self]
        return jnp.stack(along, axis=-1) / (total * total).sum((-2, -1))[..., None]


def state_jacobians(params: Params, xs: Array, carry: Carry | None = None) -> Array:
    """Compute the Jacobian of every step: what it does to a small change of the state.

        J_t = ds_t/ds_{t-1},    (J_t)_ij = d(s_t)_i / d(s_{t-1})_j,    t = 1 .. T

    A GRU has a closed form (`gru_jacobian_terms`). The other cells need S forward derivatives. The
    result needs memory for T S^2 numbers. `memory_gradient` and `lyapunov_spectrum` measure
    products of Jacobians without that memory.

    Args:
        params: the params of any cell whose carry consists of floats of the dtype of params, or a
            Stack of such cells. The dtype is float32 or float64.
        xs: inputs `[T, I]`, of the dtype of params.
        carry: where to start. None stands for `initial_carry(params)`.

    Returns:
        `[T, S, S]`. For a GRU and a plain RNN the state s is h, and S = H. For an LSTM it is
        [h, c], and S = 2 H. For another cell it consists of all numbers of the carry. For a Stack
        it is the states of all layers, concatenated. Its Jacobian is block lower triangular, since
        a layer sees only itself and the layers below.

    Raises:
        TypeError: params contain a Bidirectional, which does not run forward in time; or a
            structure or dtype does not fit.
        ValueError: a shape does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.lstm_init(jax.random.key(0), input_size=3, hidden_size=8)
        >>> jaxgru.diagnostics.state_jacobians(params, jnp.ones((20, 3), "float32")).shape
        (20, 16, 16)

    Source: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063.
    """
    carry = check("state_jacobians", params, xs, carry)
    if isinstance(params, GRUParams):
        return _terms(params, xs, carry).total()
    return _jacobians(params, xs, carry)


@by_type()
def _jacobians(params: Params, xs: Array, carry: Carry) -> Array:
    states = states_of(params)
    return jax.vmap(jax.jacfwd(states.advance))(before(states, carry, xs), xs)


def gru_jacobian_terms(
    params: GRUParams, xs: Array, carry: Array | None = None
) -> GRUJacobianTerms:
    """Compute the Jacobian of every step of a GRU, split into its four terms.

        dh_t/dh_{t-1} = D(1-z)                                               leak
            + D(z (1-n^2)) U_n D(r)                                          candidate
            + D(z (1-n^2)) U_n D(h r (1-r)) U_r                              reset
            + D((n-h) z (1-z)) U_z                                           update

    Here h = h_{t-1}, D(v) is the diagonal matrix with v on its diagonal, and U_k is the transpose
    of `w_hh[:, k]`, so that the step adds U_k h to gate k. With `reset_after=True` the product of
    the candidate is m = U_n h + b_hn, and two terms differ:

        candidate = D(z (1-n^2) r) U_n,    reset = D(z (1-n^2) m r (1-r)) U_r

    Args:
        params: GRUParams of either form, in float32 or float64.
        xs: inputs `[T, I]`, of the dtype of params.
        carry: h_0 `[H]`. None stands for zeros.

    Returns:
        GRUJacobianTerms(leak, candidate, reset, update), `[T, H, H]` each, with `.total()` and
        `.shares()`.

    Raises:
        TypeError, ValueError: a structure, shape or dtype does not fit, or params belong to another
            cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=3, hidden_size=8)
        >>> xs = jnp.ones((20, 3), "float32")
        >>> terms = jaxgru.diagnostics.gru_jacobian_terms(params, xs)
        >>> jacobians = jaxgru.diagnostics.state_jacobians(params, xs)
        >>> bool(jnp.allclose(sum(terms), jacobians, atol=1e-6)), terms.shares().shape
        (True, (20, 4))

    Source: the derivative of Cho et al. 2014, arXiv:1406.1078v3.
    """
    if not isinstance(params, GRUParams):
        fix = "Use state_jacobians, which takes any params."
        got = checks.describe(params)
        raise checks.error(TypeError, "gru_jacobian_terms", "params", "GRUParams", got, fix)
    return _terms(params, xs, check("gru_jacobian_terms", params, xs, carry))


@jax.jit
def _terms(params: GRUParams, xs: Array, carry: Array) -> GRUJacobianTerms:
    h = before(states_of(params), carry, xs)
    cell = cell_of(params)
    _, gates = advance(cell, cell.blocks(params), h, xs)
    r, z, n = gates[:3]
    u_r, u_z, u_n = jnp.moveaxis(params.w_hh, 0, 2)  # [3, H, H], the transposes for each gate

    into_n = z * (1 - n * n)
    if params.reset_after:
        candidate = _scaled(into_n * r, u_n)
        reset = _scaled(into_n * gates[3] * r * (1 - r), u_r)
    else:
        candidate = _scaled(into_n, u_n) * r[:, None, :]
        into_r = _scaled(into_n, u_n) * (h * r * (1 - r))[:, None, :]
        reset = jnp.einsum("tij,jk->tik", into_r, u_r)
    leak = _scaled(1 - z, jnp.eye(h.shape[1], dtype=h.dtype))
    return GRUJacobianTerms(leak, candidate, reset, _scaled((n - h) * z * (1 - z), u_z))


def _scaled(rows: Array, matrix: Array) -> Array:
    """D(rows_t) @ matrix for every t, `[T, H], [H, H] -> [T, H, H]`."""
    return rows[:, :, None] * matrix[None]
