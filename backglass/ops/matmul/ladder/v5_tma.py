"""matmul on the GPU: tiles moved by Hopper's copy engine (TMA), programs that stay.

    out (M, N) = op(a) (M, K)·op(b) (K, N)      matmul       y  = x·wᵀ + b     b transposed
                                                d_matmul_x   dx = dy·w
                                                d_matmul_w   dw = dyᵀ·x        a transposed

What the rung below (v4_plain) spends on addresses and waiting, this one does not:
- a *descriptor* tells Hopper's copy engine a matrix's shape and the tile's; one thread then asks
  for a tile by its corner, nobody computes addresses, and what lies beyond the edge arrives as 0;
- a transposed operand is loaded as it lies and transposed on the way into the tensor cores;
- one program per multiprocessor walks over the tiles, so the loads of its next tile begin while the
  last one is being stored.

Cut along K (`splits`), epilogues and the bias gradient are as in the rung below.  A matrix whose
rows are not multiples of 16 bytes has no descriptor; it goes to the rung below, as does everything
on chips older than Hopper.
"""

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from backglass.device.tiles import has_copy_engine, store, sum_splits
from backglass.ops.matmul.ladder import v4_plain
from backglass.ops.matmul.ladder.v4_plain import (
    as_it_is,
    bias_gradient,
    bias_programs,
    grouped_tile,
    keep_and_gelu,
    times_d_gelu,
)

PROGRAMS = 132  # multiprocessors of an H100; more of them wait, fewer idle
LEAST_K = 1024  # of a piece: shorter ones cost more in partial sums than they gain
GROUP = 8  # rows of tiles visited together: 8 rows of a and 8 columns of b fit the L2 cache

# (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages) by bytes of an operand's number
TILES = {2: (128, 256, 64, 8, 3), 4: (128, 128, 32, 8, 3)}
# What `bench ops --tune` times beside them.
CANDIDATES = {
    ("matmul", "matmul_gelu", "d_matmul_x", "d_matmul_x_gelu", "d_matmul_w"): (
        {"TILES": {2: (128, 256, 64, 8, 4)}}, {"TILES": {2: (256, 128, 64, 8, 3)}},
        {"TILES": {2: (128, 128, 64, 8, 4)}}, {"TILES": {2: (128, 128, 64, 4, 4)}},
        {"GROUP": 16}, {"LEAST_K": 512}, {"LEAST_K": 2048},
    ),
}  # fmt: skip


@triton.jit
def matmul_tma_kernel(
    out_p, pre_p, a_desc, b_desc, bias_p, M, N, K, pieces, k_piece,
    A_TRANSPOSED: tl.constexpr, B_TRANSPOSED: tl.constexpr, EPILOGUE: tl.constexpr,
    ADD: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for work in tl.range(tl.program_id(0), tiles * pieces, tl.num_programs(0)):
        piece = work // tiles
        tile_m, tile_n = grouped_tile(work % tiles, M, N, BLOCK_M, BLOCK_N, GROUP)
        m, n = tile_m * BLOCK_M, tile_n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in tl.range(piece * k_piece, tl.minimum((piece + 1) * k_piece, K), BLOCK_K):
            a = a_desc.load([k, m]).T if A_TRANSPOSED else a_desc.load([m, k])
            b = b_desc.load([n, k]).T if B_TRANSPOSED else b_desc.load([k, n])
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        # In two halves: an epilogue on 128×256 sums at once does not fit the registers.
        halves = tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        row = piece * M + m
        finish(left, out_p, pre_p, bias_p, m, n, row, M, N, EPILOGUE, ADD)
        finish(right, out_p, pre_p, bias_p, m, n + BLOCK_N // 2, row, M, N, EPILOGUE, ADD)


@triton.jit
def finish(
    acc, out_p, pre_p, bias_p, m, n, row, M, N, EPILOGUE: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    """Bias, epilogue and store of the tile of sums whose corner is (m, n); row: of `out`."""
    rows, offs_n = tl.arange(0, acc.shape[0]), n + tl.arange(0, acc.shape[1])
    if bias_p is not None:
        acc += tl.load(bias_p + offs_n, mask=offs_n < N, other=0).to(tl.float32)[None, :]
    mask = (m + rows < M)[:, None] & (offs_n < N)[None, :]
    offs = (row + rows).to(tl.int64)[:, None] * N + offs_n[None, :]
    store(out_p + offs, EPILOGUE(acc, pre_p, offs, mask), mask, ADD)


def matmul(y, x, w, b, add):
    """y (N, O) = x (N, C)·wᵀ + b; w (O, C), b (O,) or None."""
    if not has_descriptors(x, w):
        v4_plain.matmul(y, x, w, b, add)
    else:
        product(y, x, w, b, b_transposed=True)


def matmul_gelu(pre, y, x, w, b, add):
    """pre (N, O) = x (N, C)·wᵀ + b and y = gelu(pre)."""
    if not has_descriptors(x, w):
        v4_plain.matmul_gelu(pre, y, x, w, b, add)
    else:
        product(y, x, w, b, b_transposed=True, epilogue=keep_and_gelu, pre=pre)


def d_matmul_x(dx, dy, w, add):
    """dx (N, C) (+)= dy (N, O)·w (O, C)."""
    if not has_descriptors(dy, w):
        v4_plain.d_matmul_x(dx, dy, w, add)
    else:
        product(dx, dy, w, add=add[0])


def d_matmul_x_gelu(dpre, dy, w, pre, add):
    """dpre (N, C) = (dy (N, O)·w (O, C)) ⊙ gelu'(pre)."""
    if not has_descriptors(dy, w):
        v4_plain.d_matmul_x_gelu(dpre, dy, w, pre, add)
    else:
        product(dpre, dy, w, epilogue=times_d_gelu, pre=pre)


def d_matmul_w_workspace(*, N: int, C: int, O: int, dtype: str, **_: object) -> int:
    """The pieces' sums, then the bias gradient's partial rows in the same place."""
    width = 2 if dtype == "bf16" else 4
    pieces, _ = splits(O, C, N, width)
    own = max(pieces * O * C * 4 if pieces > 1 else 0, bias_programs(N) * O * 4)
    return max(own, v4_plain.d_matmul_w_workspace(N=N, C=C, O=O, dtype=dtype))


def d_matmul_w(dw, db, dy, x, add, work):
    """dw (O, C) (+)= dyᵀ·x, db (O,) (+)= Σ_N dy; dy (N, O), x (N, C)."""
    if not has_descriptors(dy, x):
        v4_plain.d_matmul_w(dw, db, dy, x, add, work)
        return
    (N, O), (_, C) = dy.shape, x.shape
    pieces, k_piece = splits(O, C, N, dy.dtype.itemsize)
    if pieces == 1:
        product(dw, dy, x, a_transposed=True, add=add[0])
    else:
        part = work.part(0, "fp32", pieces, O, C)
        product(part, dy, x, a_transposed=True, pieces=pieces, k_piece=k_piece)
        sum_splits(dw, part, add[0])
    if db is not None:
        bias_gradient(db, dy, add[1], work)


def product(
    out, a, b, bias=None, a_transposed=False, b_transposed=False, add=False,
    epilogue=as_it_is, pre=None, pieces=1, k_piece=None,
):  # fmt: skip
    """out (M, N) (+)= epilogue(op(a)·op(b) + bias); out (pieces, M, N) if K is cut."""
    K, M = a.shape if a_transposed else a.shape[::-1]
    N = b.shape[0] if b_transposed else b.shape[1]
    block_m, block_n, block_k, warps, stages = TILES[a.dtype.itemsize]
    a_desc = describe(a, (block_k, block_m) if a_transposed else (block_m, block_k))
    b_desc = describe(b, (block_n, block_k) if b_transposed else (block_k, block_n))
    tiles = triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
    matmul_tma_kernel[(min(PROGRAMS, tiles * pieces),)](
        out, pre, a_desc, b_desc, bias, M, N, K, pieces, k_piece or K,
        A_TRANSPOSED=a_transposed, B_TRANSPOSED=b_transposed, EPILOGUE=epilogue, ADD=add,
        PRECISION=a.precision, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, GROUP=GROUP,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


def describe(x, tile):
    """The descriptor of a matrix for tiles of this shape."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(tile))


def has_descriptors(*operands) -> bool:
    """Whether there is a copy engine, and every row begins on a multiple of 16 bytes."""
    return has_copy_engine() and all(x.shape[1] * x.dtype.itemsize % 16 == 0 for x in operands)


def splits(M: int, N: int, K: int, itemsize: int) -> tuple[int, int]:
    """(pieces that K is cut into, length of a piece): as many as fill the multiprocessors best."""
    block_m, block_n, block_k, *_ = TILES[itemsize]
    tiles = triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
    most = max(1, min(16, K // LEAST_K))

    def idle(pieces: int) -> float:
        """Multiprocessor time that is not used, as a share, and what the partial sums cost."""
        rounds = triton.cdiv(tiles * pieces, PROGRAMS)
        return rounds * PROGRAMS / (tiles * pieces) + 0.01 * pieces

    pieces = min(range(1, most + 1), key=idle)
    k_piece = triton.cdiv(triton.cdiv(K, pieces), block_k) * block_k
    return triton.cdiv(K, k_piece), k_piece
