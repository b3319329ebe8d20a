"""matmul on the GPU: warps that specialise, tiles that take turns (ping-pong), in Gluon.

    out (M, N) = op(a) (M, K)·op(b) (K, N)      matmul       y  = x·wᵀ + b     b transposed
                                                d_matmul_x   dx = dy·w

With K = 768 a tile of sums is done after 12 steps, and in the rung below (ladder/v5_tma) the tensor
cores then wait until it is stored.  Here a program has three groups of warps, each with one task:

    producer     asks the copy engine for tiles of a and b, STAGES ahead       ████████████████
    consumer 0   multiplies one tile of sums, then finishes and stores it      ▒▒▒▒····▒▒▒▒····
    consumer 1   the same for the next tile, half a beat later                 ····▒▒▒▒····▒▒▒▒

While one consumer stores (····), the other has the tensor cores (▒▒▒▒) to itself: `turn` says whose
they are.  Buffers go round: `full[s]` tells the consumer that stage s has arrived, `empty[s]` tells
the producer that it may be overwritten.  Only with turns may a consumer wait on full[s]: a barrier
knows its last phase's parity and nothing older, so nobody may fall two phases behind.

An epilogue costs no pass over memory of its own, and hardly time: it works on one consumer's sums
while the other multiplies.  `pre`, or the old `out` when adding, arrives by the copy engine in the
buffer from which the result will leave.

653 to 733 TFLOP/s at GPT-2's shapes where cuBLASLt, its fastest algorithm chosen by trial, reaches
713 to 807 without an epilogue (65,536 rows, bf16, H200, 2026-11-24).  What is missing: tiles of a
and b sent to two multiprocessors at once (clusters), which Triton 3.6 cannot ask for.

The weight gradient, a sum over K = 65,536, needs no turns: gpu_dw.py.  What Gluon cannot do is the
rung below's: fp32, chips before Hopper, rows that are not multiples of 16 bytes, the interpreter.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from backglass.device.hopper import (
    PROGRAMS,
    barriers,
    buffers,
    describe,
    load_tile,
    specialises,
    store_tile,
    tiles_of,
)
from backglass.ops.gelu.gpu import d_gelu_of, gelu_of, sigmoid_of_2u
from backglass.ops.matmul.gpu_dw import d_matmul_w, d_matmul_w_workspace, grouped_tile
from backglass.ops.matmul.ladder import v5_tma
from backglass.ops.matmul.ladder.v5_tma import GROUP

__all__ = [
    "d_matmul_w",
    "d_matmul_w_workspace",
    "d_matmul_x",
    "d_matmul_x_gelu",
    "matmul",
    "matmul_gelu",
]

BLOCK_M, BLOCK_N, BLOCK_K = 128, 128, 64
STAGES = 5  # of 32 KiB; with two outgoing tiles that is all the shared memory there is
# 65,536 registers for 3 groups of 128 threads: 168 each, of which the producer gives most away.
REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS = 168, 240, 24

# What `bench ops --tune` times beside them.
CANDIDATES = {
    ("matmul", "matmul_gelu", "d_matmul_x", "d_matmul_x_gelu"): (
        {"GROUP": 4}, {"GROUP": 16}, {"STAGES": 4}, {"BLOCK_K": 32, "STAGES": 10},
    ),
}  # fmt: skip

sigmoid_of_2u = gluon.jit(sigmoid_of_2u.fn)
gelu_of, d_gelu_of = gluon.jit(gelu_of.fn), gluon.jit(d_gelu_of.fn)


@gluon.jit
def matmul_specialised_kernel(
    out_desc, pre_desc, a_desc, b_desc, bias_p, M, N, K,
    A_TRANSPOSED: gl.constexpr, B_TRANSPOSED: gl.constexpr, EPILOGUE: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    a_bufs = buffers(a_desc, STAGES)
    b_bufs = buffers(b_desc, STAGES)
    out_bufs = buffers(out_desc, 2)
    full, empty = barriers(STAGES, 1), barriers(STAGES, 1)
    turn, arrived = barriers(2, 1), barriers(2, 1)
    hopper.fence_async_shared()
    shape: gl.constexpr = (A_TRANSPOSED, B_TRANSPOSED, STAGES, GROUP)
    ring = (a_bufs, b_bufs, full, empty)
    end = (out_desc, pre_desc, bias_p, out_bufs, turn, arrived)
    gl.warp_specialize(
        [
            (consumer, (ring, end, M, N, K, shape, EPILOGUE, 0)),
            (consumer, (ring, end, M, N, K, shape, EPILOGUE, 1)),
            (producer, (ring, a_desc, b_desc, out_desc, M, N, K, shape)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


@gluon.jit
def producer(ring, a_desc, b_desc, out_desc, M, N, K, shape: gl.constexpr):
    """Loads the tiles of a and b that the consumers will multiply, in their order."""
    a_bufs, b_bufs, full, empty = ring
    A_TRANSPOSED: gl.constexpr = shape[0]
    B_TRANSPOSED: gl.constexpr = shape[1]
    STAGES: gl.constexpr = shape[2]
    BLOCK_M: gl.constexpr = out_desc.block_type.shape[0]
    BLOCK_N: gl.constexpr = out_desc.block_type.shape[1]
    BLOCK_K: gl.constexpr = a_desc.block_type.shape[0 if A_TRANSPOSED else 1]
    step = 0
    for tile in range(gl.program_id(0), tiles_of(M, N, BLOCK_M, BLOCK_N), gl.num_programs(0)):
        tile_m, tile_n = grouped_tile(tile, M, N, BLOCK_M, BLOCK_N, shape[3])
        m = tile_m * BLOCK_M
        n = tile_n * BLOCK_N
        for k in range(0, K, BLOCK_K):
            s = step % STAGES
            mbarrier.wait(empty.index(s), (step // STAGES + 1) & 1)
            mbarrier.expect(full.index(s), a_desc.block_type.nbytes + b_desc.block_type.nbytes)
            at_a = [k, m] if A_TRANSPOSED else [m, k]
            at_b = [n, k] if B_TRANSPOSED else [k, n]
            load_tile(a_desc, at_a, full.index(s), a_bufs.index(s))
            load_tile(b_desc, at_b, full.index(s), b_bufs.index(s))
            step += 1


@gluon.jit
def consumer(ring, end, M, N, K, shape: gl.constexpr, EPILOGUE: gl.constexpr, WHICH: gl.constexpr):
    """Every other tile of this program, from WHICH on: sums, epilogue, store."""
    out_desc, pre_desc, bias_p, out_bufs, turn, arrived = end
    BLOCK_M: gl.constexpr = out_desc.block_type.shape[0]
    BLOCK_N: gl.constexpr = out_desc.block_type.shape[1]
    BLOCK_K: gl.constexpr = ring[0].shape[1 if shape[0] else 2]
    out = out_bufs.index(WHICH)
    steps = (K + BLOCK_K - 1) // BLOCK_K
    done = 0
    first = gl.program_id(0) + WHICH * gl.num_programs(0)
    for tile in range(first, tiles_of(M, N, BLOCK_M, BLOCK_N), 2 * gl.num_programs(0)):
        tile_m, tile_n = grouped_tile(tile, M, N, BLOCK_M, BLOCK_N, shape[3])
        m = tile_m * BLOCK_M
        n = tile_n * BLOCK_N
        if EPILOGUE == "add" or EPILOGUE == "d_gelu":
            source = pre_desc if EPILOGUE == "d_gelu" else out_desc
            tma.store_wait(0)  # the last tile has left the buffer
            mbarrier.expect(arrived.index(WHICH), out_desc.block_type.nbytes)
            load_tile(source, [m, n], arrived.index(WHICH), out)
        mbarrier.wait(turn.index(WHICH), (done + 1 - WHICH) & 1)
        acc = products(
            ring, (2 * done + WHICH) * steps, steps, shape, BLOCK_M, BLOCK_N, turn, WHICH
        )
        if EPILOGUE == "add" or EPILOGUE == "d_gelu":
            mbarrier.wait(arrived.index(WHICH), done & 1)
        finish(acc, out, out_desc, pre_desc, bias_p, m, n, N, EPILOGUE)
        done += 1
    tma.store_wait(0)


@gluon.jit
def products(
    ring, step, steps, shape: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    turn, WHICH: gl.constexpr,
):  # fmt: skip
    """The sums of a tile whose first step is number `step` of the ring; then passes the turn on."""
    a_bufs, b_bufs, full, empty = ring
    STAGES: gl.constexpr = shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    acc = gl.zeros((BLOCK_M, BLOCK_N), gl.float32, layout)
    for j in range(steps):
        s = step % STAGES
        mbarrier.wait(full.index(s), (step // STAGES) & 1)
        a = a_bufs.index(s).permute((1, 0)) if shape[0] else a_bufs.index(s)
        b = b_bufs.index(s).permute((1, 0)) if shape[1] else b_bufs.index(s)
        acc = hopper.warpgroup_mma(a, b, acc, is_async=True)
        acc = hopper.warpgroup_mma_wait(1, deps=(acc,))  # all products but this step's
        mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), pred=j > 0)
        step += 1
    mbarrier.arrive(turn.index(1 - WHICH))
    acc = hopper.warpgroup_mma_wait(0, deps=(acc,))
    mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES))
    return acc


@gluon.jit
def finish(acc, out, out_desc, pre_desc, bias_p, m, n, N, EPILOGUE: gl.constexpr):
    """Bias, epilogue and store.  In halves: an epilogue on all sums does not fit the registers."""
    HALF: gl.constexpr = acc.shape[1] // 2
    left, right = acc.reshape((acc.shape[0], 2, HALF)).permute((0, 2, 1)).split()
    if bias_p is not None:
        left = plus_bias(left, bias_p, n, N)
        right = plus_bias(right, bias_p, n + HALF, N)
    if EPILOGUE == "add" or EPILOGUE == "d_gelu":
        combine(left, out.slice(0, HALF, dim=1), EPILOGUE)
        combine(right, out.slice(HALF, HALF, dim=1), EPILOGUE)
    else:
        put(left, right, out)
        if EPILOGUE == "gelu":
            send(pre_desc, m, n, out)
            put(gelu_of(left), gelu_of(right), out)
    send(out_desc, m, n, out)


@gluon.jit
def plus_bias(acc, bias_p, n, N):
    cols = n + gl.arange(0, acc.shape[1], gl.SliceLayout(0, acc.type.layout))
    return acc + gl.load(bias_p + cols, mask=cols < N, other=0).to(gl.float32)[None, :]


@gluon.jit
def combine(acc, buffer, EPILOGUE: gl.constexpr):
    """What is in the buffer, pre or the old out, becomes its product or sum with acc; in halves
    again, for each comes with as many numbers as it has."""
    HALF: gl.constexpr = acc.shape[0] // 2
    above, below = acc.reshape((2, HALF, acc.shape[1])).permute((1, 2, 0)).split()
    combine_half(above, buffer.slice(0, HALF), EPILOGUE)
    combine_half(below, buffer.slice(HALF, HALF), EPILOGUE)


@gluon.jit
def combine_half(acc, buffer, EPILOGUE: gl.constexpr):
    there = buffer.load(acc.type.layout).to(gl.float32)
    made = acc * d_gelu_of(there) if EPILOGUE == "d_gelu" else acc + there
    buffer.store(made.to(buffer.dtype))


@gluon.jit
def put(left, right, out):
    """The two halves of a tile into the buffer, once the last tile has left it."""
    HALF: gl.constexpr = left.shape[1]
    tma.store_wait(0)
    out.slice(0, HALF, dim=1).store(left.to(out.dtype))
    out.slice(HALF, HALF, dim=1).store(right.to(out.dtype))


@gluon.jit
def send(desc, m, n, out):
    """Begin to copy the buffer to (m, n)."""
    hopper.fence_async_shared()
    store_tile(desc, [m, n], out)


def matmul(y, x, w, b, add):
    """y (N, O) = x (N, C)·wᵀ + b; w (O, C), b (O,) or None."""
    if specialises(x, w, y):
        product(y, x, w, b, b_transposed=True)
    else:
        v5_tma.matmul(y, x, w, b, add)


def matmul_gelu(pre, y, x, w, b, add):
    """pre (N, O) = x (N, C)·wᵀ + b and y = gelu(pre)."""
    if specialises(x, w, y):
        product(y, x, w, b, b_transposed=True, epilogue="gelu", pre=pre)
    else:
        v5_tma.matmul_gelu(pre, y, x, w, b, add)


def d_matmul_x(dx, dy, w, add):
    """dx (N, C) (+)= dy (N, O)·w (O, C)."""
    if specialises(dy, w, dx):
        product(dx, dy, w, epilogue="add" if add[0] else "")
    else:
        v5_tma.d_matmul_x(dx, dy, w, add)


def d_matmul_x_gelu(dpre, dy, w, pre, add):
    """dpre (N, C) = (dy (N, O)·w (O, C)) ⊙ gelu'(pre)."""
    if specialises(dy, w, dpre):
        product(dpre, dy, w, epilogue="d_gelu", pre=pre)
    else:
        v5_tma.d_matmul_x_gelu(dpre, dy, w, pre, add)


def product(out, a, b, bias=None, b_transposed=False, epilogue="", pre=None):
    """out (M, N) = epilogue(a (M, K)·op(b) + bias); pre (M, N) is read or written by it."""
    (M, K), N = a.shape, out.shape[1]
    tiles = triton.cdiv(M, BLOCK_M) * triton.cdiv(N, BLOCK_N)
    out_desc = describe(out, BLOCK_M, BLOCK_N)
    matmul_specialised_kernel[(min(PROGRAMS, tiles),)](
        out_desc, describe(pre, BLOCK_M, BLOCK_N) if pre else out_desc,
        describe(a, BLOCK_M, BLOCK_K),
        describe(b, BLOCK_N, BLOCK_K) if b_transposed else describe(b, BLOCK_K, BLOCK_N),
        bias, M, N, K, A_TRANSPOSED=False, B_TRANSPOSED=b_transposed, EPILOGUE=epilogue,
        STAGES=STAGES, GROUP=GROUP, CONSUMER_REGISTERS=CONSUMER_REGISTERS,
        PRODUCER_REGISTERS=PRODUCER_REGISTERS, num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
