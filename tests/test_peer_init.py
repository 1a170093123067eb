"""The init presets, against fresh layers of the libraries with the same names."""

import functools

import jax
import numpy as np
import pytest

import jaxgru
import peers

pytestmark = [
    pytest.mark.usefixtures("lenient"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras.*"),
]

INPUT, HIDDEN = 48, 64
INITS = {"gru": jaxgru.gru_init, "lstm": jaxgru.lstm_init, "elman": jaxgru.elman_init}
GATES = {"gru": 3, "lstm": 4, "elman": 1}

# Two estimates use n entries each, with n of at least 48 * 64. The bounds are five sigma of their
# difference. The error of a spread is 1 / sqrt(2 n), and that of a kurtosis is sqrt(24 / n).
SPREAD = 5 / np.sqrt(INPUT * HIDDEN)
SHAPE = 5 * np.sqrt(2 * 24 / (INPUT * HIDDEN))


def fingerprint(block):
    """Return the spread, the largest entry in units of it, the kurtosis, and the distance from
    orthogonal.
    """
    std = np.std(block)
    gram = block @ block.T if block.shape[0] <= block.shape[1] else block.T @ block
    return {
        "std": std,
        "edge": np.max(np.abs(block)) / std,
        "kurtosis": np.mean(block**4) / np.mean(block**2) ** 2,
        "orthogonal": bool(np.max(np.abs(gram - np.eye(len(gram)))) < 1e-4),
    }


def assert_alike(ours, theirs):
    ours, theirs = fingerprint(ours), fingerprint(theirs)
    assert ours["orthogonal"] == theirs["orthogonal"]
    np.testing.assert_allclose(ours["std"], theirs["std"], rtol=SPREAD)
    np.testing.assert_allclose(ours["kurtosis"], theirs["kurtosis"], rtol=0, atol=SHAPE)
    if theirs["kurtosis"] < 2.6:
        # Bounded distributions end at the same value, and the largest of 3000 entries is within 3%.
        np.testing.assert_allclose(ours["edge"], theirs["edge"], rtol=0.03)


@functools.cache
def ours(kind, preset):
    init = functools.partial(INITS[kind], input_size=INPUT, hidden_size=HIDDEN, init=preset)
    options = {"reset_after": True} if kind == "gru" else {}
    return jax.jit(functools.partial(init, **options))(jax.random.key(0))


def compare(kind, preset, w_ih, w_hh, biases):
    """Return their packed weights `[N, G * H]`, with gates in any order, and all their biases."""
    params = ours(kind, preset)
    for mine, other in ((params.w_ih, w_ih), (params.w_hh, w_hh)):
        mine = peers.f64(mine).reshape(mine.shape[0], -1)
        other = peers.f64(other)
        assert mine.shape == other.shape
        assert_alike(mine, other)
        for one, two in zip(
            np.split(mine, GATES[kind], axis=1), np.split(other, GATES[kind], axis=1), strict=True
        ):
            assert_alike(one, two)
    if preset != "torch":
        # Biases are deterministic. There are as many ones (the forget gate) and zeros as in theirs.
        mine = np.concatenate([peers.f64(b).ravel() for b in jax.tree.leaves(params.b)])
        other = np.sum([peers.f64(b).ravel() for b in biases], axis=0)
        np.testing.assert_array_equal(np.sort(mine), np.sort(other))


@pytest.mark.parametrize(("kind", "name"), [("gru", "GRU"), ("lstm", "LSTM"), ("elman", "RNN")])
def test_torch(kind, name):
    torch = peers.peer("torch")
    torch.manual_seed(0)
    layer = getattr(torch.nn, name)(INPUT, HIDDEN)
    w_ih, w_hh, *biases = (w.detach().numpy() for w in layer.parameters())
    compare(kind, "torch", w_ih.T, w_hh.T, biases)
    bound = 1 / np.sqrt(HIDDEN)
    assert all(0.9 * bound < np.max(np.abs(b)) <= bound for b in biases)


@pytest.mark.parametrize(
    ("kind", "name"), [("gru", "GRU"), ("lstm", "LSTM"), ("elman", "SimpleRNN")]
)
def test_keras(kind, name):
    keras = peers.peer("keras")
    keras.utils.set_random_seed(0)
    layer = getattr(keras.layers, name)(HIDDEN)
    layer.build((1, 2, INPUT))
    w_ih, w_hh, bias = layer.get_weights()
    compare(kind, "keras", w_ih, w_hh, bias if kind == "gru" else [bias])


@pytest.mark.parametrize(
    ("kind", "name"), [("gru", "GRUCell"), ("lstm", "OptimizedLSTMCell"), ("elman", "SimpleCell")]
)
def test_flax(kind, name):
    linen = peers.peer("flax.linen")
    cell = getattr(linen, name)(HIDDEN)
    x = np.zeros((1, INPUT), np.float32)
    carry = cell.initialize_carry(jax.random.key(0), x.shape)
    tree = cell.init(jax.random.key(0), carry, x)["params"]

    def packed(first, part):
        names = [name for name in sorted(tree) if name.startswith(first) and part in tree[name]]
        return [peers.f64(tree[name][part]) for name in names]

    biases = packed("i", "bias") or packed("h", "bias")
    compare(
        kind,
        "flax",
        np.concatenate(packed("i", "kernel"), axis=1),
        np.concatenate(packed("h", "kernel"), axis=1),
        [np.concatenate(biases)],
    )


@pytest.mark.parametrize(
    ("kind", "name"), [("gru", "GRU"), ("lstm", "LSTM"), ("elman", "VanillaRNN")]
)
def test_haiku(kind, name):
    hk = peers.peer("haiku")

    def run(x):
        core = getattr(hk, name)(HIDDEN)
        return core(x, core.initial_state(None))

    tree = hk.transform(run).init(jax.random.key(0), np.zeros(INPUT, np.float32))
    if kind == "gru":
        (leaves,) = tree.values()
        compare(kind, "haiku", leaves["w_i"], leaves["w_h"], [leaves["b"]])
    elif kind == "lstm":
        (leaves,) = tree.values()
        bias = np.array(leaves["b"])
        bias[2 * HIDDEN : 3 * HIDDEN] += 1  # its cell adds this to the forget gate
        compare(kind, "haiku", leaves["w"][:INPUT], leaves["w"][INPUT:], [bias])
    else:
        first, second = (tree[name] for name in sorted(tree))
        if first["w"].shape[0] != INPUT:
            first, second = second, first
        compare(kind, "haiku", first["w"], second["w"], [first["b"], second["b"]])
