"""Wrong registrations of cells whose weights are named."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import own_gru

pytestmark = pytest.mark.usefixtures("x64")


def plain(params, h, parts, products):
    h = jnp.tanh(parts[0] + products[0](h)[0])
    return h, h


def replaced(**changes):
    """Weights with other arrays."""

    def weights(params):
        return jaxgru.Weights(params.w_ih, (params.w_hh,))._replace(**changes)

    return weights


def twice(params, h, parts, products):
    h = jnp.tanh(products[0](h)[0] + products[0](parts[0])[0])
    return h, h


def never(params, h, parts, products):
    return parts[0], parts[0]


def swapped(params, h, parts, products):
    (a,) = products[1](h)
    (b,) = products[0](a)
    return b, b


def of_scalar(params, h, parts, products):
    (a,) = products[0](h.sum())
    return a, a


def reads(params, h, parts, products):
    h = parts[0] + products[0](h)[0] * params.w_hh[0, 0, 0]
    return h, h


def closes_over(params, h, parts, products):
    h = parts[0] + products[0](h)[0] * np.ones(4, h.dtype)
    return h, h


def norm(params, h, parts, products):
    h = parts[0] + products[0](h)[0]
    h = h / jnp.sum(h, axis=-1, keepdims=True)
    return h, h


def other_output(params, h, parts, products):
    h = parts[0] + products[0](h)[0]
    return h, 2 * h


def other_carry(params, h, parts, products):
    h = parts[0] + products[0](h)[0]
    return (h, h), h


def no_pair(params, h, parts, products):
    return parts[0] + products[0](h)[0]


def through(over):
    def step(params, h, parts, products):
        h = over(parts[0] + products[0](h)[0])
        return h, h

    return step


@jax.custom_vjp
def own_rule(x):
    return x


own_rule.defvjp(lambda x: (x, None), lambda _, ct: (ct,))
#: For each operation, a function that contains it and returns an array of the same shape.
MIXED = {
    "rev": lambda x: x[::-1],
    "sort": jnp.sort,
    "cumsum": jnp.cumsum,
    "slice": lambda x: jnp.roll(x, 1),
    "reduce_max": lambda x: x - jnp.max(x),
    "cond": lambda x: jax.lax.cond(jnp.array(True), jnp.sin, jnp.cos, x),
    "while": lambda x: jax.lax.fori_loop(0, jnp.int32(3), lambda _, x: 2 * x, x),
    "remat2": jax.checkpoint(jnp.sin),
    "custom_vjp_call": own_rule,
}


@jax.custom_jvp
def norm_in_the_rule(x):
    return jnp.tanh(x)


norm_in_the_rule.defjvp(lambda x, dx: (jnp.tanh(x[0]), dx[0] / jnp.sum(dx[0])))


def printed(x):
    jax.debug.print("{}", x)
    return x


#: Functions that depend on the shapes or on the places of units.
BY_SHAPE = {
    "size": lambda x: x / x.size,
    "units": lambda x: x / x.shape[-1],
    "axes": lambda x: x if x.ndim == 1 else jnp.tanh(x),
    "transposed": lambda x: x.T,
    "an array of H": lambda x: x * jax.jit(lambda: np.ones(4, "float32"))(),
}


TWO = lambda params: jaxgru.Weights(params.w_ih, (params.w_hh,) * 2)  # noqa: E731
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "project too": ({"project": lambda params, xs: xs}, "register: project must be None with"),
    "weights of two": ({"weights": lambda a, b: a}, "weights must be a function of params"),
    "step of three": ({"step": own_gru.step}, "register: step must be a function of params, carry, "
                      "parts, products"),
    "step without weights": ({"weights": None}, "step must be a function of params, carry, x, got "
                             "a function of (params, h, parts, products). A step takes params, "
                             "carry, parts, products only with weights=."),
    "no Weights": ({"weights": lambda params: (params.w_ih, params.w_hh)},
                   "weights of Wrong: what it returns must be jaxgru.Weights, got tuple"),
    "w_hh no tuple": ({"weights": lambda params: jaxgru.Weights(params.w_ih, params.w_hh)},
                      "w_hh must be a tuple of at most two arrays, got float32[4, 1, 4]. Pass (w,) "
                      "for one array w, and () for none"),
    "three products": ({"weights": lambda params: jaxgru.Weights(params.w_ih, (params.w_hh,) * 3)},
                       "w_hh must be a tuple of at most two arrays, got 3 arrays"),
    "w_ih of two axes": ({"weights": lambda params: jaxgru.Weights(params.w_ih[:, 0], ())},
                         "w_ih must be float32[3, G, 4], got float32[3, 4]. The middle axis is "
                         "the gate. For a single gate, pass w[:, None]"),
    "w_hh of two axes": ({"weights": replaced(w_hh=(jnp.ones((4, 4), "float32"),))},
                         "w_hh[0] must be float32[4, g_0, 4], got float32[4, 4]"),
    "b": ({"weights": replaced(b=jnp.ones(4, "float32"))}, "b must be float32[1, 4], got "
          "float32[4]. The first axis is the gate. For a single gate, pass b[None]"),
    "b of another dtype": ({"weights": replaced(b=jnp.ones((1, 4), "float16"))},
                           "b must be float32[1, 4], got float16[1, 4]"),
    "b_hn": ({"weights": replaced(b_hn=jnp.ones((1, 4), "float32"))}, "b_hn must be float32[4]"),
    "b_hn without w_hh": ({"weights": replaced(w_hh=(), b_hn=jnp.ones(4, "float32"))},
                          "b_hn must be None without w_hh"),
    "carry of two axes": ({"initial_carry": lambda params: params.w_hh[0]},
                          "initial_carry of Wrong: what it returns must be float32[4] for a "
                          "cell with weights, got float32[1, 4]"),
    "product twice": ({"step": twice}, "step of Wrong: products must be called once each, in the "
                      "order of w_hh (1 in all), got products[0] in call 2"),
    "product never": ({"step": never}, "products must be called once each (1 in all), got 0 calls"),
    "second product first": ({"step": swapped, "weights": TWO}, "got products[1] in call 1"),
    "operand": ({"step": of_scalar}, "the operand of products[0] must be float32[4], as a carry, "
                "got float32[]"),
    "reads params": ({"step": reads}, "what it uses must be no array of params, since parts and "
                     "products replace them, got params.wrong_of_a_test.w_hh. A vector with a "
                     "number for each unit can be the bias of one more gate, with zeros in w_ih"),
    "closes over an array": ({"step": closes_over}, "must be no array but its arguments"),
    "norm over units": ({"step": norm}, "its equations must be operations on each unit by itself "
                        "for a cell with weights, got reduce_sum"),
    **{f"{name} over units": ({"step": through(over)}, f"with weights, got {name}")
       for name, over in MIXED.items()},
    "rule": ({"step": through(norm_in_the_rule)}, "with weights, got reduce_sum"),
    "callback": ({"step": through(lambda x: jax.pure_callback(np.sin, x, x))}, "got pure_callback"),
    "places": ({"step": through(lambda x: x * jnp.arange(4.0, dtype="float32"))},
               "got iota. A vector with"),
    "prints": ({"step": through(printed)}, "its equations must be pure for a cell with weights, "
               "got the effects Debug"),
    **{f"by {name}": ({"step": through(over)}, "its equations must be the same for all shapes")
       for name, over in BY_SHAPE.items()},
    "no part": ({"weights": lambda params: jaxgru.Weights(params.w_ih[:, :0], (params.w_hh,))},
                "w_ih must be float32[3, G, 4], got float32[3, 0, 4]"),
    "no result": ({"weights": replaced(w_hh=(jnp.ones((4, 0, 4), "float32"),))},
                  "w_hh[0] must be float32[4, g_0, 4], got float32[4, 0, 4]"),
    "no carry": ({"initial_carry": lambda params: ()}, "what it returns must be a tree that "
                 "contains an array, got ()"),
    "output": ({"step": other_output}, "its output must be one of the arrays of the next carry"),
    "carry": ({"step": other_carry}, "step of Wrong: the next carry must be"),
    "no pair": ({"step": no_pair}, "step of Wrong: what step returns must be a tuple (carry, y)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong(case):
    changes, expected = WRONG[case]

    @dataclasses.dataclass(frozen=True)
    class Wrong:
        w_ih: Any
        w_hh: Any

    def run():
        own_gru.register(Wrong, **({"step": plain} | changes))
        params = Wrong(jnp.ones((3, 1, 4), "float32"), jnp.ones((4, 1, 4), "float32"))
        jaxgru.scan(params, jnp.ones((2, 3), "float32"))

    with pytest.raises((TypeError, ValueError)) as raised:
        run()
    assert expected in str(raised.value), raised.value


def test_wrong_params():
    """Their own errors come before those of weights."""
    params = own_gru.NamedParams(jnp.ones((3, 3, 4)), None, "text")
    with pytest.raises(
        TypeError,
        match=r"scan: NamedParams.named_gru.b must be an array .* str. If it is no weight, ",
    ):
        jaxgru.scan(params, jnp.ones((2, 3)))


def test_wrong_values_from_outside():
    """A gradient with respect to a number that a step closes over would be zero."""

    @dataclasses.dataclass(frozen=True)
    class Outside:
        w_ih: Any
        w_hh: Any

    def loss(rate):
        own_gru.register(Outside, step=through(lambda x: rate * x))
        params = Outside(jnp.ones((3, 1, 4), "float32"), jnp.ones((4, 1, 4), "float32"))
        return jnp.sum(jaxgru.scan(params, jnp.ones((2, 3), "float32"))[1])

    with pytest.raises(ValueError, match="got a traced value from outside"):
        jax.grad(loss)(jnp.float32(0.1))


def test_wrong_params_in_the_carry():
    @dataclasses.dataclass(frozen=True)
    class Kept:
        w_ih: Any
        w_hh: Any
        b: Any

    def step(params, carry, parts, products):
        h = parts[0] + products[0](carry[0])[0]
        return (h, params.b), h

    own_gru.register(Kept, step=step, initial_carry=lambda params: (params.b, params.b))
    arrays = (jnp.ones(shape, "float32") for shape in ((3, 1, 4), (4, 1, 4), (4,)))
    with pytest.raises(ValueError, match="what it uses must be no array of params"):
        jaxgru.scan(Kept(*arrays), jnp.ones((2, 3), "float32"))
