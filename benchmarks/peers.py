"""The contestants. Each runs the same weights on the same data, in its preferred layout."""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxgru

os.environ.setdefault("KERAS_BACKEND", "jax")

Sizes = tuple[tuple[int, int, int, int], ...]
#: B, T, I, H
GRID: Sizes = (
    (32, 1000, 10, 128),
    (64, 256, 128, 256),
    (64, 64, 512, 512),
    (1, 1000, 64, 128),
    (256, 64, 64, 64),
    (8, 10000, 8, 32),
    (50, 600, 2, 128),
    (32, 128, 256, 1024),
)
SMALL_GRID = ((32, 1000, 10, 128), (64, 256, 128, 256), (256, 64, 64, 64))


def name(sizes: tuple[int, ...]) -> str:
    """Sizes in words."""
    return "B={} T={} I={} H={}".format(*sizes)


def assert_equal(first: Any, *others: Any) -> None:
    """Raise unless arrays agree, up to the order of float32 sums over 10,000 steps."""
    scale = float(np.abs(first).max())
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=2e-4 * scale)


class Problem(NamedTuple):
    """The problem to compute. Inputs are `[B, T, I]`, and the outputs' cotangent is `[B, T, H]`."""

    kind: str  # "gru_after", "gru_before", "lstm" or "elman"
    params: Any
    xs: np.ndarray
    cotangent: np.ndarray

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, T, I, H."""
        return (*self.xs.shape, self.params.w_hh.shape[-1])


class Model(NamedTuple):
    """One contestant, ready to run. Its arrays are time-major or batch-major."""

    time_major: bool
    forward: Callable[[], Any]
    """-> the outputs, once they are ready."""
    gradient: Callable[[], Any] | None
    """-> the gradient of the inputs. The gradient of the weights is computed too."""


def problem(kind: str, batch: int, steps: int, inputs: int, hidden: int) -> Problem:
    """Random weights and data."""
    keys = jax.random.split(jax.random.key(0), 5)
    if kind.startswith("gru"):
        after = kind == "gru_after"
        params = draw_gru(keys[0], inputs, hidden, reset_after=after, init="torch")
    else:
        init = {"lstm": jaxgru.lstm_init, "elman": jaxgru.elman_init}[kind]
        params = init(keys[0], inputs, hidden, init="torch")
    xs = jax.random.normal(keys[1], (batch, steps, inputs))
    cotangent = jax.random.normal(keys[2], (batch, steps, hidden))
    return Problem(kind, params, np.asarray(xs), np.asarray(cotangent))


def draw_gru(key: jax.Array, inputs: int, hidden: int, **options: Any) -> jaxgru.GRUParams:
    """Draw random weights. b_hn is zero, since flax.nnx has none."""
    params = jaxgru.gru_init(key, inputs, hidden, **options)
    return jax.tree.map(lambda w: w if w.ndim > 1 else jnp.zeros_like(w), params)


def build(name: str, problem: Problem) -> Model:
    """Build a contestant. Raise ImportError if its library is not installed."""
    return _BUILDERS[name](problem)


def batched(params: Any, xs: jax.Array, time_major: bool = False) -> jax.Array:
    """The outputs of `jaxgru.scan` over a batch."""
    axis = 1 if time_major else 0
    run = jax.vmap(lambda xs: jaxgru.scan(params, xs)[1], in_axes=axis, out_axes=axis)
    return run(xs)


def jax_model(
    apply: Callable[..., Any], weights: Any, problem: Problem, time_major: bool = False
) -> Model:
    """Make a model from apply(weights, xs) -> outputs."""
    xs, cotangent = jnp.asarray(problem.xs), jnp.asarray(problem.cotangent)
    if time_major:
        xs, cotangent = xs.swapaxes(0, 1).copy(), cotangent.swapaxes(0, 1).copy()
    forward, gradient = jax.jit(apply), jax.jit(pullback(apply))
    return Model(
        time_major,
        lambda: jax.block_until_ready(forward(weights, xs)),
        lambda: jax.block_until_ready(gradient(weights, xs, cotangent))[1],
    )


def pullback(apply: Callable[..., Any]) -> Callable[..., Any]:
    """(weights, xs, cotangent) -> the gradients of weights and xs."""
    return lambda weights, xs, cotangent: jax.vjp(apply, weights, xs)[1](cotangent)


def _jaxgru(problem):
    return jax_model(batched, problem.params, problem)


def _jaxgru_time_major(problem):
    return jax_model(lambda p, xs: batched(p, xs, True), problem.params, problem, True)


def _gates(w: jax.Array, names: str, flip: str) -> dict[str, jax.Array]:
    """The weights per gate, negated where the other library's gate weighs the old state."""
    parts = jnp.unstack(w, axis=-2)
    return {n: -p if n in flip else p for n, p in zip(names, parts, strict=True)}


def _packed(w: jax.Array, order: str, names: str, flip: str) -> jax.Array:
    """The weights with the gates side by side in another order."""
    parts = _gates(w, names, flip)
    return jnp.concatenate([parts[name] for name in order], axis=-1)


def linen_rnn(problem: Problem) -> tuple[Any, Any]:
    """Return (flax.linen.RNN, its variables)."""
    nn = importlib.import_module("flax.linen")
    params, hidden = problem.params, problem.sizes[3]
    if problem.kind == "gru_after":
        cell = nn.GRUCell(hidden)
        w, u, b = (_gates(a, "rzn", "z") for a in (params.w_ih, params.w_hh, params.b))
        tree: dict[str, Any] = {"i" + k: {"kernel": w[k], "bias": b[k]} for k in "rzn"}
        tree |= {"h" + k: {"kernel": u[k]} for k in "rzn"}
        tree["hn"]["bias"] = params.b_hn
    elif problem.kind == "lstm":
        cell = nn.OptimizedLSTMCell(hidden)
        w, u, b = (_gates(a, "ifgo", "") for a in (params.w_ih, params.w_hh, params.b))
        tree = {"i" + k: {"kernel": w[k]} for k in "ifgo"}
        tree |= {"h" + k: {"kernel": u[k], "bias": b[k]} for k in "ifgo"}
    else:
        cell = nn.SimpleCell(hidden)
        tree = {"i": {"kernel": params.w_ih, "bias": params.b}, "h": {"kernel": params.w_hh}}
    return nn.RNN(cell), {"params": {"cell": tree}}


def _linen(problem):
    rnn, variables = linen_rnn(problem)
    return jax_model(rnn.apply, variables, problem)


def _nnx(problem):
    nnx = importlib.import_module("flax.nnx")
    batch, _, inputs, hidden = problem.sizes
    params, rngs = problem.params, nnx.Rngs(0)
    zeros: Any = jnp.zeros((batch, hidden))
    if problem.kind == "gru_after":
        cell = nnx.GRUCell(inputs, hidden, rngs=rngs)
        w, u, b = (_packed(a, "rzn", "rzn", "z") for a in (params.w_ih, params.w_hh, params.b))
        cell.dense_i.kernel[...], cell.dense_i.bias[...], cell.dense_h.kernel[...] = w, b, u
    elif problem.kind == "lstm":
        cell = nnx.OptimizedLSTMCell(inputs, hidden, rngs=rngs)
        w, u, b = (_packed(a, "ifgo", "ifgo", "") for a in (params.w_ih, params.w_hh, params.b))
        cell.dense_i.kernel[...], cell.dense_h.kernel[...], cell.dense_h.bias[...] = w, u, b
        zeros = (zeros, zeros)
    else:
        cell = nnx.SimpleCell(inputs, hidden, rngs=rngs)
        cell.dense_i.kernel[...], cell.dense_i.bias[...] = params.w_ih, params.b
        cell.dense_h.kernel[...] = params.w_hh
    graph, state = nnx.split(nnx.RNN(cell))

    def apply(state, xs):
        return nnx.merge(graph, state)(xs, initial_carry=zeros)

    return jax_model(apply, state, problem)


def _haiku(problem):
    hk = importlib.import_module("haiku")
    batch, _, _, hidden = problem.sizes
    params = problem.params

    def run(xs):
        return hk.dynamic_unroll(hk.GRU(hidden), xs, jnp.zeros((batch, hidden)))[0]

    w, u, b = (_packed(a, "zrn", "rzn", "") for a in (params.w_ih, params.w_hh, params.b))
    net = hk.without_apply_rng(hk.transform(run))
    return jax_model(net.apply, {"gru": {"w_i": w, "w_h": u, "b": b}}, problem, True)


def _equinox_cell(problem):
    eqx = importlib.import_module("equinox")
    _, _, inputs, hidden = problem.sizes
    params = problem.params
    cell = eqx.nn.GRUCell(inputs, hidden, key=jax.random.key(0))
    w, u, b = (_packed(a, "rzn", "rzn", "z") for a in (params.w_ih, params.w_hh, params.b))
    where = lambda c: (c.weight_ih, c.weight_hh, c.bias, c.bias_n)  # noqa: E731
    return eqx.tree_at(where, cell, (w.T, u.T, b, params.b_hn))


def _equinox(problem):
    hidden = problem.sizes[3]

    def apply(cell, xs):
        def step(h, x):
            h = cell(x, h)
            return h, h

        return jax.vmap(lambda xs: lax.scan(step, jnp.zeros(hidden), xs)[1])(xs)

    return jax_model(apply, _equinox_cell(problem), problem)


def _keras(problem):
    keras = importlib.import_module("keras")
    batch, steps, inputs, hidden = problem.sizes
    params, after = problem.params, problem.kind == "gru_after"
    layer = keras.layers.GRU(hidden, reset_after=after, return_sequences=True)
    layer.build((batch, steps, inputs))
    w, u, b = (_packed(a, "zrn", "rzn", "z") for a in (params.w_ih, params.w_hh, params.b))
    if after:
        inner = jnp.concatenate([jnp.zeros(2 * hidden), params.b_hn])
        b = jnp.stack([b, inner])
    fixed = [v.value for v in layer.non_trainable_variables]

    def apply(weights, xs):
        return layer.stateless_call(weights, fixed, xs)[0]

    return jax_model(apply, [w, u, b], problem)


def _torch(problem):
    torch = importlib.import_module("torch")
    module = _torch_module(torch, torch.nn.GRU, problem)
    xs = torch.from_numpy(problem.xs.swapaxes(0, 1).copy()).requires_grad_()
    cotangent = torch.from_numpy(problem.cotangent.swapaxes(0, 1).copy())

    def forward():
        with torch.no_grad():
            return module(xs)[0].numpy()

    def gradient():
        xs.grad = None
        module.zero_grad()
        module(xs)[0].backward(cotangent)
        return np.asarray(xs.grad)

    return Model(True, forward, gradient)


def _torch_module(torch, make, problem):
    _, _, inputs, hidden = problem.sizes
    params, module = problem.params, make(inputs, hidden)
    w, u, b = (_packed(a, "rzn", "rzn", "z") for a in (params.w_ih, params.w_hh, params.b))
    inner = jnp.concatenate([jnp.zeros(2 * hidden), params.b_hn])
    with torch.no_grad():
        for weight, value in zip(module.parameters(), (w.T, u.T, b, inner), strict=True):
            weight.copy_(torch.from_numpy(np.array(value)))
    return module


def _onnxruntime(problem):
    session = _onnx_session(problem, os.cpu_count() or 1)
    xs = problem.xs.swapaxes(0, 1).copy()
    return Model(True, lambda: session.run(None, {"X": xs})[0][:, 0], None)


def _onnx_session(problem, threads):
    onnx = importlib.import_module("onnx")
    ort = importlib.import_module("onnxruntime")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    batch, steps, inputs, hidden = problem.sizes
    params, after = problem.params, problem.kind == "gru_after"
    w, u, b = (_packed(a, "zrn", "rzn", "z") for a in (params.w_ih, params.w_hh, params.b))
    inner = params.b_hn if after else jnp.zeros(hidden)
    bias = jnp.concatenate([b, jnp.zeros(2 * hidden), inner])
    weights = {"W": w.T, "R": u.T, "B": bias}
    node = helper.make_node(
        "GRU", ["X", "W", "R", "B"], ["Y"], hidden_size=hidden, linear_before_reset=int(after)
    )
    graph = helper.make_graph(
        [node],
        "gru",
        [helper.make_tensor_value_info("X", real, [steps, batch, inputs])],
        [helper.make_tensor_value_info("Y", real, [steps, 1, batch, hidden])],
        [onnx.numpy_helper.from_array(np.asarray(a)[None], name) for name, a in weights.items()],
    )
    opset = [helper.make_opsetid("", 14)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


_BUILDERS: dict[str, Callable[[Problem], Model]] = {
    "jaxgru": _jaxgru,
    "jaxgru time-major": _jaxgru_time_major,
    "flax.nnx": _nnx,
    "flax.linen": _linen,
    "haiku": _haiku,
    "equinox": _equinox,
    "keras": _keras,
    "torch": _torch,
    "onnxruntime": _onnxruntime,
}

#: The libraries that have each cell.
PEERS = {
    "gru_after": ("flax.nnx", "flax.linen", "equinox", "keras", "torch", "onnxruntime"),
    "gru_before": ("haiku", "keras", "onnxruntime"),
    "lstm": ("flax.nnx", "flax.linen"),
    "elman": ("flax.nnx", "flax.linen"),
}


def streams(problem: Problem) -> dict[str, Callable[[], Any]]:
    """For each library, a call that takes the first step and waits for the new state `[H]`."""
    rnn, variables = linen_rnn(problem)
    cell, weights = rnn.cell.clone(parent=None), {"params": variables["params"]["cell"]}
    h, x = jnp.zeros(problem.sizes[3]), jnp.asarray(problem.xs[0, 0])
    steps = {
        "jaxgru": (lambda weights, h, x: jaxgru.step(weights, h, x)[1], problem.params),
        "flax.linen": (lambda weights, h, x: cell.apply(weights, h, x)[0], weights),
        "equinox": (lambda cell, h, x: cell(x, h), _equinox_cell(problem)),
    }
    calls: dict[str, Callable[[], Any]] = {}
    for name, (step, weights) in steps.items():
        run = functools.partial(jax.jit(step), weights, h, x)
        calls[name] = lambda run=run: run().block_until_ready()

    torch = importlib.import_module("torch")
    module = _torch_module(torch, torch.nn.GRUCell, problem)
    h_t, x_t = torch.zeros(1, problem.sizes[3]), torch.from_numpy(problem.xs[0])

    def torch_step():
        with torch.no_grad():
            return module(x_t, h_t)[0]

    return calls | {"torch": torch_step}
