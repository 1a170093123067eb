"""Each wrong call raises the documented type before anything is traced.

The message names the argument, the expected and the given value.
"""

import dataclasses
import functools
import inspect
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from cases import HIDDEN, INPUT, STEPS, draw

KEY = 0


def params_of(kind="gru", **options):
    return draw(kind, dtype="float32", **options)


def zeros(shape, dtype="float32"):
    return jnp.zeros(shape, dtype)


def xs_of(shape=(STEPS, INPUT), dtype="float32"):
    return zeros(shape, dtype)


def swap(params, **leaves):
    return dataclasses.replace(params, **leaves)


def scan(params=None, xs=None, carry=None, **options):
    return jaxgru.scan(
        params_of() if params is None else params, xs_of() if xs is None else xs, carry, **options
    )


def double(carry, x):
    return 2 * carry, x


def loop(step=double, carry=None, xs=None, **options):
    carry = zeros(4) if carry is None else carry
    return jaxgru.loop(step, carry, xs_of() if xs is None else xs, **options)


class Wrong(NamedTuple):
    call: Any
    kind: type[Exception]
    name: str
    expected: str
    got: str


# (call, exception, text before "must be", part of the expected value, part of the given value)
CASES = {
    # --- xs
    "xs with a batch axis": Wrong(
        lambda: scan(xs=xs_of((2, STEPS, INPUT))),
        ValueError,
        "scan: xs",
        "[T, 3]",
        "float32[2, 6, 3]. Use jax.vmap for a batch",
    ),
    "xs one step only": Wrong(
        lambda: scan(xs=xs_of((INPUT,))), ValueError, "scan: xs", "[T, 3]", "float32[3]"
    ),
    "xs of another input size": Wrong(
        lambda: scan(xs=xs_of((STEPS, 5))), ValueError, "scan: xs", "[T, 3]", "float32[6, 5]"
    ),
    "xs of another float dtype": Wrong(
        lambda: scan(xs=xs_of(dtype="bfloat16")), TypeError, "scan: xs", "float32", "bfloat16[6, 3]"
    ),
    "xs of integers": Wrong(
        lambda: scan(xs=xs_of(dtype="int32")), TypeError, "scan: xs", "float32", "int32[6, 3]"
    ),
    "xs a list": Wrong(
        lambda: scan(xs=[[0.0] * INPUT] * STEPS), TypeError, "scan: xs", "[T, 3]", "list"
    ),
    # --- params
    "params of no known type": Wrong(
        lambda: scan({"w_ih": zeros((3, 3, 4))}), TypeError, "scan: params", "GRUParams", "dict"
    ),
    "params of a class that is not registered": Wrong(
        lambda: scan(dataclasses.make_dataclass("Mine", ["w"])(zeros((3, 4)))),
        TypeError,
        "scan: params",
        "of a registered type",
        "Mine. jaxgru.gru_init(key, input_size, hidden_size) makes GRUParams. jaxgru.register",
    ),
    "params and xs exchanged": Wrong(
        lambda: jaxgru.scan(xs_of(), params_of()),
        TypeError,
        "scan: params",
        "GRUParams",
        "float32[6, 3]",
    ),
    "params of a population without vmap": Wrong(
        lambda: scan(jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), params_of())),
        ValueError,
        "scan: GRUParams.w_",
        "3",
        "4]. Use jax.vmap over params for several networks",
    ),
    "w_ih with packed gates": Wrong(
        lambda: scan(swap(params_of(), w_ih=zeros((3, 12)))),
        ValueError,
        "scan: GRUParams.w_ih",
        "",
        "float32[3, 12]",
    ),
    "w_hh not square": Wrong(
        lambda: scan(swap(params_of(), w_hh=zeros((5, 3, 4)))),
        ValueError,
        "scan: GRUParams.w_hh",
        ", 3, ",
        "float32[5, 3, 4]",
    ),
    "four gates for a GRU": Wrong(
        lambda: scan(
            jaxgru.GRUParams(
                w_ih=zeros((3, 4, 4)),
                w_hh=zeros((4, 4, 4)),
                b=None,
                b_hn=None,
                reset_after=False,
            )
        ),
        ValueError,
        "scan: GRUParams.w_",
        ", 3, ",
        ", 4, 4]",
    ),
    "three gates for an LSTM": Wrong(
        lambda: scan(jaxgru.LSTMParams(w_ih=zeros((3, 3, 4)), w_hh=zeros((4, 3, 4)), b=None)),
        ValueError,
        "scan: LSTMParams.w_",
        ", 4, ",
        ", 3, 4]",
    ),
    "a flat bias": Wrong(
        lambda: scan(swap(params_of(), b=zeros(12))),
        ValueError,
        "scan: GRUParams.b",
        "[3, 4]",
        "float32[12]",
    ),
    "a bias of one gate": Wrong(
        lambda: scan(swap(params_of("elman"), b=zeros(1))),
        ValueError,
        "scan: ElmanParams.b",
        "[4]",
        "float32[1]",
    ),
    "b_hn with reset_after=False": Wrong(
        lambda: scan(swap(params_of(), b_hn=zeros(4))),
        ValueError,
        "scan: GRUParams.b_hn",
        "reset_after",
        "",
    ),
    "b_hn of another size": Wrong(
        lambda: scan(swap(params_of("gru_after"), b_hn=zeros(3))),
        ValueError,
        "scan: GRUParams.b_hn",
        "[4]",
        "float32[3]",
    ),
    "w_ih missing": Wrong(
        lambda: scan(swap(params_of(), w_ih=None)),
        TypeError,
        "scan: GRUParams.w_ih",
        "",
        "NoneType",
    ),
    "w_hh missing": Wrong(
        lambda: scan(swap(params_of("lstm"), w_hh=None)),
        TypeError,
        "scan: LSTMParams.w_hh",
        "",
        "NoneType",
    ),
    "reset_after not a bool": Wrong(
        lambda: scan(swap(params_of(), reset_after=None)),
        TypeError,
        "scan: GRUParams.reset_after",
        "",
        "NoneType",
    ),
    "leaves of two dtypes": Wrong(
        lambda: scan(swap(params_of(), b=zeros((3, 4), "bfloat16"))),
        TypeError,
        "scan: GRUParams.b",
        "float32",
        "bfloat16[3, 4]",
    ),
    "layers of two dtypes": Wrong(
        lambda: scan(jaxgru.Stack((params_of(), draw("gru", inputs=HIDDEN, dtype="bfloat16")))),
        TypeError,
        "scan: ",
        "dtype",
        "bfloat16",
    ),
    "params of integers": Wrong(
        lambda: scan(jax.tree.map(lambda leaf: leaf.astype(jnp.int32), params_of())),
        TypeError,
        "scan: GRUParams.w_",
        "float32",
        "int32[",
    ),
    # --- compositions
    "layers that do not fit": Wrong(
        lambda: scan(jaxgru.Stack((params_of(), params_of(inputs=5)))),
        ValueError,
        "scan: Stack.layers[1]",
        "4",
        "5",
    ),
    "a stack of nothing": Wrong(
        lambda: scan(jaxgru.Stack(())), ValueError, "scan: Stack.layers", "at least one", ""
    ),
    "layers in a list": Wrong(
        lambda: scan(jaxgru.Stack([params_of()])), TypeError, "scan: Stack.layers", "tuple", "list"
    ),
    "a layer that is no params": Wrong(
        lambda: scan(jaxgru.Stack((params_of(), zeros(3)))),
        TypeError,
        "scan: ",
        "GRUParams",
        "",
    ),
    "directions of two input sizes": Wrong(
        lambda: scan(jaxgru.Bidirectional(params_of(), params_of(inputs=5))),
        ValueError,
        "scan: Bidirectional.backward",
        "3",
        "5",
    ),
    # --- carry and reset_carry
    "carry of another size": Wrong(
        lambda: scan(carry=zeros(5)), ValueError, "scan: carry", "[4]", "float32[5]"
    ),
    "carry with a batch axis": Wrong(
        lambda: scan(carry=zeros((2, 4))), ValueError, "scan: carry", "[4]", "float32[2, 4]"
    ),
    "carry a scalar that would broadcast": Wrong(
        lambda: scan(carry=zeros(())), ValueError, "scan: carry", "[4]", "float32[]"
    ),
    "carry of another dtype": Wrong(
        lambda: scan(carry=zeros(4, "float16")),
        TypeError,
        "scan: carry",
        "float32",
        "float16[4]",
    ),
    "carry of an LSTM for a GRU": Wrong(
        lambda: scan(carry=jaxgru.LSTMCarry(zeros(4), zeros(4))),
        TypeError,
        "scan: carry",
        "float32[4]",
        "LSTMCarry",
    ),
    "carry of a GRU for an LSTM": Wrong(
        lambda: scan(params_of("lstm"), carry=zeros(4)),
        TypeError,
        "scan: carry",
        "LSTMCarry",
        "float32[4]",
    ),
    "a plain tuple for an LSTM": Wrong(
        lambda: scan(params_of("lstm"), carry=(zeros(4), zeros(4))),
        TypeError,
        "scan: carry",
        "LSTMCarry(h=float32[4], c=float32[4])",
        "(float32[4], float32[4]). jaxgru.initial_carry(params) makes one. "
        "jaxgru.LSTMCarry(h=..., c=...) makes one of your own arrays.",
    ),
    "a plain tuple for an LSTM in a stack": Wrong(
        lambda: jaxgru.step(
            jaxgru.Stack((params_of("lstm"),)), ((zeros(4), zeros(4)),), xs_of()[0]
        ),
        TypeError,
        "step: carry",
        "(LSTMCarry(h=float32[4], c=float32[4]),)",
        "jaxgru.LSTMCarry(h=..., c=...) makes one of your own arrays.",
    ),
    "a plain tuple for the step of an LSTM": Wrong(
        lambda: jaxgru.lstm_step(params_of("lstm"), (zeros(4), zeros(4)), xs_of()[0]),
        TypeError,
        "lstm_step: carry",
        "LSTMCarry(h=float32[4], c=float32[4])",
        "jaxgru.LSTMCarry(h=..., c=...) makes one of your own arrays.",
    ),
    "a list for a stack": Wrong(
        lambda: jaxgru.step(params_of("stack"), [zeros(4), zeros(5)], xs_of()[0]),
        TypeError,
        "step: carry",
        "(float32[4], float32[5])",
        "[float32[4], float32[5]]. jaxgru.initial_carry(params) makes one. It is a tuple, not a",
    ),
    "carry of one layer for a stack": Wrong(
        lambda: scan(params_of("stack"), carry=zeros(4)),
        TypeError,
        "scan: carry",
        "float32[5]",
        "float32[4]",
    ),
    "carry of too few layers": Wrong(
        lambda: scan(params_of("stack"), carry=(zeros(4),)), TypeError, "scan: carry", "", ""
    ),
    "carry with a None in it": Wrong(
        lambda: scan(params_of("stack"), carry=(zeros(4), None)),
        TypeError,
        "scan: carry",
        "",
        "None",
    ),
    "carry of the wrong layer": Wrong(
        lambda: scan(params_of("stack"), carry=(zeros(4), zeros(4))),
        ValueError,
        "scan: carry[1]",
        "[5]",
        "float32[4]",
    ),
    "reset_carry without reset": Wrong(
        lambda: scan(reset_carry=zeros(4)), ValueError, "scan: reset", "reset_carry", "None"
    ),
    "reset_carry of another size": Wrong(
        lambda: scan(reset=zeros(STEPS, bool), reset_carry=zeros(5)),
        ValueError,
        "scan: reset_carry",
        "[4]",
        "float32[5]",
    ),
    "reset_carry of another cell": Wrong(
        lambda: scan(params_of("lstm"), reset=zeros(STEPS, bool), reset_carry=zeros(4)),
        TypeError,
        "scan: reset_carry",
        "LSTMCarry",
        "float32[4]",
    ),
    # --- length
    "length beyond the sequence": Wrong(
        lambda: scan(length=7), ValueError, "scan: length", "[0, 6]", "7"
    ),
    "length negative": Wrong(lambda: scan(length=-1), ValueError, "scan: length", "[0, 6]", "-1"),
    "length beyond, as an array": Wrong(
        lambda: scan(length=jnp.asarray(7)), ValueError, "scan: length", "[0, 6]", "7"
    ),
    "length a float": Wrong(
        lambda: scan(length=3.0), TypeError, "scan: length", "integer", "float"
    ),
    "length a float array": Wrong(
        lambda: scan(length=jnp.asarray(3.0)), TypeError, "scan: length", "integer", "float"
    ),
    "length a bool": Wrong(lambda: scan(length=True), TypeError, "scan: length", "integer", "bool"),
    "length a bool array": Wrong(
        lambda: scan(length=np.asarray(True)), TypeError, "scan: length", "integer", "bool"
    ),
    "lengths of a batch": Wrong(
        lambda: scan(length=jnp.asarray([1, 2])),
        ValueError,
        "scan: length",
        "integer",
        "[2]. Pass one length for one sequence",
    ),
    "length a mask": Wrong(
        lambda: scan(length=jnp.ones(STEPS, bool)),
        ValueError,
        "scan: length",
        "",
        "and mask= for flags",
    ),
    "length a string": Wrong(lambda: scan(length="3"), TypeError, "scan: length", "integer", "str"),
    # --- reset
    "reset of integers": Wrong(
        lambda: scan(reset=zeros(STEPS, "int32")), TypeError, "scan: reset", "bool", "int32[6]"
    ),
    "reset too short": Wrong(
        lambda: scan(reset=zeros(STEPS - 1, bool)), ValueError, "scan: reset", "[6]", "bool[5]"
    ),
    "reset of a batch": Wrong(
        lambda: scan(reset=zeros((2, STEPS), bool)),
        ValueError,
        "scan: reset",
        "[6]",
        "bool[2, 6]",
    ),
    "reset a scalar": Wrong(lambda: scan(reset=True), TypeError, "scan: reset", "[6]", "bool"),
    # --- mask
    "mask of integers": Wrong(
        lambda: scan(mask=zeros(STEPS, "int32")), TypeError, "scan: mask", "bool", "int32[6]. True"
    ),
    "mask too short": Wrong(
        lambda: scan(mask=zeros(STEPS - 1, bool)), ValueError, "scan: mask", "[6]", "bool[5]"
    ),
    "masks of a batch": Wrong(
        lambda: scan(mask=zeros((2, STEPS), bool)), ValueError, "scan: mask", "[6]", "bool[2, 6]"
    ),
    "mask a scalar": Wrong(lambda: scan(mask=True), TypeError, "scan: mask", "[6]", "bool"),
    "mask for newton_scan of integers": Wrong(
        lambda: jaxgru.newton_scan(params_of(), xs_of(), mask=zeros(STEPS, "int32")),
        TypeError,
        "newton_scan: mask",
        "bool",
        "int32[6]",
    ),
    # --- reverse, dropout, key, checkpoint
    "reverse a string": Wrong(
        lambda: scan(reverse="yes"), TypeError, "scan: reverse", "True or False", "str"
    ),
    "reverse an array": Wrong(
        lambda: scan(reverse=jnp.asarray(True)), TypeError, "scan: reverse", "True or False", "bool"
    ),
    "dropout of everything": Wrong(
        lambda: scan(params_of("stack"), dropout=1.0, key=jax.random.key(KEY)),
        ValueError,
        "scan: dropout",
        "[0, 1)",
        "1.0",
    ),
    "dropout negative": Wrong(
        lambda: scan(params_of("stack"), dropout=-0.1, key=jax.random.key(KEY)),
        ValueError,
        "scan: dropout",
        "[0, 1)",
        "-0.1",
    ),
    "dropout NaN": Wrong(
        lambda: scan(params_of("stack"), dropout=float("nan"), key=jax.random.key(KEY)),
        ValueError,
        "scan: dropout",
        "[0, 1)",
        "nan",
    ),
    "dropout without key": Wrong(
        lambda: scan(params_of("stack"), dropout=0.5), ValueError, "scan: key", "dropout", "None"
    ),
    "dropout for one cell": Wrong(
        lambda: scan(dropout=0.5, key=jax.random.key(KEY)), ValueError, "scan: dropout", "0", "0.5"
    ),
    "dropout for one cell, as an array": Wrong(
        lambda: scan(dropout=jnp.asarray(0.5), key=jax.random.key(KEY)),
        ValueError,
        "scan: dropout",
        "0",
        "float",
    ),
    "dropout for one cell, traced": Wrong(
        lambda: jax.jit(lambda rate: scan(dropout=rate, key=jax.random.key(KEY)))(0.0),
        ValueError,
        "scan: dropout",
        "0",
        "float",
    ),
    "dropout of everything, as an array": Wrong(
        lambda: scan(params_of("stack"), dropout=np.float32(1), key=jax.random.key(KEY)),
        ValueError,
        "scan: dropout",
        "[0, 1)",
        "1.0",
    ),
    "dropout of a population": Wrong(
        lambda: scan(params_of("stack"), dropout=jnp.ones(2), key=jax.random.key(KEY)),
        ValueError,
        "scan: dropout",
        "scalar array of floats",
        "[2]. Use jax.vmap for several at once",
    ),
    "dropout an array of integers": Wrong(
        lambda: scan(params_of("stack"), dropout=jnp.asarray(0), key=jax.random.key(KEY)),
        TypeError,
        "scan: dropout",
        "scalar array of floats",
        "int",
    ),
    "a traced dropout without key": Wrong(
        lambda: jax.jit(lambda rate: scan(params_of("stack"), dropout=rate))(0.0),
        ValueError,
        "scan: key",
        "dropout",
        "None",
    ),
    "dropout for two directions of one layer": Wrong(
        lambda: scan(params_of("bidirectional"), dropout=0.5, key=jax.random.key(KEY)),
        ValueError,
        "scan: dropout",
        "0",
        "0.5",
    ),
    "dropout a bool": Wrong(
        lambda: scan(params_of("stack"), dropout=True, key=jax.random.key(KEY)),
        TypeError,
        "scan: dropout",
        "number",
        "bool",
    ),
    "a seed for a key": Wrong(
        lambda: scan(params_of("stack"), dropout=0.5, key=0), TypeError, "scan: key", "key", "int"
    ),
    "several keys": Wrong(
        lambda: scan(params_of("stack"), dropout=0.5, key=jax.random.split(jax.random.key(KEY))),
        ValueError,
        "scan: key",
        "one key",
        "[2]",
    ),
    "checkpoint zero": Wrong(
        lambda: scan(checkpoint=0), ValueError, "scan: checkpoint", "positive integer", "0"
    ),
    "checkpoint a float": Wrong(
        lambda: scan(checkpoint=2.0), TypeError, "scan: checkpoint", "positive integer", "float"
    ),
    "checkpoint a bool": Wrong(
        lambda: scan(checkpoint=True), TypeError, "scan: checkpoint", "positive integer", "bool"
    ),
    "compute_dtype an integer": Wrong(
        lambda: scan(compute_dtype="int8"), TypeError, "scan: compute_dtype", "bfloat16", "int8"
    ),
    "compute_dtype an array": Wrong(
        lambda: scan(compute_dtype=zeros(2)), TypeError, "scan: compute_dtype", "", "float32[2]"
    ),
    "compute_dtype of no known name": Wrong(
        lambda: scan(compute_dtype="bf16"), TypeError, "scan: compute_dtype", "", "'bf16'"
    ),
    "compute_dtype a bool, in step": Wrong(
        lambda: jaxgru.step(params_of(), zeros(4), xs_of()[0], compute_dtype=True),
        TypeError,
        "step: compute_dtype",
        "bfloat16",
        "True",
    ),
    "compute_dtype wider than params": Wrong(
        lambda: jaxgru.scan(
            draw("gru", dtype="bfloat16"), xs_of().astype("bfloat16"), compute_dtype="float32"
        ),
        ValueError,
        "scan: compute_dtype",
        "bfloat16",
        "float32",
    ),
    # --- loop
    "params for a step": Wrong(
        lambda: loop(params_of()), TypeError, "loop: step", "function", "jaxgru.scan runs a network"
    ),
    "a step that returns its carry alone": Wrong(
        lambda: loop(lambda carry, x: 2 * carry),
        TypeError,
        "loop: what step returns",
        "(carry, y)",
        "float32[4]. If the carry is also the output",
    ),
    "a step that returns the carry of an LSTM alone": Wrong(
        lambda: loop(
            lambda carry, x: jaxgru.lstm_step(params_of("lstm"), carry, x),
            jaxgru.LSTMCarry(zeros(4), zeros(4)),
        ),
        TypeError,
        "loop: what step returns",
        "(carry, y)",
        "LSTMCarry",
    ),
    "a step that returns three values": Wrong(
        lambda: loop(lambda carry, x: (carry, x, x)),
        TypeError,
        "loop: what step returns",
        "(carry, y)",
        "3 values",
    ),
    "a step that gives the carry another shape": Wrong(
        lambda: loop(lambda carry, x: ({"h": carry["h"][:3]}, x), {"h": zeros(4)}),
        ValueError,
        "loop: the next carry['h']",
        "float32[4]",
        "float32[3]",
    ),
    "a step that gives the carry another dtype": Wrong(
        lambda: loop(lambda carry, x: ((carry[0], carry[1] > 0), x), (zeros(4), zeros(2, "int32"))),
        TypeError,
        "loop: the next carry[1]",
        "int32[2]",
        "bool[2]",
    ),
    "a step that counts with floats": Wrong(
        lambda: loop(lambda carry, x: (1.5, x), zeros((), "int32")),
        TypeError,
        "loop: the next carry",
        "int32[]",
        "float",
    ),
    "a step that gives the carry another structure": Wrong(
        lambda: loop(lambda carry, x: ((carry["h"],), x), {"h": zeros(4)}),
        TypeError,
        "loop: the next carry",
        "{'h': float32[4]}",
        "(float32[4],)",
    ),
    "a wrong step where no step is made": Wrong(
        lambda: loop(lambda carry, x: (carry[:1], x), xs=xs_of((0, 3))),
        ValueError,
        "loop: the next carry",
        "float32[4]",
        "float32[1]",
    ),
    "a number in the carry of a loop": Wrong(
        lambda: loop(carry=(zeros(4), 0.0)), TypeError, "loop: carry[1]", "an array", "float"
    ),
    "a string in the carry of a loop": Wrong(
        lambda: loop(carry=np.asarray("a")), TypeError, "loop: carry", "an array", "<U1[]"
    ),
    "a number of steps for xs": Wrong(
        lambda: loop(xs=6),
        TypeError,
        "loop: xs",
        "[T, ...]",
        "int. For a step without inputs, pass",
    ),
    "xs without a leaf": Wrong(
        lambda: loop(xs={"a": None}),
        ValueError,
        "loop: xs",
        "contains an array",
        "{'a': None}. For a step without inputs, pass xs=jnp.arange(T)",
    ),
    "a scalar in xs": Wrong(
        lambda: loop(xs=(xs_of(), zeros(()))), TypeError, "loop: xs[1]", "[T, ...]", "float32[]"
    ),
    "xs of two lengths": Wrong(
        lambda: loop(xs={"a": xs_of(), "b": zeros(5)}),
        ValueError,
        "loop: xs['b']",
        "[6, ...], as many steps as xs['a'] has",
        "float32[5]",
    ),
    "length beyond the sequence of a loop": Wrong(
        lambda: loop(length=7), ValueError, "loop: length", "[0, 6]", "7"
    ),
    "reset of integers in a loop": Wrong(
        lambda: loop(reset=zeros(STEPS, "int32")), TypeError, "loop: reset", "bool", "int32[6]"
    ),
    "reset too short in a loop": Wrong(
        lambda: loop(reset=zeros(STEPS - 1, bool)), ValueError, "loop: reset", "[6]", "bool[5]"
    ),
    "reset_carry without reset in a loop": Wrong(
        lambda: loop(reset_carry=zeros(4)), ValueError, "loop: reset", "reset_carry", "None"
    ),
    "reset_carry of another size in a loop": Wrong(
        lambda: loop(reset=zeros(STEPS, bool), reset_carry=zeros(5)),
        ValueError,
        "loop: reset_carry",
        "float32[4], like carry",
        "float32[5]",
    ),
    "a number for reset_carry": Wrong(
        lambda: loop(reset=zeros(STEPS, bool), reset_carry=0.0),
        TypeError,
        "loop: reset_carry",
        "float32[4], like carry",
        "float",
    ),
    "no reset_carry for a carry with keys": Wrong(
        lambda: loop(carry=jax.random.key(KEY), reset=zeros(STEPS, bool)),
        ValueError,
        "loop: reset_carry",
        "given if carry contains keys",
        "None",
    ),
    "mask of integers in a loop": Wrong(
        lambda: loop(mask=zeros(STEPS, "int32")), TypeError, "loop: mask", "bool", "int32[6]. True"
    ),
    "mask too short in a loop": Wrong(
        lambda: loop(mask=zeros(STEPS - 1, bool)), ValueError, "loop: mask", "[6]", "bool[5]"
    ),
    "mask a scalar in a loop": Wrong(
        lambda: loop(mask=True), TypeError, "loop: mask", "[6]", "bool. Pass one flag for each step"
    ),
    "length a mask in a loop": Wrong(
        lambda: loop(length=zeros(STEPS, bool)),
        ValueError,
        "loop: length",
        "",
        "and mask= for flags",
    ),
    "no step for a loop": Wrong(
        lambda: jaxgru.loop(None, zeros(4), xs_of()),
        TypeError,
        "loop: step",
        "a function (carry, x) -> (carry, y)",
        "NoneType",
    ),
    "a seed for the key of a loop": Wrong(
        lambda: loop(key=0), TypeError, "loop: key", "one key", "int"
    ),
    "keys for all steps of a loop": Wrong(
        lambda: loop(key=jax.random.split(jax.random.key(KEY), STEPS)),
        ValueError,
        "loop: key",
        "one key",
        "[6]",
    ),
    "reverse a number in a loop": Wrong(
        lambda: loop(reverse=1), TypeError, "loop: reverse", "True or False", "int"
    ),
    "checkpoint zero in a loop": Wrong(
        lambda: loop(checkpoint=0), ValueError, "loop: checkpoint", "positive integer", "0"
    ),
    # --- step
    "a Bidirectional streamed": Wrong(
        lambda: jaxgru.step(
            params_of("bidirectional"), jaxgru.initial_carry(params_of("bidirectional")), xs_of()[0]
        ),
        TypeError,
        "step: params",
        "forward",
        "Bidirectional",
    ),
    "a stack with a Bidirectional streamed": Wrong(
        lambda: jaxgru.step(
            params_of("mixed"), jaxgru.initial_carry(params_of("mixed")), xs_of()[0]
        ),
        TypeError,
        "step: params",
        "forward",
        "Bidirectional",
    ),
    "step over a sequence": Wrong(
        lambda: jaxgru.step(params_of(), zeros(4), xs_of()),
        ValueError,
        "step: x",
        "[3]",
        "float32[6, 3]",
    ),
    "step without a carry": Wrong(
        lambda: jaxgru.step(params_of(), None, xs_of()[0]),
        TypeError,
        "step: carry",
        "float32[4]",
        "",
    ),
    "step reset by a number": Wrong(
        lambda: jaxgru.step(params_of(), zeros(4), xs_of()[0], reset=1.0),
        TypeError,
        "step: reset",
        "an array of shape []",
        "float",
    ),
    "step reset by flags of a batch": Wrong(
        lambda: jaxgru.step(params_of(), zeros(4), xs_of()[0], reset=zeros(4) > 0),
        ValueError,
        "step: reset",
        "shape []",
        "bool[4]",
    ),
    "step with a reset_carry alone": Wrong(
        lambda: jaxgru.step(params_of(), zeros(4), xs_of()[0], reset_carry=zeros(4)),
        ValueError,
        "step: reset",
        "given with reset_carry",
        "None",
    ),
    "step with a reset_carry of another size": Wrong(
        lambda: jaxgru.step(params_of(), zeros(4), xs_of()[0], reset=True, reset_carry=zeros(3)),
        ValueError,
        "step: reset_carry",
        "shape [4]",
        "float32[3]",
    ),
    "initial_carry with a number for a batch": Wrong(
        lambda: jaxgru.initial_carry(params_of(), 32),
        TypeError,
        "initial_carry: batch",
        "tuple of sizes",
        "(32,)",
    ),
    "initial_carry with a negative batch": Wrong(
        lambda: jaxgru.initial_carry(params_of(), (-1,)),
        ValueError,
        "initial_carry: batch",
        "positive",
        "-1",
    ),
    "gru_step with carry and input exchanged": Wrong(
        lambda: jaxgru.gru_step(params_of(), zeros(3), zeros(4)),
        ValueError,
        "gru_step: ",
        "[4]",
        "float32[3]",
    ),
    "gru_step with weights of an LSTM": Wrong(
        lambda: jaxgru.gru_step(params_of("lstm"), zeros(4), zeros(3)),
        TypeError,
        "gru_step: params",
        "GRUParams",
        "LSTMParams",
    ),
    "lstm_step with a carry of a GRU": Wrong(
        lambda: jaxgru.lstm_step(params_of("lstm"), zeros(4), zeros(3)),
        TypeError,
        "lstm_step: ",
        "LSTMCarry",
        "float32[4]",
    ),
    "elman_step with another dtype": Wrong(
        lambda: jaxgru.elman_step(params_of("elman"), zeros(4), zeros(3, "float16")),
        TypeError,
        "elman_step: x",
        "float32",
        "float16[3]",
    ),
    "initial_carry of no params": Wrong(
        lambda: jaxgru.initial_carry(zeros(3)),
        TypeError,
        "initial_carry: params",
        "GRUParams",
        "float32[3]",
    ),
    # --- init
    "a preset that does not exist": Wrong(
        lambda: jaxgru.gru_init(jax.random.key(KEY), 3, 4, init="pytorch"),
        ValueError,
        "gru_init: init",
        "torch",
        "pytorch",
    ),
    "hidden_size zero": Wrong(
        lambda: jaxgru.lstm_init(jax.random.key(KEY), 3, 0),
        ValueError,
        "lstm_init: hidden_size",
        "positive integer",
        "0",
    ),
    "input_size a float": Wrong(
        lambda: jaxgru.elman_init(jax.random.key(KEY), 3.0, 4),
        TypeError,
        "elman_init: input_size",
        "positive integer",
        "float",
    ),
    "an integer dtype": Wrong(
        lambda: jaxgru.gru_init(jax.random.key(KEY), 3, 4, dtype=jnp.int32),
        TypeError,
        "gru_init: dtype",
        "float32",
        "int32",
    ),
    "chrono without biases": Wrong(
        lambda: jaxgru.gru_init(jax.random.key(KEY), 3, 4, bias=False, chrono=100),
        ValueError,
        "gru_init: bias",
        "chrono",
        "False",
    ),
    "chrono of a single step": Wrong(
        lambda: jaxgru.lstm_init(jax.random.key(KEY), 3, 4, chrono=1),
        ValueError,
        "lstm_init: chrono",
        "2",
        "1",
    ),
    "a seed for init": Wrong(
        lambda: jaxgru.gru_init(0, 3, 4), TypeError, "gru_init: key", "key", "int"
    ),
    "a stack of no layers": Wrong(
        lambda: jaxgru.stack_init(jax.random.key(KEY), 3, 4, 0),
        ValueError,
        "stack_init: num_layers",
        "positive integer",
        "0",
    ),
    "bidirectional a number": Wrong(
        lambda: jaxgru.stack_init(jax.random.key(KEY), 3, 4, 2, bidirectional=2),
        TypeError,
        "stack_init: bidirectional",
        "True or False",
        "int",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_call(case):
    wrong = CASES[case]
    with pytest.raises(wrong.kind) as raised:
        wrong.call()
    message = str(raised.value)
    head, _, tail = message.partition(" must be ")
    expected, _, got = tail.partition(", got ")
    assert head.startswith(wrong.name), message
    assert wrong.expected in expected, message
    assert got, message
    assert wrong.got in got, message


def test_enough_kinds():
    assert len(CASES) >= 25


def init(function, **options):
    sizes = {"input_size": INPUT, "hidden_size": HIDDEN} | options
    return getattr(jaxgru, function)(jax.random.key(KEY), **sizes)


def diagnose(function, *rest, **options):
    return getattr(jaxgru.diagnostics, function)(params_of(), *rest, **options)


INITS = ("gru_init", "lstm_init", "elman_init", "min_gru_init", "mgu_init")
#: (public function, a call of it, its static options with a valid value). They include all options
#: that are not data, except names, dtypes and functions, since no tracer can replace these.
STATIC = {
    "scan": (scan, {"reverse": True, "checkpoint": 2}),
    "newton_scan": (
        lambda **options: jaxgru.newton_scan(params_of(), xs_of(), **options),
        {"reverse": True, "tol": 0.1, "max_iterations": 3, "damping": 0.5},
    ),
    "stack_init": (
        lambda num_layers=1, **options: init("stack_init", num_layers=num_layers, **options),
        {"input_size": 3, "hidden_size": 4, "num_layers": 2, "bidirectional": True,
         "bias": False, "chrono": 9.0, "reset_after": True},
    ),
    **{
        name: (
            functools.partial(init, name),
            {"input_size": 3, "hidden_size": 4, "bias": True}
            | ({} if name == "elman_init" else {"chrono": 9.0})
            | ({"reset_after": True} if name == "gru_init" else {}),
        )
        for name in INITS
    },
    "layer_norm_gru_init": (
        functools.partial(init, "layer_norm_gru_init"),
        {"input_size": 3, "hidden_size": 4, "bias": True, "separate": True},
    ),
    "leaky_init": (
        functools.partial(init, "leaky_init"),
        {"input_size": 3, "hidden_size": 4, "bias": True, "alpha": 0.5},
    ),
    "memory_gradient": (
        lambda **options: diagnose("memory_gradient", xs_of(), **options),
        {"probes": 2, "singular_values": True},
    ),
    "lyapunov_spectrum": (
        lambda **options: diagnose("lyapunov_spectrum", xs_of(), **options),
        {"k": 2, "warm_up": 1, "every": 2},
    ),
    "fixed_points": (
        lambda **options: diagnose("fixed_points", xs_of()[0], jax.random.key(KEY), **options),
        {"starts": 3, "spread": 0.1, "iterations": 3, "slow": 0.1, "apart": 0.1},
    ),
    "gate_statistics": (
        lambda **options: diagnose("gate_statistics", [xs_of()], **options),
        {"quantiles": (0.5,), "saturated": (0.1, 0.9)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("function", "option"),
    [(name, option) for name, (_, some) in STATIC.items() for option in some],
)
def test_a_traced_option_is_told_how_to_be_static(function, option):
    call, options = STATIC[function]
    with pytest.raises(TypeError) as raised:
        jax.jit(lambda value: call(**{option: value}))(options[option])
    caller = "gru_init" if function == "stack_init" else function  # it passes them on
    message = str(raised.value)
    assert re.match(rf"({function}|{caller}): {option} must be ", message), message
    assert f"jax.jit(f, static_argnames='{option}')" in message
    assert f"functools.partial(f, {option}=...)" in message


def test_the_table_of_static_options_is_complete():
    """Every argument with a default is static, is data, or cannot be a tracer."""
    data = {"carry", "length", "mask", "reset", "reset_carry", "dropout", "key", "guess", "states"}
    named = {"jacobian", "fallback", "cell", "init", "dtype", "compute_dtype", "nonlinearity"}
    for name, (_, options) in STATIC.items():
        function = getattr(jaxgru, name, None) or getattr(jaxgru.diagnostics, name)
        parameters = inspect.signature(function).parameters.values()
        given = {p.name for p in parameters if p.default is not p.empty}
        assert given - data - named <= set(options), name


def test_what_the_message_says_works():
    run = jax.jit(scan, static_argnames="reverse")
    assert run(reverse=True)[1].shape == (STEPS, HIDDEN)
    bound = jax.jit(functools.partial(scan, checkpoint=2))
    assert bound()[1].shape == (STEPS, HIDDEN)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: jaxgru.scan(params_of(), xs_of(), zeros(4), 3), TypeError),
        (lambda: jaxgru.gru_init(jax.random.key(KEY), 3, 4, False), TypeError),
        (lambda: jaxgru.scan(params_of(), xs_of(), time_major=True), TypeError),
        (lambda: jaxgru.elman_init(jax.random.key(KEY), 3, 4, chrono=10), TypeError),
    ],
    ids=["length by position", "bias by position", "time_major", "chrono for elman"],
)
def test_signatures(call, kind):
    """Python itself refuses positional options and unknown ones."""
    with pytest.raises(kind, match=re.compile("argument")):
        call()


@pytest.mark.parametrize(
    "transform",
    [jax.jit, lambda f: functools.partial(jax.eval_shape, f), jax.grad],
    ids=["jit", "eval_shape", "grad"],
)
def test_errors_are_the_same_while_tracing(transform):
    """Tracers have shapes, so the message is the same inside a transformation."""

    def run(xs):
        return jnp.sum(jaxgru.scan(params_of(), xs)[1])

    with pytest.raises(ValueError, match=r"scan: xs must be .*\[T, 3\], got float32\[6, 5\]"):
        transform(run)(xs_of((STEPS, 5)))


def test_a_population_is_told_about_vmap():
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), params_of())
    with pytest.raises(ValueError, match="vmap"):
        scan(params)


def test_a_wrong_call_compiles_nothing():
    """Checks come before tracing, so no program is built before the error."""
    params, xs, reset = params_of(), xs_of((STEPS, 5)), zeros(STEPS, bool)
    events = []

    def listen(event, _, **__):
        if event.startswith("/jax/core/compile"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with pytest.raises(ValueError, match="xs"):
            jaxgru.scan(params, xs, length=4, reset=reset)
        heard_wrong = list(events)
        jax.block_until_ready(jaxgru.scan(params, xs_of((STEPS + 2, INPUT))))
        heard_right = list(events)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert heard_wrong == []
    assert heard_right != []
