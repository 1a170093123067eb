"""Each wrong call names the call, the argument, the expected and the given value."""

import jax
import jax.numpy as jnp
import pytest

import jaxgru
from cases import INPUT, STEPS, draw
from jaxgru import diagnostics

GRU, ELMAN = draw("gru", dtype="float32"), draw("elman", dtype="float32")
LSTM, BOTH = draw("lstm", dtype="float32"), draw("bidirectional", dtype="float32")
XS = jnp.zeros((STEPS, INPUT), "float32")
X = XS[0]
KEY = jax.random.key(0)


def last(hs):
    return hs[-1].sum()


SEQUENCE_CALLS = {
    "state_jacobians": diagnostics.state_jacobians,
    "gru_jacobian_terms": diagnostics.gru_jacobian_terms,
    "gradient_norms": lambda *args: diagnostics.gradient_norms(last, *args),
    "memory_gradient": diagnostics.memory_gradient,
    "lyapunov_spectrum": diagnostics.lyapunov_spectrum,
}


@pytest.mark.parametrize("name", SEQUENCE_CALLS)
def test_sequences_and_carries(name):
    call = SEQUENCE_CALLS[name]
    with pytest.raises(
        ValueError, match=rf"{name}: xs must be .*\[T, 3\].*float32\[1, 6, 3\].*vmap"
    ):
        call(GRU, XS[None])
    with pytest.raises(TypeError, match=rf"{name}: xs must be float32"):
        call(GRU, XS.astype("bfloat16"))
    with pytest.raises(ValueError, match=rf"{name}: carry must be .*\[4\], got float32\[5\]"):
        call(GRU, XS, jnp.zeros(5, "float32"))
    with pytest.raises(TypeError, match=rf"{name}: params must be GRUParams"):
        call({}, XS)


@pytest.mark.parametrize("name", [*SEQUENCE_CALLS, "fixed_points", "gate_statistics"])
def test_params_that_have_no_such_state(name):
    calls = SEQUENCE_CALLS | {
        "fixed_points": lambda params, xs: diagnostics.fixed_points(params, xs[0], KEY),
        "gate_statistics": lambda params, xs: diagnostics.gate_statistics(params, [xs]),
    }
    half = draw("gru", dtype="bfloat16")
    with pytest.raises(
        TypeError, match=rf"{name}: params must be float32 or float64, got bfloat16"
    ):
        calls[name](half, XS.astype("bfloat16"))
    if name != "gru_jacobian_terms":
        expected = rf"{name}: params must be params that run forward in time, got Bidirectional"
        for params in (BOTH, jaxgru.Stack((BOTH,))):
            with pytest.raises(TypeError, match=expected):
                calls[name](params, XS)


CASES = {
    "terms of another cell": (
        lambda: diagnostics.gru_jacobian_terms(LSTM, XS),
        TypeError,
        "gru_jacobian_terms: params must be GRUParams, got LSTMParams. Use state_jacobians",
    ),
    "loss no function": (
        lambda: diagnostics.gradient_norms(3, GRU, XS),
        TypeError,
        "gradient_norms: loss must be a function of the outputs",
    ),
    "loss no scalar": (
        lambda: diagnostics.gradient_norms(lambda hs: hs[-1], GRU, XS),
        ValueError,
        "gradient_norms: loss must be .* got a function to float32.4.",
    ),
    "probes without key": (
        lambda: diagnostics.memory_gradient(GRU, XS, probes=3),
        ValueError,
        "memory_gradient: key must be given with probes, got None",
    ),
    "key without probes": (
        lambda: diagnostics.memory_gradient(GRU, XS, key=KEY),
        ValueError,
        "memory_gradient: key must be None without probes",
    ),
    "probes with singular values": (
        lambda: diagnostics.memory_gradient(GRU, XS, probes=3, key=KEY, singular_values=True),
        ValueError,
        "memory_gradient: probes must be None with singular_values=True, got 3",
    ),
    "no probes": (
        lambda: diagnostics.memory_gradient(GRU, XS, probes=0, key=KEY),
        ValueError,
        "memory_gradient: probes must be a positive integer, got 0",
    ),
    "singular values no bool": (
        lambda: diagnostics.memory_gradient(GRU, XS, singular_values=1),
        TypeError,
        "memory_gradient: singular_values must be True or False",
    ),
    "more exponents than the state has": (
        lambda: diagnostics.lyapunov_spectrum(LSTM, XS, k=9),
        ValueError,
        "lyapunov_spectrum: k must be at most S = 8, got 9",
    ),
    "negative warm-up": (
        lambda: diagnostics.lyapunov_spectrum(GRU, XS, warm_up=-1),
        ValueError,
        "lyapunov_spectrum: warm_up must be an integer of at least 0, got -1",
    ),
    "nothing after warm-up": (
        lambda: diagnostics.lyapunov_spectrum(GRU, XS, warm_up=6),
        ValueError,
        "lyapunov_spectrum: xs must be at least warm_up . every = 7 steps long, got float32.6, 3.",
    ),
    "every 0": (
        lambda: diagnostics.lyapunov_spectrum(GRU, XS, every=0),
        ValueError,
        "lyapunov_spectrum: every must be a positive integer, got 0",
    ),
    "x a sequence": (
        lambda: diagnostics.fixed_points(GRU, XS, KEY),
        ValueError,
        "fixed_points: x must be an array of shape .3., got float32.6, 3.",
    ),
    "states of another size": (
        lambda: diagnostics.fixed_points(LSTM, X, KEY, jnp.zeros((2, 4), "float32")),
        ValueError,
        "fixed_points: states must be an array of shape .N, 8., got float32.2, 4.. Each row",
    ),
    "no state": (
        lambda: diagnostics.fixed_points(GRU, X, KEY, jnp.zeros((0, 4), "float32")),
        ValueError,
        "fixed_points: states must be an array with at least one row",
    ),
    "key a number": (
        lambda: diagnostics.fixed_points(GRU, X, 0),
        TypeError,
        "fixed_points: key must be one key",
    ),
    "negative spread": (
        lambda: diagnostics.fixed_points(GRU, X, KEY, spread=-1),
        ValueError,
        "fixed_points: spread must be at least 0, got -1",
    ),
    "no gates": (
        lambda: diagnostics.gate_statistics(ELMAN, [XS]),
        TypeError,
        "gate_statistics: params must be GRUParams or LSTMParams, got ElmanParams",
    ),
    "gates of a Stack": (
        lambda: diagnostics.gate_statistics(jaxgru.Stack((GRU,)), [XS]),
        TypeError,
        "gate_statistics: params must be GRUParams or LSTMParams, got Stack. Pass one layer",
    ),
    "no sequences": (
        lambda: diagnostics.gate_statistics(GRU, iter(())),
        ValueError,
        "gate_statistics: sequences must be at least one step, got none. An iterator",
    ),
    "one sequence as the iterable": (
        lambda: diagnostics.gate_statistics(GRU, XS),
        ValueError,
        "gate_statistics: sequences must be .*B, T, 3.*, got float32.3.. Each item",
    ),
    "sequences of another dtype": (
        lambda: diagnostics.gate_statistics(GRU, [XS.astype("float16")]),
        TypeError,
        "gate_statistics: sequences must be float32, the dtype of params",
    ),
    "quantile above 1": (
        lambda: diagnostics.gate_statistics(GRU, [XS], quantiles=(0.5, 1.5)),
        ValueError,
        "gate_statistics: quantiles must be a rising tuple of numbers in",
    ),
    "one quantile by itself": (
        lambda: diagnostics.gate_statistics(GRU, [XS], quantiles=0.5),
        TypeError,
        "gate_statistics: quantiles must be a rising tuple of numbers in .0, 1., got float",
    ),
    "limits the wrong way round": (
        lambda: diagnostics.gate_statistics(GRU, [XS], saturated=(0.9, 0.1)),
        ValueError,
        "gate_statistics: saturated must be a rising tuple of 2 numbers in",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_is_wrong(case):
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        call()
