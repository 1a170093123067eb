"""The GRU as a user would write it: its four equations, registered from outside."""

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


COMMON: Any = {
    "initial_carry": lambda params: jnp.zeros_like(params.w_hh[0, 0]),
    "sizes": lambda params: (params.w_ih.shape[0], params.w_hh.shape[0]),
}
FORMS: Any = {"own_gru": {}}, {"projected_gru": {}}
jaxgru.register(OwnParams, step=step, forms=FORMS[0], **COMMON)
jaxgru.register(ProjectedParams, step=projected_step, project=project, forms=FORMS[1], **COMMON)
