"""A simple version of `jaxgru.scan`: `lax.scan` over the step function. The reference for
derivatives.

It calls the step functions of the library, whose values are compared with the NumPy oracle. JAX
differentiates the loop itself. There are no custom rules, and no masks but `where`.
"""

import jax
import jax.numpy as jnp

import jaxgru
import own_gru


def _cell_step(params, carry, x):
    if isinstance(params, jaxgru.GRUParams):
        h = jaxgru.gru_step(params, carry, x)
        return h, h
    if isinstance(params, jaxgru.LSTMParams):
        carry = jaxgru.lstm_step(params, carry, x)
        return carry, carry.h
    if isinstance(params, own_gru.OwnParams):  # however it is registered
        return own_gru.step(params, carry, x)
    min_gru = isinstance(params, jaxgru.MinGRUParams)
    h = (jaxgru.min_gru_step if min_gru else jaxgru.elman_step)(params, carry, x)
    return h, h


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
    carry = jaxgru.initial_carry(params) if carry is None else carry
    reset_carry = jaxgru.initial_carry(params) if reset_carry is None else reset_carry
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
        return (ahead, back), jnp.concatenate([hs, gs], axis=1)

    steps = xs.shape[0]
    length = steps if length is None else length
    before_end = jnp.arange(steps) < length
    real = before_end if mask is None else before_end & mask
    starts = jnp.zeros(steps, bool) if reset is None else before_end & reset
    if reverse:
        starts = jnp.append(starts[1:], False)

    def body(carry, inputs):
        x, start, real = inputs
        begin = jax.tree.map(lambda a, b: jnp.where(start, a, b), reset_carry, carry)
        after, y = _cell_step(params, begin, x)
        carry = jax.tree.map(lambda a, b: jnp.where(real, a, b), after, begin)
        return carry, jnp.where(real, y, jnp.zeros_like(y))

    return jax.lax.scan(body, carry, (xs, starts, real), reverse=reverse)
