"""A GRU batched and differentiated by hand, as a reference for `vmap` and `grad` of `jaxgru.scan`.

It is time-major, resets after the product, and has its loops and chunks written out. Nothing here
is general.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgru import GRUParams


def forward(params: GRUParams, xs: Array) -> Array:
    """`[T, B, I]` -> `[T, B, H]`."""
    return _forward(params, xs, save=False)[0]


def gradient(params: GRUParams, xs: Array, cotangent: Array) -> tuple[Any, Array]:
    """The gradients of params and xs."""
    _, batch, inputs = xs.shape
    size = params.w_hh.shape[0]
    hs, gates = _forward(params, xs, save=True)
    before = jnp.concatenate([jnp.zeros((1, batch, size)), hs[:-1]])
    w, u = params.w_ih.reshape(inputs, -1).T, params.w_hh.reshape(size, -1).T

    def step(g, inputs):
        ct, h, r, z, n, a_n = inputs
        g = g + ct
        d_n = g * z * (1 - n * n)
        d_z = g * (n - h) * z * (1 - z)
        d_r = d_n * a_n * r * (1 - r)
        d = jnp.concatenate([d_r, d_z, d_n * r], -1)
        return g * (1 - z) + d @ u, (d, d_n)

    def chunk(state, inputs):
        g, d_w, d_u, d_b, d_b_hn = state
        ct, x, h, gates = inputs
        g, (d_h, d_n) = lax.scan(step, g, (ct, h, *gates), reverse=True)
        rows = len(x) * batch
        d_h, d_n = d_h.reshape(rows, -1), d_n.reshape(rows, -1)
        d_x = jnp.concatenate([d_h[:, : 2 * size], d_n], -1)
        d_w = d_w + x.reshape(rows, -1).T @ d_x
        d_u = d_u + h.reshape(rows, -1).T @ d_h
        d_b, d_b_hn = d_b + d_x.sum(0), d_b_hn + d_h[:, 2 * size :].sum(0)
        return (g, d_w, d_u, d_b, d_b_hn), (d_x @ w).reshape(x.shape)

    zeros = [jnp.zeros(s) for s in ((batch, size), w.T.shape, u.T.shape, 3 * size, size)]
    streams = jax.tree.map(lambda a: _chunks(a, batch), (cotangent, xs, before, gates))
    (_, d_w, d_u, d_b, d_b_hn), d_xs = lax.scan(chunk, tuple(zeros), streams, reverse=True)
    d_params = GRUParams(
        w_ih=d_w.reshape(params.w_ih.shape),
        w_hh=d_u.reshape(params.w_hh.shape),
        b=d_b.reshape(3, size),
        b_hn=d_b_hn,
        reset_after=True,
    )
    return d_params, d_xs.reshape(xs.shape)


def _forward(params, xs, save):
    steps, batch, inputs = xs.shape
    size = params.w_hh.shape[0]
    w, u = params.w_ih.reshape(inputs, -1), params.w_hh.reshape(size, -1)
    b = params.b.reshape(-1)

    def step(h, a):
        a = jnp.split(a @ w + b, 3, -1) if inputs <= 16 else a
        u_r, u_z, u_n = jnp.split(h @ u, 3, -1)
        u_n = u_n + params.b_hn
        r, z = jax.nn.sigmoid(a[0] + u_r), jax.nn.sigmoid(a[1] + u_z)
        n = jnp.tanh(a[2] + r * u_n)
        h = h + z * (n - h)
        return h, (h, (r, z, n, u_n) if save else None)

    def chunk(h, x):
        a = (x.reshape(-1, inputs) @ w + b).reshape(*x.shape[:-1], -1)
        return lax.scan(step, h, tuple(jnp.split(a, 3, -1)))

    h = jnp.zeros((batch, size))
    if inputs <= 16:
        return lax.scan(step, h, xs)[1]
    ys = lax.scan(chunk, h, _chunks(xs, batch))[1]
    return jax.tree.map(lambda a: a.reshape(steps, batch, size), ys)


def _chunks(a: Array, batch: int) -> Array:
    """`[T, ...]` -> `[T / k, k, ...]`. k is a divisor of T that gives about 512 rows."""
    k = min(len(a), max(8, 512 // batch))
    while len(a) % k:
        k -= 1
    return a.reshape(len(a) // k, k, *a.shape[1:])
