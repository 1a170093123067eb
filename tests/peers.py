"""Other libraries as oracles: how to get at them, and their weights in jaxgru's layout.

Weights are laid over here by hand, on purpose: this code shares nothing with the library's own
converters. Update gates that weigh the old state are negated, since sigmoid(-a) = 1 - sigmoid(a).
"""

import importlib
import importlib.util
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru

#: What float64 peers are held to: the order of their sums differs from ours and their sigmoid may
#: be another formula, both a few ulp a step.
TOL = 1e-12
#: Gradients, summed over a batch and time.
GRAD_TOL = 1e-10


def peer(name):
    """Import a peer, or skip, saying what would have made it run. A broken peer is a failure."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(
            f"{name} is not installed: pip install 'jaxgru[interop]'", allow_module_level=True
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer deprecates is not our business
        return importlib.import_module(name)


def f64(x):
    return np.asarray(x, np.float64)


def random(rng, shape):
    """Weights and biases alike: nothing is zero."""
    return 0.6 * rng.standard_normal(shape)


def split(w, gates, order, flip=()):
    """`[N, G * H]` (or `[G * H]`) in a peer's order of gates -> `[N, G, H]` in ours.

    order: where our k-th gate stands in the peer's; flip: our gates that change sign.
    """
    w = f64(w)
    w = np.stack(np.split(w, gates, axis=-1), axis=-2)[..., list(order), :]
    for gate in flip:
        w[..., gate, :] *= -1
    return w


def gru(w_ih, w_hh, b, b_hn, reset_after):
    arrays = (None if a is None else jnp.asarray(a) for a in (w_ih, w_hh, b, b_hn))
    w_ih, w_hh, b, b_hn = arrays
    return jaxgru.GRUParams(w_ih=w_ih, w_hh=w_hh, b=b, b_hn=b_hn, reset_after=reset_after)


def lstm(w_ih, w_hh, b):
    return jaxgru.LSTMParams(w_ih=jnp.asarray(w_ih), w_hh=jnp.asarray(w_hh), b=jnp.asarray(b))


def elman(w_ih, w_hh, b):
    return jaxgru.ElmanParams(w_ih=jnp.asarray(w_ih), w_hh=jnp.asarray(w_hh), b=jnp.asarray(b))
