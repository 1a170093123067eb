"""Orthonormal frames, computed by matrix products alone.

The QR decomposition that `jnp.linalg.qr` calls on a CPU can deadlock: XLA decomposes a batch with
several threads and waits for them, and two batches in one program can wait for each other forever
(jaxlib 0.10 to 0.12). Since `vmap` over seeds makes batches, jaxgru does not call it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

PANEL = 32
"""The number of columns that are made orthonormal at a time, a panel. Products with the panel
update the other columns."""


def norm(vector: Array) -> Array:
    """The Euclidean norm of `[N]`, even if the squares would underflow."""
    size = jnp.abs(vector).max()
    return size * jnp.linalg.norm(vector / jnp.where(size > 0, size, 1))


def gram_schmidt(frame: Array) -> tuple[Array, Array]:
    """(Q, the diagonal of R) of frame `[n, k]` = Q R, by modified Gram-Schmidt.

    R is as accurate as with Householder reflections. A column that depends linearly on those before
    it gives a zero column of Q and a zero in R.
    """
    columns = jnp.arange(frame.shape[1])

    def one(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        frame, norms = carry
        column = lax.dynamic_index_in_dim(frame, j, 1, keepdims=False)
        length = norm(column)
        unit = column / jnp.where(length > 0, length, 1)
        along = jnp.matmul(unit, frame, precision="highest")
        frame = frame - unit[:, None] * jnp.where(columns > j, along, 0)[None]
        return lax.dynamic_update_index_in_dim(frame, unit, j, 1), norms.at[j].set(length)

    norms = jnp.zeros_like(frame[0])  # split over devices as frame is
    return lax.fori_loop(0, frame.shape[1], one, (frame, norms))


def orthonormal(frame: Array) -> Array:
    """Q of frame `[n, k]` = Q R, k <= n, where the diagonal of R is positive.

    Every panel of columns is orthogonalized twice, against the panels before it and within itself.
    After the second time Q is orthonormal up to rounding (Giraud et al. 2005).
    """
    k = frame.shape[1]
    count = -(-k // PANEL)
    padded = jnp.pad(frame, ((0, 0), (0, count * PANEL - k)))

    def one(p: Array, q: Array) -> Array:
        """Add the next panel. q holds the columns computed so far, and zeros."""
        panel = lax.dynamic_slice_in_dim(padded, p * PANEL, PANEL, 1)
        for _ in range(2):
            along = jnp.matmul(q.T, panel, precision="highest")
            panel, _ = gram_schmidt(panel - jnp.matmul(q, along, precision="highest"))
        return lax.dynamic_update_slice_in_dim(q, panel, p * PANEL, 1)

    return lax.fori_loop(0, count, one, jnp.zeros_like(padded))[:, :k]


def orthogonal(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
    """A matrix with orthonormal rows or columns, drawn as `jax.nn.initializers.orthogonal()` does.

    The draws are the same up to rounding.
    """
    rows, columns = shape
    frame = jax.random.normal(key, (max(shape), min(shape)), dtype)
    q = orthonormal(frame)
    return q if rows >= columns else q.T
