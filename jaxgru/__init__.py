"""A GRU as pure functions in JAX, with the LSTM, the plain RNN and other cells.

The functions take one sequence and return one sequence. `jax.vmap` batches them, and `jax.jit`
compiles them. They have forward- and reverse-mode derivatives of any order.
"""

from jaxgru import diagnostics, interop
from jaxgru.elman import ElmanParams, elman_init, elman_step
from jaxgru.equations import Weights
from jaxgru.gru import GRUParams, gru_init, gru_step
from jaxgru.layer_norm_gru import LayerNormGRUParams, layer_norm_gru_init, layer_norm_gru_step
from jaxgru.layers import Bidirectional, Stack, initial_carry, stack_init
from jaxgru.leaky import LeakyParams, leaky_init, leaky_step
from jaxgru.loop import loop
from jaxgru.lstm import LSTMCarry, LSTMParams, lstm_init, lstm_step
from jaxgru.mgu import MGUParams, mgu_init, mgu_step
from jaxgru.min_gru import MinGRUParams, min_gru_init, min_gru_step
from jaxgru.newton import newton_scan
from jaxgru.plain import from_dict, to_dict
from jaxgru.register import register
from jaxgru.saving import load, save
from jaxgru.scan import scan
from jaxgru.step import step
from jaxgru.trajectory import NewtonInfo

__all__ = [
    "Bidirectional",
    "ElmanParams",
    "GRUParams",
    "LSTMCarry",
    "LSTMParams",
    "LayerNormGRUParams",
    "LeakyParams",
    "MGUParams",
    "MinGRUParams",
    "NewtonInfo",
    "Stack",
    "Weights",
    "diagnostics",
    "elman_init",
    "elman_step",
    "from_dict",
    "gru_init",
    "gru_step",
    "initial_carry",
    "interop",
    "layer_norm_gru_init",
    "layer_norm_gru_step",
    "leaky_init",
    "leaky_step",
    "load",
    "loop",
    "lstm_init",
    "lstm_step",
    "mgu_init",
    "mgu_step",
    "min_gru_init",
    "min_gru_step",
    "newton_scan",
    "register",
    "save",
    "scan",
    "stack_init",
    "step",
    "to_dict",
]
