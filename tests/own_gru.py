"""The GRU as a user writes a cell, registered by its step alone, and with its weights named."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import jaxgru


@dataclasses.dataclass(frozen=True)
class OwnParams:
    w_ih: Any
    w_hh: Any
    b: Any


@dataclasses.dataclass(frozen=True)
class ProjectedParams(OwnParams):
    """The same cell, which projects the inputs of all time steps at once."""


@dataclasses.dataclass(frozen=True)
class NamedParams(OwnParams):
    """Of the same cell, with its weights named."""


def equations(h, u, params):
    (u_r, u_z, u_n), (w_r, w_z, w_n) = u, params.w_hh.swapaxes(0, 1)
    r = jax.nn.sigmoid(u_r + h @ w_r)
    z = jax.nn.sigmoid(u_z + h @ w_z)
    n = jnp.tanh(u_n + (r * h) @ w_n)
    return (1 - z) * h + z * n


def project(params, xs):
    u = jnp.einsum("ti,igh->tgh", xs, params.w_ih)
    return u if params.b is None else u + params.b[None]


def step(params, h, x):
    h = equations(h, project(params, x[None])[0], params)
    return h, h


def projected_step(params, h, u):
    h = equations(h, u, params)
    return h, h


def named_step(params, h, parts, products):
    x_r, x_z, x_n = parts
    a_r, a_z = products[0](h)
    r = jax.nn.sigmoid(x_r + a_r)
    z = jax.nn.sigmoid(x_z + a_z)
    (a_n,) = products[1](r * h)
    n = jnp.tanh(x_n + a_n)
    h = (1 - z) * h + z * n
    return h, h


def weights(params):
    return jaxgru.Weights(params.w_ih, (params.w_hh[:, :2], params.w_hh[:, 2:]), params.b)


COMMON: Any = {
    "initial_carry": lambda params: jnp.zeros_like(params.w_hh[0, 0]),
    "sizes": lambda params: (params.w_ih.shape[0], params.w_hh.shape[0]),
}
FORMS: Any = {"own_gru": {}}, {"projected_gru": {}}, {"named_gru": {}}
jaxgru.register(OwnParams, step=step, forms=FORMS[0], **COMMON)
jaxgru.register(ProjectedParams, step=projected_step, project=project, forms=FORMS[1], **COMMON)
jaxgru.register(NamedParams, step=named_step, weights=weights, forms=FORMS[2], **COMMON)

#: For `register`: a cell with two products without biases, and a carry of two arrays.
TWO_PRODUCTS: Any = {
    "weights": lambda params: jaxgru.Weights(params.w_ih, (params.w_hh[:, :2], params.w_hh[:, 2:])),
    "initial_carry": lambda params: (jnp.zeros_like(params.w_hh[0, 0]),) * 2,
}


def register(made, **changes):
    """Register a class as a cell with weights. Some arguments may be changed."""
    right: dict[str, Any] = {
        "step": named_step,
        "weights": lambda params: jaxgru.Weights(params.w_ih, (params.w_hh,)),
        "forms": {made.__name__.lower() + "_of_a_test": {}},
    }
    jaxgru.register(made, **(COMMON | right | changes))
