"""Other libraries as oracles: their imports, and their weights in the layout of jaxgru.

This code converts weights by hand, and deliberately shares nothing with the converters of jaxgru.
It negates update gates that weigh the old state, since sigmoid(-a) = 1 - sigmoid(a).
"""

import importlib
import importlib.util
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru

#: The tolerance for float64 peers. They sum in another order, and may use another formula for the
#: sigmoid. Both cost a few ulp in each step.
TOL = 1e-12
#: The tolerance for gradients, which are sums over a batch and time.
GRAD_TOL = 1e-10


def peer(name):
    """Import a peer, or skip and say how to install it. A broken peer is a failure."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(
            f"{name} is not installed: pip install 'jaxgru[interop]'", allow_module_level=True
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of a peer do not matter here
        return importlib.import_module(name)


def f64(x):
    return np.asarray(x, np.float64)


def random(rng, shape):
    """Draw weights and biases. None of them is zero."""
    return 0.6 * rng.standard_normal(shape)


def split(w, gates, order, flip=()):
    """Convert `[N, G * H]` or `[G * H]` in the gate order of a peer to `[N, G, H]` in ours.

    order has the position of our k-th gate in the peer. flip has our gates that change sign.
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
