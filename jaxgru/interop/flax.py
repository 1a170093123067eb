"""For models in Flax: the modules `RNN` for nnx and `LinenRNN` for linen, and state dicts.

They stand where `nnx.RNN(nnx.GRUCell(...))` or `linen.RNN(linen.GRUCell(...))` stood, and run
`jaxgru.scan`. What differs: outputs in the padding are zero, outputs stay in the order of the
inputs when `reverse=True`, and an LSTM's carry is `LSTMCarry(h, c)`. Once this file is imported,
`flax.serialization` knows all params types too.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen, nnx
from jax import Array

from jaxgru import checks, layers
from jaxgru.cell import Carry, Params
from jaxgru.interop import flax_state
from jaxgru.plain import leaves_by_name
from jaxgru.scan import scan

flax_state.register()


class RNN(nnx.Module):
    """A recurrent network as a module of flax.nnx.

    Every array of params is an `nnx.Param` of its own in `weights`, named by its place and form.

    Args:
        params: GRUParams, LSTMParams, ElmanParams, or a Bidirectional or Stack of them.
        return_carry: whether calls return (carry, outputs).
        reverse: from the last real step to the first; outputs stay in the order of the inputs.
        checkpoint: as in `jaxgru.scan`.

    Raises:
        TypeError, ValueError: an argument does not fit; see `jaxgru.scan`.

    Example:
        >>> import jax.numpy as jnp, jaxgru
        >>> from flax import nnx
        >>> from jaxgru.interop.flax import RNN
        >>> rnn = RNN(jaxgru.gru_init(nnx.Rngs(0).params(), 3, 8))
        >>> rnn(jnp.ones((5, 20, 3), "float32"), seq_lengths=jnp.arange(5)).shape
        (5, 20, 8)

    Source: the documentation of flax.nnx.RNN.
    """

    def __init__(
        self,
        params: Params,
        *,
        return_carry: bool = False,
        reverse: bool = False,
        checkpoint: int | None = None,
    ) -> None:
        """Take the weights of params."""
        layers.check("RNN", params)
        named = {name.replace(".", "_"): leaf for name, leaf in leaves_by_name(params).items()}
        self.structure: Any = jax.tree.structure(params)
        self.names: tuple[str, ...] = tuple(named)
        self.weights: Any = nnx.Dict({name: nnx.Param(leaf) for name, leaf in named.items()})
        self.return_carry = return_carry
        self.options: dict[str, Any] = {"reverse": reverse, "checkpoint": checkpoint}

    @property
    def params(self) -> Params:
        """The weights as jaxgru's params, as they are now."""
        return jax.tree.unflatten(self.structure, [self.weights[name][...] for name in self.names])

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Array | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> Any:
        """Run over sequences.

        Args:
            inputs: `[..., T, I]`, with any number of batch axes.
            initial_carry: a carry of params with the batch axes in front; zeros if None.
            seq_lengths: how many steps are real, integers `[...]`.
            mask: bool `[..., T]`; False at t makes a hole of step t, as if it were not there.
            reset: bool `[..., T]`; True at t starts a new segment at t.

        Returns:
            outputs `[..., T, H]`, or (carry, outputs) with return_carry.

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        streams = (inputs, initial_carry, seq_lengths, mask, reset)
        carry, outputs = _scan("RNN", self.params, streams, self.options)
        return (carry, outputs) if self.return_carry else outputs


class LinenRNN(linen.Module):
    """A recurrent network as a module of flax.linen; its one parameter, "rnn", is params.

    Args:
        init_params: key -> params, such as `partial(jaxgru.gru_init, input_size=3, hidden_size=8)`.
        return_carry: whether calls return (carry, outputs).
        reverse: from the last real step to the first; outputs stay in the order of the inputs.
        checkpoint: as in `jaxgru.scan`.

    Example:
        >>> import functools, jax, jax.numpy as jnp, jaxgru
        >>> from jaxgru.interop.flax import LinenRNN
        >>> rnn = LinenRNN(functools.partial(jaxgru.gru_init, input_size=3, hidden_size=8))
        >>> xs = jnp.ones((5, 20, 3), "float32")
        >>> rnn.apply(rnn.init(jax.random.key(0), xs), xs).shape
        (5, 20, 8)

    Source: the documentation of flax.linen.RNN.
    """

    init_params: Callable[[Array], Params]
    return_carry: bool = False
    reverse: bool = False
    checkpoint: int | None = None

    @linen.compact
    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Array | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> Any:
        """Run over sequences; the arguments and the result are those of `RNN`."""
        params = self.param("rnn", self.init_params)
        options = {"reverse": self.reverse, "checkpoint": self.checkpoint}
        streams = (inputs, initial_carry, seq_lengths, mask, reset)
        carry, outputs = _scan("LinenRNN", params, streams, options)
        return (carry, outputs) if self.return_carry else outputs


def _scan(caller: str, params: Params, streams: tuple[Any, ...], options: Any) -> Any:
    inputs, carry, seq_lengths, mask, reset = streams
    if len(getattr(inputs, "shape", ())) < 2:
        expected = "an array of shape [..., T, I]"
        raise checks.error(ValueError, caller, "inputs", expected, checks.describe(inputs))
    *batch, steps, _ = inputs.shape
    if seq_lengths is not None:
        checks.array(caller, "seq_lengths", seq_lengths, tuple(batch))
    for name, flags in (("mask", mask), ("reset", reset)):
        if flags is not None:
            checks.array(caller, name, flags, (*batch, steps))
    if carry is not None:
        shape = layers.carry_shape(params)
        carries = jax.tree.map(lambda s: jax.ShapeDtypeStruct((*batch, *s.shape), s.dtype), shape)
        checks.carry(caller, "initial_carry", carry, carries)

    def run(inputs, carry, length, mask, reset):
        return scan(params, inputs, carry, length=length, mask=mask, reset=reset, **options)

    for _ in batch:
        run = jax.vmap(run)
    return run(inputs, carry, seq_lengths, mask, reset)
