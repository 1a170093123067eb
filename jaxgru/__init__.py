"""A GRU as pure functions in JAX, with the LSTM and the plain RNN beside it.

One sequence in, one sequence out: `jax.vmap` batches it, `jax.jit` compiles it, and every
derivative of JAX differentiates it.
"""

from jaxgru import diagnostics, interop
from jaxgru.elman import ElmanParams, elman_init, elman_step
from jaxgru.gru import GRUParams, gru_init, gru_step
from jaxgru.layers import Bidirectional, Stack, initial_carry, stack_init
from jaxgru.lstm import LSTMCarry, LSTMParams, lstm_init, lstm_step
from jaxgru.scan import scan
from jaxgru.step import step

__all__ = [
    "Bidirectional",
    "ElmanParams",
    "GRUParams",
    "LSTMCarry",
    "LSTMParams",
    "Stack",
    "diagnostics",
    "elman_init",
    "elman_step",
    "gru_init",
    "gru_step",
    "initial_carry",
    "interop",
    "lstm_init",
    "lstm_step",
    "scan",
    "stack_init",
    "step",
]
