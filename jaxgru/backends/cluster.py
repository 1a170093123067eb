"""Communication between the CTAs of a cluster of a Hopper GPU.

An asynchronous store (`st.async`) into the shared memory of another CTA tells a barrier there how
many bytes have arrived. The receiver waits for all bytes that it expects, so a store needs neither
a fence nor a message after it. A store of 16 bytes costs little more than one of 4, so four threads
first exchange values. Pallas has no suitable store, so this file uses Mosaic GPU, the language
below it.
"""

from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

pgpu: Any = plgpu
low: Any = mgpu
_SCALAR = pgpu.Layout.WG_SPLAT(())


def start(barriers: Any, count: int) -> None:
    """Initialize `count` barriers of 8 bytes each. No CTA may store before all have done so."""

    @pgpu.inline_mgpu(arg_types=(pgpu.RefType(),))
    def run(_, barriers):
        first = low.single_thread_predicate()
        for k in range(count):
            barrier = _barrier(barriers, _word(k))
            _asm("@$0 mbarrier.init.shared.b64 [$1], 1;", "b,r", first, barrier.get_ptr())
        _asm("fence.mbarrier_init.release.cluster;", "")
        low.warpgroup_barrier()

    run(barriers)


def send(barriers: Any, barrier: Any, count: int, row: Any, blocks: Any, form: Any) -> None:
    """Store values at the same place in all CTAs of the cluster. Each CTA has its own place.

    row is (int32 `[16]`, ref), and blocks are several (float16 `[64, 16]`, ref). The refs of blocks
    have the transforms of the form: swizzled tiles of 8 rows, with 32 bytes in each row.
    """
    layouts, ref = (pgpu.Layout.WGMMA, pgpu.RefType(form)), pgpu.RefType()
    narrow = (pgpu.Layout.WGMMA.reduce(0), ref)

    @pgpu.inline_mgpu(arg_types=(ref, _SCALAR, narrow, [layouts] * len(blocks)))
    def run(_, barriers, barrier, row, blocks):
        barrier = _barrier(barriers, barrier.registers.item())
        one = low.single_thread_predicate(low.ThreadSubset.WARPGROUP)
        size = sum(_bytes(values) for values, _ in [row, *blocks])
        barrier.arrive_expect_tx(count * size, predicate=one)
        pieces = [(_swapped(values), utils.memref_ptr(ref), _offset()) for values, ref in blocks]
        for c in range(count):
            for words, place, offset in pieces:
                _store(place, offset, barrier, c, "v4.b32", words)
        with low.when(_less(low.thread_idx(), 4)):
            # Many threads hold the same numbers. Only four lanes send them, two numbers at once.
            pairs = [utils.bitcast(pair, _int(64)) for pair in row[0].registers.flat]
            for c in range(count):
                for k, pair in enumerate(pairs):
                    offset = _sum(_times(low.thread_idx(), 8), _word(32 * k))
                    _store(utils.memref_ptr(row[1]), offset, barrier, c, "b64", [pair])

    run(barriers, barrier, row, blocks)


def _swapped(values):
    """Exchange words, so that each thread holds all four words of one piece and can store them.

    Before that each thread holds one word of four pieces. Four lanes share 4 pieces of 16 bytes:
    eight columns, twice, of the rows r and r + 8. The lanes transpose the words of these pieces.
    """
    pieces = [utils.bitcast(pair, _int(32)) for pair in values.registers.flat]
    lane = low.thread_idx()
    for distance in (1, 2):
        high = arith.cmpi(arith.CmpIPredicate.ne, arith.andi(lane, _word(distance)), _word(0))
        swapped = []
        for a, b in ((pieces[k], pieces[k + 1]) for k in (0, 2)):
            other = utils.shfl_bfly(arith.select(high, a, b), distance)
            swapped.append((arith.select(high, other, a), arith.select(high, b, other)))
        # Reorder the words, so that the next round pairs pieces that are two apart.
        pieces = [pair[k] for k in (0, 1) for pair in swapped]
    return pieces


def _offset():
    """The offset in bytes: lane k of four stores columns 8 * (k // 2) of row r + 8 * (k % 2)."""
    thread = low.thread_idx()
    lane = arith.remui(thread, _word(32))
    warp = arith.divui(thread, _word(32))
    piece, r = arith.remui(lane, _word(4)), arith.divui(lane, _word(4))
    half, columns = arith.remui(piece, _word(2)), arith.divui(piece, _word(2))
    columns = arith.xori(columns, arith.divui(r, _word(4)))  # apply the swizzle
    tile = _sum(_times(warp, 2), half)
    return _sum(_times(tile, 256), _sum(_times(r, 32), _times(columns, 16)))


def _store(place, offset, barrier, cta, kind, words):
    names = ", ".join(f"${4 + k}" for k in range(len(words)))
    _asm(
        "{ .reg .b32 here, there, mbar; add.u32 here, $0, $1;"
        " mapa.shared::cluster.u32 there, here, $3; mapa.shared::cluster.u32 mbar, $2, $3;"
        f" st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.{kind}"
        f" [there], {{{names}}}, [mbar]; }}".replace("{$4}", "$4"),
        "r,r,r,r," + ",".join("l" if kind == "b64" else "r" for _ in words),
        place,
        offset,
        barrier.get_ptr(),
        _word(cta),
        *words,
    )


def wait(barriers: Any, barrier: Any, turn: Any) -> None:
    """Wait until everything that the CTAs send in a turn has arrived. Turns are 0, 1, 2, ..."""

    @pgpu.inline_mgpu(arg_types=(pgpu.RefType(), _SCALAR, _SCALAR))
    def run(_, barriers, barrier, turn):
        parity = arith.trunci(_int(1), turn.registers.item())
        _barrier(barriers, barrier.registers.item()).wait_parity(parity)
        _asm("fence.proxy.async.shared::cta;", "")  # the tensor cores read the data next

    run(barriers, barrier, turn)


def largest(values: Any, words: Any) -> Any:
    """The maximum of each column of nonnegative int32 `[64, C]`, using 4 * C words.

    It computes `jnp.max(values, axis=0)` with one barrier instead of four. The barrier commits
    shared memory.
    """
    columns = values.shape[1]
    row = pgpu.ShapeDtypeStruct((columns,), jnp.int32, layout=pgpu.Layout.WGMMA.reduce(0))

    @pgpu.inline_mgpu(
        arg_types=(pgpu.Layout.WGMMA, pgpu.RefType()),
        return_type=row,
    )
    def run(_, values, words):
        index, pair = ir.IndexType.get(), ir.VectorType.get((2,), _int(32))
        thread = low.thread_idx()
        lane, warp = arith.remui(thread, _word(32)), arith.divui(thread, _word(32))
        column = _times(arith.remui(lane, _word(4)), 2)
        # A warp holds 16 rows. A thread holds two of every eight columns, for two of these rows.
        own = values.registers.reshape(columns // 8, 2)
        groups = []
        for a, b in own:
            most = arith.maxui(a, b)
            for distance in (4, 8, 16):  # these lanes have the same columns
                most = arith.maxui(most, utils.shfl_bfly(most, distance))
            groups.append(most)

        def place(warp, k):
            first = _sum(_times(warp, columns), _word(8 * k))
            return [arith.index_cast(index, _sum(first, column))]

        with low.when(_less(lane, 4)):
            for k, most in enumerate(groups):
                vector.store(most, words, place(warp, k))
        low.commit_shared()
        found = []
        for k in range(len(groups)):
            parts = [vector.load(pair, words, place(_word(w), k)) for w in range(4)]
            found.append(reduce(arith.maxui, parts))
        layout = row.layout.to_mgpu()
        registers = np.array(found, dtype=object).reshape(layout.registers_shape((columns,)))
        return low.FragmentedArray(_registers=registers, _layout=layout, _is_signed=True)

    return run(values, words)


def _barrier(barriers, k):
    return low.BarrierRef(utils.memref_ptr(barriers), k, None, 1)


def _bytes(values):
    size = utils.bitwidth(values.mlir_dtype) // 8
    for n in values.shape:
        size *= n
    return size


def _word(value):
    return low.c(value, _int(32))


def _sum(a, b):
    return arith.addi(a, b)


def _times(a, b):
    return arith.muli(a, _word(b))


def _less(a, b):
    return arith.cmpi(arith.CmpIPredicate.ult, a, _word(b))


def _int(bits):
    return ir.IntegerType.get_signless(bits)


def _asm(text, constraints, *values):
    void = ir.Type.parse("!llvm.void")
    llvm.inline_asm(void, list(values), text, constraints, has_side_effects=True)
