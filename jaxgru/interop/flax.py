"""Modules for models in Flax, `RNN` for nnx and `LinenRNN` for linen, and state dicts.

The modules replace `nnx.RNN(nnx.GRUCell(...))` and `linen.RNN(linen.GRUCell(...))`. They run
`jaxgru.scan`. They differ from the modules of Flax in four things. Outputs in the padding are zero.
Outputs stay in the order of the inputs when `reverse=True`. Options are arguments of the module and
not of a call. The carry of an LSTM is `LSTMCarry(h, c)`. Importing this file also registers all
params types with `flax.serialization`.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.traverse_util import unflatten_dict
from jax import Array
from jax.extend.core import Literal

from jaxgru import checks, layers
from jaxgru.cell import Carry, Params
from jaxgru.interop import flax_state
from jaxgru.interop.flax_batch import run, run_step
from jaxgru.plain import from_dict, named

flax_state.register()

Partitioning = Mapping[str, tuple[Any, ...]]


class RNN(nnx.Module):
    """A recurrent network as a module of flax.nnx.

    Every array of params is an `nnx.Param` of its own in `weights`, nested by the names of
    `jaxgru.to_dict`: `weights["layers"]["0"]["gru_after"]["w_ih"]`.

    Args:
        params: the params of any cell of this library, or a Bidirectional or Stack of such cells. A
            type of your own is accepted if `register` was given its forms.
        time_major: whether time is the first axis, before those of the batch.
        return_carry: whether calls return (carry, outputs).
        reverse: whether to run from the last real step to the first. Outputs stay in input order.
        dropout, checkpoint, compute_dtype: as in `jaxgru.scan`.
        deterministic: whether to leave out dropout. `train()`, `eval()` and `nnx.view` set it.
        rngs: the streams of keys. Dropout takes its keys from the stream "dropout".
        partitioning: the names of the mesh axes for each field of params that lies on several
            devices, as `nnx.with_partitioning` takes them: `{"w_hh": (None, None, "model")}`.

    Raises:
        TypeError, ValueError: an argument does not fit; see `jaxgru.scan`.

    Example:
        >>> import jax.numpy as jnp, jaxgru
        >>> from flax import nnx
        >>> from jaxgru.interop.flax import RNN
        >>> rnn = RNN(jaxgru.gru_init(nnx.Rngs(0).params(), 3, 8))
        >>> rnn(jnp.ones((5, 20, 3), "float32"), seq_lengths=jnp.arange(5)).shape
        (5, 20, 8)
        >>> carry, y = rnn.step(rnn.initialize_carry((5,)), jnp.ones((5, 3), "float32"))
        >>> y.shape
        (5, 8)

    Source: the documentation of flax.nnx.RNN and flax.nnx.Dropout.
    """

    def __init__(
        self,
        params: Params,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        dropout: float = 0.0,
        deterministic: bool = False,
        checkpoint: int | None = None,
        compute_dtype: Any = None,
        rngs: nnx.Rngs | None = None,
        partitioning: Partitioning | None = None,
    ) -> None:
        """Take the weights of params."""
        layers.check("RNN", params)
        leaves = _partitioned("RNN", nnx.with_partitioning, params, partitioning)
        self.structure: Any = jax.tree.structure(params)
        self.names: tuple[str, ...] = tuple(leaves)
        parts = unflatten_dict({n: nnx.Param(leaf) for n, leaf in leaves.items()}, sep=".")
        self.weights: Any = _modules(parts)
        self.time_major = time_major
        self.return_carry = return_carry
        self.dropout = dropout
        self.deterministic: bool = deterministic
        self.options: dict[str, Any] = {
            "reverse": reverse,
            "checkpoint": checkpoint,
            "compute_dtype": compute_dtype,
        }
        if dropout and rngs is None:
            fix = "Dropout takes its keys from a stream: pass rngs=nnx.Rngs(seed)."
            raise checks.error(ValueError, "RNN", "rngs", "given with dropout", "None", fix)
        self.rngs: Any = nnx.data(rngs["dropout"].fork() if dropout and rngs else None)

    @property
    def params(self) -> Params:
        """The weights as jaxgru's params, as they are now."""
        leaves = [reduce(lambda a, b: a[b], n.split("."), self.weights)[...] for n in self.names]
        return jax.tree.unflatten(self.structure, leaves)

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Array | None = None,
        mask: Array | None = None,
        reset: Any = None,
        reset_carry: Carry | None = None,
        deterministic: bool | None = None,
    ) -> Any:
        """Run over sequences.

        Args:
            inputs: `[..., T, I]`, with any number of batch axes; `[T, ..., I]` with time_major.
            initial_carry: a carry of params with the batch axes in front. None stands
                for that of `jaxgru.initial_carry`.
            seq_lengths: how many steps are real, integers `[...]`.
            mask: bool `[..., T]` (`[T, ...]` with time_major). False makes a hole of a step: the
                network runs as if the sequence did not have this step.
            reset: `[..., T]` (`[T, ...]` with time_major) of bools, integers or floats. A new
                segment starts wherever it is not zero.
            reset_carry: the carry from which segments start, with the batch axes in front. None
                stands for that of `jaxgru.initial_carry`.
            deterministic: whether to leave out dropout. None stands for the setting of the module.

        Returns:
            outputs `[..., T, H]` (`[T, ..., H]` with time_major), or (carry, outputs) with
            return_carry.

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        deterministic = self.deterministic if deterministic is None else deterministic
        drop = self.dropout if not deterministic else 0.0
        carry, outputs = run(
            "RNN",
            self.params,
            inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            reset=reset,
            reset_carry=reset_carry,
            key=self.rngs() if drop else None,
            time_major=self.time_major,
            options=self.options | {"dropout": drop},
        )
        return (carry, outputs) if self.return_carry else outputs

    def step(
        self, carry: Carry, x: Array, *, reset: Any = None, reset_carry: Carry | None = None
    ) -> tuple[Carry, Array]:
        """Run one time step, for acting and serving. It uses the same weights, and no dropout.

        Args:
            carry: what `initialize_carry`, the last step or the last call returned.
            x: `[..., I]`.
            reset: `[...]` of bools, integers or floats. A segment starts wherever it is not zero.
            reset_carry: the carry from which segments start. None stands for that of
                `jaxgru.initial_carry`.

        Returns:
            (the next carry, outputs `[..., H]`).

        Raises:
            TypeError, ValueError: an argument does not fit, or the network runs backward in time.
        """
        starts: dict[str, Any] = {"reset": reset, "reset_carry": reset_carry}
        return run_step("RNN.step", self.params, carry, x, **starts, options=self.options)

    def initialize_carry(self, batch_dims: tuple[int, ...] = ()) -> Carry:
        """Make the carry that a sequence starts from, with these axes in front."""
        return layers.initial_carry(self.params, batch_dims)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Take what `nnx.view` changes."""
        if deterministic is not None:
            self.deterministic = deterministic


class LinenRNN(linen.Module):
    """A recurrent network as a module of flax.linen, whose input size comes from the data.

    Its parameters are arrays in nested dicts, with the names of `jaxgru.to_dict`:
    `variables["params"]["gru"]["w_ih"]`. `jaxgru.from_dict(variables["params"])` makes params of
    them, and `flax.traverse_util.unflatten_dict(jaxgru.to_dict(params), sep=".")` is the way back.

    Args:
        init_params: (key, input size) -> params, such as `partial(jaxgru.gru_init, hidden_size=8)`.
        time_major: whether time is the first axis, before those of the batch.
        return_carry: whether calls return (carry, outputs).
        reverse: whether to run from the last real step to the first. Outputs stay in input order.
        dropout, checkpoint, compute_dtype: as in `jaxgru.scan`. The keys of dropout come from the
            stream "dropout".
        deterministic: whether to leave out dropout. With dropout it must be given, here or in the
            call.
        partitioning: the names of the mesh axes for each field of params that lies on several
            devices, as `linen.with_partitioning` takes them: `{"w_hh": (None, None, "model")}`.

    Example:
        >>> from functools import partial
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> from jaxgru.interop.flax import LinenRNN
        >>> rnn = LinenRNN(partial(jaxgru.gru_init, hidden_size=8))
        >>> variables = rnn.init(jax.random.key(0), jnp.ones((5, 20, 3), "float32"))
        >>> jaxgru.from_dict(variables["params"]).w_ih.shape
        (3, 3, 8)
        >>> carry, x = rnn.initialize_carry((5,)), jnp.ones((5, 3), "float32")
        >>> carry, y = rnn.apply(variables, carry, x, method="step")
        >>> y.shape
        (5, 8)

    Source: the documentation of flax.linen.RNN and flax.linen.Dropout.
    """

    init_params: Callable[[Array, int], Params]
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    dropout: float = 0.0
    deterministic: bool | None = None
    checkpoint: int | None = None
    compute_dtype: Any = None
    partitioning: Partitioning | None = None

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: Array | None = None,
        mask: Array | None = None,
        reset: Any = None,
        reset_carry: Carry | None = None,
        deterministic: bool | None = None,
    ) -> Any:
        """Run over sequences. The arguments and the result are those of `RNN`."""
        drop = self.dropout
        if drop and linen.merge_param("deterministic", self.deterministic, deterministic):
            drop = 0.0
        carry, outputs = run(
            "LinenRNN",
            self._params("inputs", inputs),
            inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            reset=reset,
            reset_carry=reset_carry,
            key=self.make_rng("dropout") if drop else None,
            time_major=self.time_major,
            options=self._options() | {"dropout": drop},
        )
        return (carry, outputs) if self.return_carry else outputs

    def step(
        self, carry: Carry, x: Array, *, reset: Any = None, reset_carry: Carry | None = None
    ) -> tuple[Carry, Array]:
        """Run one step. The arguments and the result are those of `RNN.step`."""
        params = self._params("x", x)
        starts: dict[str, Any] = {"reset": reset, "reset_carry": reset_carry}
        return run_step("LinenRNN.step", params, carry, x, **starts, options=self._options())

    @linen.nowrap
    def initialize_carry(self, batch_dims: tuple[int, ...] = ()) -> Carry:
        """Make the carry of `jaxgru.initial_carry`, with these axes in front.

        This method needs variables only if the initial carry of a cell of your own depends on its
        params. In this case, call it as `rnn.bind(variables).initialize_carry(batch_dims)`.

        Raises:
            ValueError: the carry depends on params, and the module has none yet.
        """
        weights = () if self.scope is None else self.variables.get("params", ())
        if weights:
            return layers.initial_carry(from_dict(linen.unbox(weights)), batch_dims)
        # The shape of a carry does not depend on the size of the inputs.
        shapes = jax.eval_shape(lambda key: self.init_params(key, 1), jax.random.key(0))
        params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        if _depends(layers.initial_carry, params):
            expected, got = "the same for all params", "one that depends on them"
            fix = "Call rnn.bind(variables).initialize_carry(...), or leave out the carry."
            caller = "LinenRNN.initialize_carry"
            raise checks.error(ValueError, caller, "the carry", expected, got, fix)
        return layers.initial_carry(params, batch_dims)

    @linen.nowrap
    def _options(self) -> dict[str, Any]:
        return {
            "reverse": self.reverse,
            "checkpoint": self.checkpoint,
            "compute_dtype": self.compute_dtype,
        }

    @linen.compact
    def _params(self, name: str, inputs: Array) -> Params:
        """Make or read the parameters, and return them as params.

        Only this method does so, since Flax allows a module one compact method.
        """
        size = (checks.shape_of(inputs) or (0,))[-1]

        def init(key):
            params, axes = self.init_params(key, size), self.partitioning
            leaves = _partitioned("LinenRNN", linen.with_partitioning, params, axes)
            return unflatten_dict(leaves, sep=".")

        shape = jax.eval_shape(lambda key: self.init_params(key, size), jax.random.key(0))
        parts = unflatten_dict(named("LinenRNN", shape), sep=".")
        # Flax adds one parameter at a time. Every direction has its own, drawn with its own key.
        params = from_dict({n: self.param(n, lambda key, n=n: init(key)[n]) for n in parts})
        if jax.tree.structure(params) != jax.tree.structure(shape):
            expected = f"those of init_params, {', '.join(named('LinenRNN', shape))}"
            got = ", ".join(named("LinenRNN", params))
            raise checks.error(ValueError, "LinenRNN", "parameters", expected, got)
        return params


def _depends(function: Callable[[Any], Any], argument: Any) -> bool:
    """Whether what a function returns depends on its argument, by the program of the function."""
    program = jax.make_jaxpr(function)(argument).jaxpr
    moving = set(program.invars)
    for equation in program.eqns:
        if any(not isinstance(atom, Literal) and atom in moving for atom in equation.invars):
            moving.update(equation.outvars)
    return any(not isinstance(atom, Literal) and atom in moving for atom in program.outvars)


def _partitioned(
    caller: str, with_partitioning: Any, params: Params, partitioning: Partitioning | None
) -> dict[str, Any]:
    """The leaves of params by name, each with the mesh axes of its field, if there are any."""
    leaves, axes = named(caller, params), partitioning or {}
    fields = {name: name.rpartition(".")[2] for name in leaves}
    unknown = set(axes) - set(fields.values())
    if unknown:
        expected = f"a mapping with the keys {', '.join(sorted(set(fields.values())))}"
        got = ", ".join(sorted(unknown))
        raise checks.error(ValueError, caller, "partitioning", expected, got)
    return {
        name: with_partitioning(lambda leaf=leaf: leaf, axes[fields[name]])()
        if fields[name] in axes
        else leaf
        for name, leaf in leaves.items()
    }


def _modules(parts: Any) -> Any:
    """Nested dicts of variables as modules of nnx."""
    if isinstance(parts, dict):
        return nnx.Dict({name: _modules(part) for name, part in parts.items()})
    return parts
