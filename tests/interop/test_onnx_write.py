"""Writing ONNX: onnxruntime computes what `scan` does, and reading restores what was written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import jaxgru.cell
from cases import BUILT_IN, HIDDEN, INPUT, LAYERS, assert_close, assert_same, draw, draw_cell
from jaxgru.interop import from_onnx, onnx_nodes, to_onnx, to_onnx_step
from onnx_models import TOL, onnx, random_xs, session


def exported(params, folder, write=to_onnx, **options):
    path = folder / "model.onnx"
    write(params, path, **options)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    # onnxruntime 1.20 gives two nodes without names the same name, and then refuses the model.
    assert all(names)
    assert len(set(names)) == len(names)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert inferred.graph.output == model.graph.output
    return path


def carry_names(what, carry):
    def part(key):
        return str(getattr(key, "idx", getattr(key, "name", None)))

    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(carry)]
    return ["_".join([what, *map(part, path)]) for path in paths]


def feed(carry):
    leaves = map(np.asarray, jax.tree.leaves(carry))
    return dict(zip(carry_names("carry", carry), leaves, strict=True))


def draw_carries(params, batch, seed=2):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(0.5 * rng.standard_normal((batch, *a.shape)), a.dtype),
        jaxgru.initial_carry(params),
    )


def scanned(params, xs, carry, length, reverse=False):
    """Return what the model returns: the outputs, and the leaves of the carry."""

    def run(xs, carry, length):
        return jaxgru.scan(params, xs, carry, length=length, reverse=reverse)

    last, ys = jax.vmap(run, in_axes=(1, 0, 0), out_axes=(0, 1))(xs, carry, length)
    return [ys, *jax.tree.leaves(last)]


def native(kind, dtype="float32", bias=True, seed=0, hidden=HIDDEN):
    """Params of native nodes only. A Bidirectional has two cells of one kind."""
    rng = np.random.default_rng(seed)

    def cell(kind, inputs):
        return draw_cell(rng, kind, inputs, hidden, dtype, bias)

    one, _, layers = kind.partition(" x ")
    if layers:
        sides = [(cell(one, n), cell(one, n)) for n in (INPUT, 2 * HIDDEN)]
        return jaxgru.Stack(tuple(jaxgru.Bidirectional(*pair) for pair in sides))
    return cell(one, INPUT)


WITH_NODE = [kind for kind in BUILT_IN if kind != "min_gru"]
NATIVE = [*WITH_NODE, *(f"{kind} x 2" for kind in WITH_NODE)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", [*LAYERS, *NATIVE])
def test_onnxruntime_equals_scan(kind, reverse, tmp_path):
    """The results agree for any batch, time and padding, with and without lengths and carries."""
    params = native(kind) if kind in NATIVE else draw(kind, dtype="float32")
    plain = session(exported(params, tmp_path, reverse=reverse)).run
    run = session(exported(params, tmp_path, reverse=reverse, length=True, carry=True)).run
    for steps, lengths in ((7, [7, 0, 1, 4]), (12, [11])):
        xs, batch = random_xs(steps, len(lengths)), len(lengths)
        length = np.asarray(lengths, "int32")
        carry = draw_carries(params, batch)
        none = jax.tree.map(jnp.zeros_like, carry)
        whole = np.full(batch, steps)
        assert_close(plain(None, {"xs": xs}), scanned(params, xs, none, whole, reverse), TOL)
        for k, end in enumerate(lengths):
            xs[end:, k] = np.nan
        ys, *last = run(None, {"xs": xs, "length": length} | feed(carry))
        assert_close([ys, *last], scanned(params, xs, carry, length, reverse), TOL)
        for k, end in enumerate(lengths):
            assert not np.any(ys[end:, k])


@pytest.mark.parametrize("kind", ["lstm", "bidirectional"])
def test_one_input_more(kind, tmp_path):
    """A model may have lengths without carries, or carries without lengths."""
    params = draw(kind, dtype="float32")
    xs, length = random_xs(6, 3), np.asarray([6, 0, 2], "int32")
    carry = draw_carries(params, 3)
    none = jax.tree.map(jnp.zeros_like, carry)
    run = session(exported(params, tmp_path, length=True)).run
    actual = run(None, {"xs": xs, "length": length})
    assert_close(actual, scanned(params, xs, none, length), TOL)
    run = session(exported(params, tmp_path, carry=True)).run
    actual = run(None, {"xs": xs} | feed(carry))
    assert_close(actual, scanned(params, xs, carry, np.full(3, 6)), TOL)


STREAMED = {
    "lstm": native("lstm"),
    "mixed": jaxgru.Stack((native("lstm"), draw_cell(
        np.random.default_rng(1), "gru", HIDDEN, HIDDEN, "float32"), draw_cell(
        np.random.default_rng(2), "elman", HIDDEN, HIDDEN, "float32"))),
    "gru_after": native("gru_after", bias=False),
}  # fmt: skip


@pytest.mark.parametrize("kind", STREAMED)
def test_steps_make_a_sequence(kind, tmp_path):
    """The outputs of one call are the inputs of the next, in the same order."""
    params = STREAMED[kind]
    made = session(exported(params, tmp_path, to_onnx_step))
    names = [value.name for value in made.get_inputs()]
    first = draw_carries(params, 3)
    assert names == ["x", *carry_names("carry", first)]
    assert all(value.shape[0] == "N" for value in (*made.get_inputs(), *made.get_outputs()))
    assert [v.name for v in made.get_outputs()] == ["y", *carry_names("next", first)]
    xs, carry, ys = random_xs(6, 3), jax.tree.leaves(first), []
    for x in xs:
        fed = [x, *map(np.asarray, carry)]
        y, *carry = made.run(None, dict(zip(names, fed, strict=True)))
        ys.append(y)
    assert_close([np.stack(ys), *carry], scanned(params, xs, first, np.full(3, 6)), TOL)


def test_a_backward_direction_has_no_step(tmp_path):
    params = draw("bidirectional", dtype="float32")
    message = "^to_onnx_step: params must be params that run forward in time, got Bidirectional"
    with pytest.raises(TypeError, match=message):
        to_onnx_step(params, tmp_path / "model.onnx")


PAIRS = {
    "two kinds": (native("lstm"), native("elman")),
    "two forms": (native("gru", bias=False), native("gru_after", bias=False)),
    "two sizes": (native("gru"), native("gru", hidden=HIDDEN + 1)),
    "biases in one": (native("gru"), native("gru", bias=False)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_directions_that_need_a_node_each(pair, tmp_path):
    params = jaxgru.Bidirectional(*PAIRS[pair])
    xs = random_xs(6, 2)
    none = jax.tree.map(jnp.zeros_like, draw_carries(params, 2))
    actual = session(exported(params, tmp_path)).run(None, {"xs": xs})
    assert_close(actual, scanned(params, xs, none, np.full(2, 6)), TOL)


def test_nothing_before_the_first_step(tmp_path):
    """With T = 0 the model returns the carry."""
    params = draw("mixed", dtype="float32")
    carry = draw_carries(params, 2)
    none = jax.tree.map(jnp.zeros_like, carry)
    for given in (True, False):
        fed = {"xs": random_xs(0, 2)} | (feed(carry) if given else {})
        ys, *last = session(exported(params, tmp_path, carry=given)).run(None, fed)
        assert ys.shape == (0, 2, HIDDEN)
        assert_close(last, jax.tree.leaves(carry if given else none), 0)


def test_half_precision(tmp_path):
    """onnxruntime rounds at the end, and scan every state. They differ by a few ulp of 5e-4."""
    params = native("gru_after x 2", "float16")
    xs = random_xs(6, 3).astype("float16")
    none = jax.tree.map(jnp.zeros_like, draw_carries(params, 3))
    actual = session(exported(params, tmp_path)).run(None, {"xs": xs})
    assert {part.dtype.name for part in actual} == {"float16"}
    assert_close(actual, scanned(params, xs, none, np.full(3, 6)), 2e-3)


def test_one_for_all_and_clipped_lengths(tmp_path):
    params = native("gru")
    made = session(exported(params, tmp_path, length=True, carry=True))
    shapes = [["T", "N", INPUT], ["N_or_1"], ["N_or_1", HIDDEN]]
    assert [value.shape for value in made.get_inputs()] == shapes
    xs, carry = random_xs(6, 3), draw_carries(params, 1)

    def outputs(length, carry):
        fed = {"length": np.asarray(length, "int32"), "carry": np.asarray(carry)}
        return made.run(None, {"xs": xs} | fed)

    assert_close(outputs([2], carry), outputs([2, 2, 2], jnp.tile(carry, (3, 1))), 0)
    assert_close(outputs([9, -1, 6], carry), outputs([6, 0, 6], carry), 0)


def test_names(tmp_path):
    params = draw("mixed", dtype="float32")
    carry = jaxgru.initial_carry(params)
    made = session(exported(params, tmp_path, length=True, carry=True))
    inputs = ["xs", "length", *carry_names("carry", carry)]
    assert [value.name for value in made.get_inputs()] == inputs
    made = session(exported(params, tmp_path))
    assert [value.name for value in made.get_inputs()] == ["xs"]
    outputs = ["outputs", *carry_names("last", carry)]
    assert [value.name for value in made.get_outputs()] == outputs
    assert outputs[1:3] == ["last_0_h", "last_0_c"]
    assert onnx_nodes(tmp_path / "model.onnx") == ["LSTM_0", "GRU_1_0", "GRU_1_1", "RNN_2"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", NATIVE)
def test_round_trip(kind, bias, dtype, tmp_path):
    params = native(kind, dtype, bias)
    path = exported(params, tmp_path)
    if not isinstance(params, jaxgru.Stack):
        assert_same(from_onnx(path).params, params)
        return
    op = {"gru": "GRU", "gru_after": "GRU", "lstm": "LSTM", "elman": "RNN"}[kind.split()[0]]
    layers = [from_onnx(path, f"{op}_{k}") for k in range(len(params.layers))]
    assert_same(jaxgru.Stack(tuple(layer.params for layer in layers)), params)


def test_round_trip_of_the_direction(tmp_path):
    path = exported(native("lstm"), tmp_path, reverse=True)
    found = from_onnx(path)
    assert found.reverse
    assert set(found.inputs) == {"X", "sequence_lens"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes_that_onnxruntime_does_not_run(dtype, tmp_path):
    message = (
        f"to_onnx: params must be of float32 or float16, which onnxruntime can run, got {dtype}"
    )
    with jax.enable_x64(True), pytest.raises(TypeError, match=message):
        to_onnx(native("gru", dtype), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (lambda path: ({"w_ih": 0}, path), TypeError, "params must be GRUParams, LSTMParams"),
        (lambda path: (native("gru"), None), TypeError, "path must be a path, got NoneType"),
        (lambda path: (jaxgru.Stack(()), path), ValueError, "Stack.layers must be at least one"),
    ],
)
def test_what_cannot_be_written(arguments, kind, message, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(kind, match=f"to_onnx: {message}"):
        to_onnx(*arguments(path))
    assert not path.exists()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherParams(jaxgru.ElmanParams):
    """ONNX has no node for this cell."""


def test_cells_without_a_node(monkeypatch, tmp_path):
    table = jaxgru.cell._cells
    monkeypatch.setitem(table, OtherParams, table[jaxgru.ElmanParams])
    params = OtherParams(**vars(native("elman")))
    message = "to_onnx: params must be GRUParams or LSTMParams or ElmanParams, got OtherParams"
    with pytest.raises(TypeError, match=message):
        to_onnx(jaxgru.Bidirectional(native("lstm"), params), tmp_path / "model.onnx")


def test_a_minimal_gru_has_no_node(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(TypeError, match=r"^to_onnx: params must be GRUParams .*, got MinGRUParams"):
        to_onnx(draw("min_gru", dtype="float32"), path)
    assert not path.exists()
