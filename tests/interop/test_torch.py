"""PyTorch: weights that are read and written, against its own outputs, and wrong input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import assert_close, assert_same, draw
from jaxgru.interop import from_torch, to_torch
from peers import TOL

torch = peers.peer("torch")
pytestmark = pytest.mark.usefixtures("x64")

BATCH, STEPS, INPUT, HIDDEN = 3, 5, 3, 4
LENGTHS = np.array([2, 5, 1])
KINDS = ("GRU", "LSTM", "RNN")


def make(name, dtype=torch.float64, **options):
    module = getattr(torch.nn, name)(INPUT, HIDDEN, dtype=dtype, **options)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.from_numpy(peers.random(rng, tuple(weight.shape))))
    return module


def data():
    return np.random.default_rng(1).standard_normal((BATCH, STEPS, INPUT))


def run(module, xs):
    """Return (outputs, final states) with lengths. The padding has zeros."""
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(xs), torch.from_numpy(LENGTHS), batch_first=True, enforce_sorted=False
    )
    out, last = module(packed)
    out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=STEPS)
    last = last if isinstance(last, tuple) else (last,)
    cells = range(last[0].shape[0])
    return out.detach().numpy(), [part[k].detach().numpy() for k in cells for part in last]


def scan(params, xs):
    def one(xs, length):
        return jaxgru.scan(params, xs, length=length)

    carry, ys = jax.vmap(one)(jnp.asarray(xs), LENGTHS)
    return ys, jax.tree.leaves(carry)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (1, True), (2, False), (3, True)])
def test_both_ways(name, bias, layers, both):
    options = {"num_layers": layers, "bidirectional": both, "bias": bias, "batch_first": True}
    module = make(name, **options)
    params = from_torch(module)
    smallest = jaxgru.Stack if layers > 1 else jaxgru.Bidirectional if both else None
    assert smallest is None or isinstance(params, smallest)
    assert_close(scan(params, data()), run(module, data()), TOL)

    back = getattr(torch.nn, name)(INPUT, HIDDEN, dtype=torch.float64, **options)
    back.load_state_dict(to_torch(params), strict=True)
    # The two biases of a gate are restored as their sum.
    assert_close(run(back, data()), run(module, data()), TOL)
    assert_same(from_torch(back), params)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_cells(name, bias):
    module = make(f"{name}Cell", bias=bias)
    params = from_torch(module)
    x = data()[0, 0]
    state = torch.zeros(1, HIDDEN, dtype=torch.float64) + 0.5
    theirs = module(torch.from_numpy(x)[None], (state, state) if name == "LSTM" else state)
    theirs = theirs if name == "LSTM" else (theirs,)
    carry = jax.tree.map(lambda a: a + 0.5, jaxgru.initial_carry(params))
    ours, _ = jaxgru.step(params, carry, jnp.asarray(x))
    assert_close(jax.tree.leaves(ours), [part[0].detach().numpy() for part in theirs], TOL)
    module.load_state_dict(to_torch(params, cell=True), strict=True)
    assert_same(from_torch(module), params)


def test_a_file_of_numpy_needs_no_torch(tmp_path):
    module = make("GRU", num_layers=2)
    path = tmp_path / "weights.npz"
    np.savez(path, **{name: w.numpy() for name, w in module.state_dict().items()})
    with np.load(path) as file:
        assert_same(from_torch(file), from_torch(module))


def test_a_file_of_torch(tmp_path):
    module = make("LSTM", bidirectional=True)
    path = tmp_path / "weights.pt"
    torch.save(module.state_dict(), path)
    assert_same(from_torch(torch.load(path, weights_only=True)), from_torch(module))
    with pytest.raises(
        TypeError, match=r"got str\. Read a file first, with torch\.load\(path, weig"
    ):
        from_torch(str(path))


def test_a_part_of_a_model():
    model = torch.nn.ModuleDict({"rnn": make("LSTM"), "head": torch.nn.Linear(HIDDEN, 1)})
    params = from_torch(make("LSTM"))
    assert_same(from_torch(model, "rnn."), params)
    assert_same(from_torch(to_torch(params, "decoder.rnn."), "decoder.rnn."), params)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(dtype):
    """16-bit weights keep their dtype both ways. The sum of two biases is rounded once."""
    module = make("GRU", dtype=getattr(torch, dtype))
    params = from_torch(module)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    weights = to_torch(params)
    assert {w.dtype for w in weights.values()} == {getattr(torch, dtype)}
    assert_same(from_torch(weights), params)
    wide = from_torch({k: w.double() for k, w in module.state_dict().items()})
    assert_same(params.b, wide.b.astype(dtype))


def test_one_bias_of_several():
    """PyTorch cannot have only some biases, so it gets zeros for the others."""
    params = draw("gru_after")
    bare = jaxgru.GRUParams(
        w_ih=params.w_ih, w_hh=params.w_hh, b=None, b_hn=params.b_hn, reset_after=True
    )
    back = from_torch(to_torch(bare))
    assert_same(back.b_hn, params.b_hn)
    assert not back.b.any()


def state(name="GRU", **options):
    return {k: w.numpy() for k, w in make(name, **options).state_dict().items()}


def without(weights, *names):
    return {k: w for k, w in weights.items() if k not in names}


WRONG = {
    "another module": (
        lambda: torch.nn.Linear(3, 4).state_dict(),
        r"source must be the weights of a recurrent module under prefix='', got 'weight', 'bias'\.",
    ),
    "a whole model": (
        lambda: torch.nn.ModuleDict({"a": make("GRU"), "b": make("GRU")}).state_dict(),
        r"Pass prefix='a\.' or 'b\.'",
    ),
    "a missing key": (
        lambda: without(state(), "bias_hh_l0"),
        r"'bias_hh_l0' must be given, with shape \[12\], got only 'weight_ih_l0', 'weight_hh_l0'",
    ),
    "a missing matrix": (
        lambda: without(state(), "weight_hh_l0"),
        r"'weight_hh_l0' must be given, with shape \[gates \* H, H\]",
    ),
    "a missing layer": (
        lambda: without(
            state(num_layers=3),
            *(f"{p}_l1" for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
        ),
        r"also 'weight_ih_l2', 'weight_hh_l2', 'bias_ih_l2', 'bias_hh_l2'",
    ),
    "a transposed recurrent matrix": (
        lambda: state() | {"weight_hh_l0": state()["weight_hh_l0"].T},
        r"'weight_hh_l0' must be .*\[3 \* H, H\] \(GRU\).* got \[4, 12\]\. It seems to be",
    ),
    "a transposed input matrix": (
        lambda: state() | {"weight_ih_l0": state()["weight_ih_l0"].T},
        r"'weight_ih_l0' must be .* shape \[12, I\], got float64\[3, 12\]\. It seems to be",
    ),
    "layers that do not fit": (
        lambda: state(num_layers=2) | {"weight_ih_l1": np.ones((12, 7))},
        r"'weight_ih_l1' must be an array of shape \[12, 4\], got float64\[12, 7\]",
    ),
    "projections": (
        lambda: state("LSTM", proj_size=2),
        r"LSTM with projections has no counterpart",
    ),
    "relu": (
        lambda: make("RNN", nonlinearity="relu"),
        r"nonlinearity must be 'tanh', got 'relu'",
    ),
    "integers": (
        lambda: state() | {"bias_hh_l0": np.ones(12, int)},
        r"the dtype of 'bias_hh_l0' must be float16, bfloat16, float32 or float64, got int64",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_weights(name):
    make_source, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=f"^from_torch: .*{message}"):
        from_torch(make_source())


def test_no_mapping():
    with pytest.raises(TypeError, match=r"^from_torch: source must be a module or a mapping"):
        from_torch([np.ones(3)])


def test_float64_needs_to_be_switched_on():
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"the dtype of 'weight_hh_l0' must be a dtype that JAX"),
    ):
        from_torch(state())


def both_ways(kind, size):
    return jaxgru.Bidirectional(draw(kind, size, size), draw(kind, size, size))


def mixed_sizes():
    return jaxgru.Stack((draw("gru_after", 3, 4), draw("gru_after", 4, 5)))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (lambda: draw("gru"), r"reset_after must be True, got False\. .* never fit the other"),
        (mixed_sizes, r"layer l1 must be GRUParams of hidden size 4, got .* of hidden size 5"),
        (
            lambda: jaxgru.Stack((draw("gru_after", 3, 4), draw("lstm", 4, 4))),
            r"layer l1 must be GRUParams of hidden size 4, got LSTMParams",
        ),
        (
            lambda: jaxgru.Stack((draw("elman", 3, 4), both_ways("elman", 4))),
            r"layers with the same directions",
        ),
        (lambda: {"w": 1}, r"params must be GRUParams"),
    ],
    ids=["reset before", "sizes", "kinds", "directions", "no params"],
)  # fmt: skip
def test_params_without_a_counterpart(params, message):
    with pytest.raises((TypeError, ValueError), match=f"^to_torch: .*{message}"):
        to_torch(params())


def test_layers_are_no_cell():
    with pytest.raises(
        TypeError, match=r"^to_torch: params must be the params of one cell, with cell=True"
    ):
        to_torch(jaxgru.Stack((draw("elman", 3, 4), draw("elman", 4, 4))), cell=True)
