"""How the CTAs of a cluster of a Hopper GPU give each other numbers.

A store into the shared memory of another CTA tells a barrier there how many bytes have come. The
receiver waits for all bytes that it expects, so a store needs no fence and no message after it.
Pallas has no such store for barriers of one's own, so this is written in the language below it.
"""

from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, llvm, vector

pgpu: Any = plgpu
low: Any = mgpu
_SCALAR = pgpu.Layout.WG_SPLAT(())


def start(bells: Any, count: int) -> None:
    """Prepares so many barriers, of 8 bytes each. No CTA may store before all have done so."""

    @pgpu.inline_mgpu(arg_types=(pgpu.RefType(),))
    def run(_, bells):
        first = low.single_thread_predicate()
        for k in range(count):
            bell = _bell(bells, low.c(k, _int(32)))
            _asm("@$0 mbarrier.init.shared.b64 [$1], 1;", "b,r", first, bell.get_ptr())
        _asm("fence.mbarrier_init.release.cluster;", "")
        low.warpgroup_barrier()

    run(bells)


def send(bells: Any, bell: Any, count: int, row: Any, blocks: Any, form: Any) -> None:
    """Stores values into the same place of all CTAs of the cluster, each CTA a piece of its own.

    row is (values, ref), blocks are several of them, whose refs have the transforms of the form.
    """
    layouts, ref = (pgpu.Layout.WGMMA, pgpu.RefType(form)), pgpu.RefType()
    narrow = (pgpu.Layout.WGMMA.reduce(0), ref)

    @pgpu.inline_mgpu(arg_types=(ref, _SCALAR, narrow, [layouts] * len(blocks)))
    def run(_, bells, bell, row, blocks):
        bell = _bell(bells, bell.registers.item())
        pieces = [row, *blocks]
        size = sum(_bytes(values) for values, _ in pieces)
        bell.arrive_expect_tx(
            count * size, predicate=low.single_thread_predicate(low.ThreadSubset.WARPGROUP)
        )
        for c in range(count):
            cta = low.c(c, ir.IndexType.get())
            for values, ref in blocks:
                values.store_tiled_async(
                    ref, bell, cluster_dim=gpu.Dimension.x, cluster_idx=cta, swizzle=32,
                    tiling_rank=2, optimized=False,
                )  # fmt: skip
            _send_row(bell, c, *row)

    run(bells, bell, row, blocks)


def wait(bells: Any, bell: Any, turn: Any) -> None:
    """Until all has come that every CTA has sent for the turn, which is 0, 1, 2, ..."""

    @pgpu.inline_mgpu(arg_types=(pgpu.RefType(), _SCALAR, _SCALAR))
    def run(_, bells, bell, turn):
        parity = arith.trunci(_int(1), turn.registers.item())
        _bell(bells, bell.registers.item()).wait_parity(parity)

    run(bells, bell, turn)


def largest(values: Any, words: Any) -> Any:
    """The largest of each column of int32 `[64, C]` that are not negative, by 4 * C words.

    As `jnp.max(values, axis=0)`, with one barrier in place of four.
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
        lane = arith.remui(thread, low.c(32, _int(32)))
        warp = arith.divui(thread, low.c(32, _int(32)))
        column = arith.muli(arith.remui(lane, low.c(4, _int(32))), low.c(2, _int(32)))
        # A warp has 16 rows. A thread has two columns of eight, of two of these rows.
        own = values.registers.reshape(columns // 8, 2)
        groups = []
        for a, b in own:
            most = arith.maxui(a, b)
            for distance in (4, 8, 16):  # lanes with the same columns
                most = arith.maxui(most, utils.shfl_bfly(most, distance))
            groups.append(most)

        def place(warp, k):
            first = arith.addi(arith.muli(warp, low.c(columns, _int(32))), low.c(8 * k, _int(32)))
            return [arith.index_cast(index, arith.addi(first, column))]

        with low.when(arith.cmpi(arith.CmpIPredicate.ult, lane, low.c(4, _int(32)))):
            for k, most in enumerate(groups):
                vector.store(most, words, place(warp, k))
        low.warpgroup_barrier()
        found = []
        for k in range(len(groups)):
            parts = [vector.load(pair, words, place(low.c(w, _int(32)), k)) for w in range(4)]
            found.append(reduce(arith.maxui, parts))
        layout = row.layout.to_mgpu()
        registers = np.array(found, dtype=object).reshape(layout.registers_shape((columns,)))
        return low.FragmentedArray(_registers=registers, _layout=layout, _is_signed=True)

    return run(values, words)


def _send_row(bell, cta, values, ref):
    """Of the threads that have the same numbers, one sends them: two at once."""
    thread = low.thread_idx()
    one = arith.cmpi(arith.CmpIPredicate.ult, thread, low.c(4, _int(32)))
    place = utils.memref_ptr(ref)
    with low.when(one):
        for k, pair in enumerate(values.registers.flat):
            at = arith.addi(arith.muli(thread, low.c(8, _int(32))), low.c(32 * k, _int(32)))
            numbers = utils.bitcast(pair, _int(64))
            _asm(
                "{ .reg .b32 here, there, bell; add.u32 here, $0, $1;"
                " mapa.shared::cluster.u32 there, here, $3; mapa.shared::cluster.u32 bell, $2, $3;"
                " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64"
                " [there], $4, [bell]; }",
                "r,r,r,r,l",
                place,
                at,
                bell.get_ptr(),
                low.c(cta, _int(32)),
                numbers,
            )


def _bell(bells, k):
    return low.BarrierRef(utils.memref_ptr(bells), k, None, 1)


def _bytes(values):
    size = utils.bitwidth(values.mlir_dtype) // 8
    for n in values.shape:
        size *= n
    return size


def _int(bits):
    return ir.IntegerType.get_signless(bits)


def _asm(text, constraints, *values):
    void = ir.Type.parse("!llvm.void")
    llvm.inline_asm(void, list(values), text, constraints, has_side_effects=True)
