"""Is it right on this accelerator, and how fast? `python -m benchmarks.gpu_check --help`."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

import jaxgru
from benchmarks import peers, report
from benchmarks.timing import BOTH, FORWARD, Row, interleave, wait
from benchmarks.versions import versions
from experiments.common.machine import machine
from jaxgru import backends

#: B, T, I, H
SIZES = (
    (64, 1024, 128, 64),
    (64, 1024, 128, 128),
    (64, 1024, 128, 256),
    (64, 1024, 128, 512),
    (64, 1024, 128, 1024),
    (32, 1000, 10, 128),
    (1024, 64, 64, 256),
    (1, 4096, 64, 128),
)
#: For a look at the command itself, where there is no accelerator.
TINY = ((3, 19, 5, 8), (2, 9, 20, 16))
NUMBERS = (16, 257, 24, 96)


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare jaxgru on this machine's accelerator with float64, then time it beside its peers.

    The first part runs every cell with lengths, resets and carries, in both directions, with
    checkpoints and in each dtype. It compares outputs and gradients with a plain loop in float64 on
    the processor. A plain loop on the accelerator has an error too: that of jaxgru may be twice as
    large, and no larger. The second part times those libraries that are installed. The exit code is
    1 if a number is wrong.
    """

    tiny: bool = False
    """Small sizes and one cell, to try the command on a CPU."""
    kernel: bool = False
    """With the kernel for Hopper GPUs where it fits, not with the loop alone."""
    rounds: int = 7
    """Turns that every contestant gets."""
    seconds: float = 330.0
    """No further size is timed after so many seconds."""


def plain(params: Any, xs: jax.Array, carry: Any, length: Any, reset: Any, *, reverse: bool) -> Any:
    """`jaxgru.scan` as a loop over `jaxgru.step`, its outputs alone."""
    real = jnp.arange(xs.shape[0]) < length
    starts = jnp.append(reset[1:] & real[1:], False) if reverse else reset

    def body(carry, inputs):
        x, start, real = inputs
        after, y = jaxgru.step(params, carry, x, reset=start)
        carry = jax.tree.map(lambda a, b: jnp.where(real, a, b), after, carry)
        return carry, jnp.where(real, y, jnp.zeros_like(y))

    return lax.scan(body, carry, (xs, starts, real), reverse=reverse)[1]


CELLS: dict[str, Callable[..., Any]] = {
    "GRU, reset after": functools.partial(jaxgru.gru_init, reset_after=True),
    "LSTM": jaxgru.lstm_init,
    "GRU": jaxgru.gru_init,
    "Elman": jaxgru.elman_init,
    "minimal GRU": jaxgru.min_gru_init,
}


def numbers(
    sizes: tuple[int, int, int, int], cells: dict[str, Callable[..., Any]]
) -> Iterator[tuple[str, float, float]]:
    """(case, error of jaxgru, what it may be).

    An error is the largest over the outputs and all gradients, each over the largest number there.
    """
    batch, steps, inputs, hidden = sizes
    keys = jax.random.split(jax.random.key(0), 5)
    xs = jax.random.normal(keys[0], (batch, steps, inputs))
    lengths = jax.random.randint(keys[1], (batch,), 0, steps + 1).at[0].set(steps)
    resets = jax.random.bernoulli(keys[2], 0.05, (batch, steps))
    for cell, init in cells.items():
        for dtype in ("float32", "bfloat16", "float16"):
            params = init(keys[3], inputs, hidden, dtype=dtype)
            carry = jax.tree.map(
                lambda a: 0.5 * jax.random.normal(keys[4], (batch, *a.shape), a.dtype),
                jaxgru.initial_carry(params),
            )
            data = (xs.astype(dtype), carry, lengths, resets)
            for name, options in _OPTIONS.items() if dtype == "float32" else _PLAIN.items():
                simple = functools.partial(plain, reverse=options.reverse)
                ours = functools.partial(_ours, options.reverse, options.checkpoint)
                wide = _on_cpu((params, data), "float64")
                exact = _gradients(simple, wide[0], wide[1], "highest")
                found, expected = (
                    _error(_gradients(run, params, data, options.precision), exact)
                    for run in (ours, simple)
                )
                allowed = 2 * expected + float(jnp.finfo(dtype).eps)
                yield f"{cell}, {dtype}, {name}", found, allowed


class Options(NamedTuple):
    reverse: bool = False
    checkpoint: int | None = None
    precision: str | None = None


_PLAIN = {"forward in time": Options()}
_OPTIONS = _PLAIN | {
    "reverse": Options(reverse=True),
    "checkpoint": Options(checkpoint=50),
    "highest precision": Options(precision="highest"),
}


def _ours(reverse, checkpoint, params, xs, carry, length, reset):
    options = {"length": length, "reset": reset, "reverse": reverse, "checkpoint": checkpoint}
    return jaxgru.scan(params, xs, carry, **options)[1]


def _gradients(run, params, data, precision):
    """The outputs, and the gradients of params, inputs and carries."""
    xs, carry, lengths, resets = data

    def loss(params, xs, carry):
        ys = jax.vmap(lambda *row: run(params, *row))(xs, carry, lengths, resets)
        weights = jnp.sin(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)
        return jnp.sum((ys * weights).astype(jnp.promote_types(ys.dtype, jnp.float32))), ys

    def both(*args):
        (_, ys), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)
        return ys, grads

    with jax.default_matmul_precision(precision):
        return jax.device_get(jax.jit(both)(params, xs, carry))


def _on_cpu(tree, dtype):
    place = jax.devices("cpu")[0]

    def put(a):
        wide = np.issubdtype(a.dtype, np.integer) or a.dtype == bool
        return jax.device_put(np.asarray(a) if wide else np.asarray(a, dtype), place)

    return jax.tree.map(put, tree)


def _error(found, exact):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(a, np.float64) - b)) / max(np.max(np.abs(b)), 1e-30))
        for a, b in pairs
    )


def times(config: Config) -> Iterator[Row]:
    """Forward, and forward and backward, of whoever is installed."""
    start = time.perf_counter()
    for sizes in TINY if config.tiny else SIZES:
        if time.perf_counter() - start > config.seconds:
            print("the rest is left out: no time is left", file=sys.stderr)
            return
        problem = peers.problem("gru_after", *sizes)
        models = {}
        for name in ("jaxgru", "jaxgru time-major", "flax.nnx", "flax.linen", "equinox"):
            try:
                models[name] = peers.build(name, problem)
            except ImportError as error:
                print(f"left out: {error}", file=sys.stderr)
        forward = {name: model.forward for name, model in models.items()}
        both = {name: model.gradient for name, model in models.items() if model.gradient}
        for name, (run, pull) in _cudnn(problem).items():
            forward[name], both[name] = run, pull
        case = "B={} T={} I={} H={}".format(*sizes)
        yield Row("accelerator", case, FORWARD, "s", interleave(forward, config.rounds))
        yield Row("accelerator", case, BOTH, "s", interleave(both, config.rounds))


def _cudnn(problem):
    """torch on the same GPU, by cuDNN, with products in TF32 and in float32."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    _, _, inputs, hidden = problem.sizes
    module = torch.nn.GRU(inputs, hidden).cuda()
    xs = torch.from_numpy(problem.xs.swapaxes(0, 1).copy()).cuda().requires_grad_()
    cotangent = torch.from_numpy(problem.cotangent.swapaxes(0, 1).copy()).cuda()

    def forward(exact):
        torch.backends.cudnn.allow_tf32 = not exact
        with torch.no_grad():
            module(xs)
        torch.cuda.synchronize()

    def both(exact):
        torch.backends.cudnn.allow_tf32 = not exact
        xs.grad = None
        module.zero_grad()
        module(xs)[0].backward(cotangent)
        torch.cuda.synchronize()

    return {
        name: (functools.partial(forward, exact), functools.partial(both, exact))
        for name, exact in (("torch", False), ("torch float32", True))
    }


def main() -> int:
    config = tyro.cli(Config, prog="python -m benchmarks.gpu_check")
    if config.kernel:
        backends.PLANS["cuda"] = backends.HOPPER
    kind = "the kernel" if config.kernel else "the loop"
    print(f"{machine()}; {versions()}; {jax.devices()[0].device_kind}; {kind}")
    wrong = 0
    with jax.enable_x64(True):
        cells = dict(list(CELLS.items())[:1]) if config.tiny else CELLS
        for case, error, allowed in numbers((2, 19, 5, 8) if config.tiny else NUMBERS, cells):
            right = error <= allowed
            wrong += not right
            print(f"{case}: {error:.1e} of {allowed:.1e} allowed{'' if right else ', WRONG'}")
    problem = peers.problem("gru_after", *(TINY if config.tiny else SIZES)[0])
    pull = jax.jit(peers.pullback(peers.batched))
    bits = [wait(pull, problem.params, problem.xs, problem.cotangent) for _ in range(3)]
    same = all(
        np.array_equal(a, b)
        for other in bits[1:]
        for a, b in zip(jax.tree.leaves(bits[0]), jax.tree.leaves(other), strict=True)
    )
    print(f"three runs have the same bits: {'yes' if same else 'NO'}")
    print(report.markdown(list(times(config))))
    print(f"{wrong} of the numbers are wrong" if wrong else "all numbers are right")
    return int(bool(wrong) or not same)


if __name__ == "__main__":
    sys.exit(main())
