"""embed on the GPU: rows gathered forward; backward, rows added up by token, always in one order.

    embed      x[b,t] = wte[ids[b,t]] + wpe[t]   reads N·C numbers (wpe stays in L2), writes N·C
    d_embed    dwpe[t] += Σ_b dx[b,t]            reads N·C, reads and writes T·C
               dwte[id] += Σ dx of that id       reads N·C, reads and writes C for each distinct id

Which rows of dx belong to an id is found by sorting the N ids, which costs next to nothing:

    1  cut ids into blocks of BLOCK; in each, an element's rank is the number of elements before it
       in the order (id, place): compare all with all
    2  its rank among all N adds, for every other block, the number of elements there that come
       before it: a binary search, since that block is sorted
    3  cut the sorted list into pieces; a program adds up what a run of equal ids has in one piece
    4  a run that is cut by pieces, as those of frequent tokens are, leaves a partial row in each:
       add these in order

         sorted ids   3 3 3 7 | 7 7 7 7 | 7 7 8 9 |        pieces of 4
         dwte         3         .         8, 9             complete in one piece
         partial          7         7     7                -> dwte[7]

No atomics, no step on the host, and an order that the ids alone decide: the same bits every run.
An id outside the table makes its row of x NaN, which the trainer stops on, and has no gradient.
"""

import math

import triton
import triton.language as tl

from backglass.device.gpu import Tensor
from backglass.device.tiles import ELEMENTS, power_of_2, store

COLUMNS = 256  # of a tile: 768 is three of them, and a row of bf16 is 16 bytes for each lane
ROWS = 8  # of a tile: 16 numbers for each of 128 threads

BLOCK = 1024  # at most: at N = 65,536 there are 67 M comparisons and 64 blocks to search
SLICE = 64  # elements ranked by one program
OTHERS = 32  # blocks searched at once
PIECE = 32  # sorted elements, of which a run's are added up by one program; it divides SLICE
RUN_ROWS = 4  # of dx that it loads at once; most runs are shorter
# What `bench ops --tune` times beside them.
CANDIDATES = {
    ("d_embed",): (
        {"PIECE": 16}, {"PIECE": 64}, {"ROWS": 4}, {"ROWS": 16}, {"RUN_ROWS": 2}, {"RUN_ROWS": 8},
        {"COLUMNS": 128}, {"COLUMNS": 512, "ROWS": 4}, {"OTHERS": 16}, {"BLOCK": 512},
    ),
}  # fmt: skip


@triton.jit
def embed_kernel(
    x_p, ids_p, start_p, wte_p, wpe_p, N, T, C, V, P, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """x[n] = wte[ids[n]] + wpe[start + t]; a position past the table is padding: 0."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (n < N)[:, None] & (cols < C)[None, :]
    t = n % T
    if start_p is not None:
        t += tl.load(start_p + n // T, mask=n < N, other=0)
    token = tl.load(ids_p + n, mask=n < N, other=0)
    known, placed = (token >= 0) & (token < V), (t >= 0) & (t < P)
    wte_p += token.to(tl.int64)[:, None] * C + cols[None, :]
    x = tl.load(wte_p, mask=mask & known[:, None], other=float("nan")).to(tl.float32)
    if wpe_p is not None:
        wpe_p += t[:, None] * C + cols[None, :]
        x += tl.load(wpe_p, mask=mask & placed[:, None], other=0).to(tl.float32)
    x = tl.where(placed[:, None], x, 0)
    store(x_p + n.to(tl.int64)[:, None] * C + cols[None, :], x, mask, False)


def embed(x, ids, wte, wpe, add):
    """x (B, T, C) = wte[ids] + wpe[:T]; ids (B, T), wte (V, C), wpe (P, C) or None."""
    embed_at(x, ids, None, wte, wpe, add)


def embed_at(x, ids, start, wte, wpe, add):
    """x (B, T, C) = wte[ids] + wpe[start + t]; start (B,), or None for 0."""
    B, T, C = x.shape
    P = T if wpe is None else wpe.shape[0]  # without positions every one has its place
    grid = (triton.cdiv(B * T, ROWS), triton.cdiv(C, COLUMNS))
    embed_kernel[grid](
        x, ids, start, wte, wpe, B * T, T, C, wte.shape[0], P,
        ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip


@triton.jit
def add_positions_kernel(
    dwpe_p, dx_p, B, T, C, ADD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """dwpe[t] (+)= Σ_b dx[b,t], 0 from position T on."""
    t = tl.program_id(0)
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, tl.where(t < T, B, 0), ROWS):  # 8
        b = first + tl.arange(0, ROWS)
        mask = (b < B)[:, None] & (cols < C)[None, :]
        offs = (b.to(tl.int64) * T + t)[:, None] * C + cols[None, :]
        acc += tl.load(dx_p + offs, mask=mask, other=0).to(tl.float32)  # 7
    store(dwpe_p + t * C + cols, tl.sum(acc, 0), cols < C, ADD)


@triton.jit
def element(ids_p, first, place, N, V, BLOCK: tl.constexpr):
    """What is sorted: token·BLOCK + place, of a place in the block that begins at `first`.

    A token that is not in the table, or lies past the end of ids, counts as V: it comes last.
    """
    token = tl.load(ids_p + first + place, mask=first + place < N, other=V)
    return tl.where((token < 0) | (token > V), V, token) * BLOCK + place


@triton.jit
def sort_blocks_kernel(keys_p, ids_p, N, V, BLOCK: tl.constexpr, SLICE: tl.constexpr):
    """keys[block] = the elements of the block in order."""
    first = tl.program_id(0) * BLOCK
    mine = element(ids_p, first, tl.program_id(1) * SLICE + tl.arange(0, SLICE), N, V, BLOCK)
    less = tl.zeros((SLICE, SLICE), tl.int32)
    for other in range(0, BLOCK, SLICE):
        theirs = element(ids_p, first, other + tl.arange(0, SLICE), N, V, BLOCK)
        less += (theirs[None, :] < mine[:, None]).to(tl.int32)
    tl.store(keys_p + first + tl.sum(less, 1), mine)


@triton.jit
def merge_blocks_kernel(
    sorted_p, order_p, keys_p, blocks,
    BLOCK: tl.constexpr, SLICE: tl.constexpr, OTHERS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """sorted: all tokens in order; order: where each stands in ids, among equals the first first.

    Triton lays the lanes of a warp along the first axis here: 32 neighbours in one block search the
    same other block, and so read the same few lines of cache.
    """
    block, rank = tl.program_id(0), tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    key = tl.load(keys_p + block * BLOCK + rank)
    token, n = key // BLOCK, block * BLOCK + key % BLOCK
    for first in range(0, blocks, OTHERS):
        other = first + tl.arange(0, OTHERS)
        # Of equal tokens, those in earlier blocks come before, those in later blocks after.
        bound = (token[:, None] + (other < block)[None, :].to(tl.int32)) * BLOCK
        searched = (other < blocks) & (other != block)
        less = tl.zeros((SLICE, OTHERS), tl.int32)  # keys known to be below the bound
        for i in tl.static_range(STEPS):
            step = BLOCK >> i
            at = less + step - 1
            mask = searched[None, :] & (at < BLOCK)
            there = tl.load(keys_p + other[None, :] * BLOCK + at, mask=mask, other=2**31 - 1)
            less += tl.where(there < bound, step, 0)
        rank += tl.sum(less, 1)
    tl.store(sorted_p + rank, token)
    tl.store(order_p + rank, n)


@triton.jit
def add_runs_kernel(
    dwte_p, part_p, dx_p, sorted_p, order_p, N, V, C, ADD: tl.constexpr,
    PIECE: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Of the elements of a run that lie in one piece the first one's program sums them all: to dwte
    if they are the whole run, else to part[2·piece + (it begins here)]."""
    first = tl.program_id(0)
    piece = first // PIECE
    token = tl.load(sorted_p + first)
    begins = token != tl.load(sorted_p + first - 1, mask=first > 0, other=-1)
    if (token < V) & (begins | (first % PIECE == 0)):
        cols = tl.arange(0, BLOCK_C)
        tokens = tl.load(sorted_p + piece * PIECE + tl.arange(0, PIECE))
        stop = piece * PIECE + tl.sum((tokens <= token).to(tl.int32), 0)
        after = tl.load(sorted_p + stop, mask=stop < N, other=-1)
        acc = tl.zeros((ROWS, BLOCK_C), tl.float32)
        for tile in range(first, stop, ROWS):
            offs = tile + tl.arange(0, ROWS)
            n = tl.load(order_p + offs, mask=offs < stop, other=0).to(tl.int64)
            mask = (offs < stop)[:, None] & (cols < C)[None, :]
            dx = tl.load(dx_p + n[:, None] * C + cols[None, :], mask=mask, other=0)
            acc += dx.to(tl.float32)  # 4, 6
        total = tl.sum(acc, 0)
        if begins & (token != after):
            store(dwte_p + token.to(tl.int64) * C + cols, total, cols < C, ADD)
        else:
            row = 2 * piece.to(tl.int64) + begins.to(tl.int32)
            tl.store(part_p + row * C + cols, total, mask=cols < C)


@triton.jit
def join_runs_kernel(
    dwte_p, part_p, sorted_p, N, V, C, ADD: tl.constexpr,
    PIECE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dwte of a run that begins in this piece and ends in another: the sum of its partial rows."""
    piece = tl.program_id(0)
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    last = (piece + 1) * PIECE - 1
    token = tl.load(sorted_p + last)
    begins = token != tl.load(sorted_p + piece * PIECE - 1, mask=piece > 0, other=-1)
    if begins & (token < V) & (token == tl.load(sorted_p + last + 1, mask=last + 1 < N, other=-1)):
        acc = tl.zeros((ROWS, COLUMNS), tl.float32)
        at = last  # an element of the run: in this piece the last, in others the first
        while token == tl.load(sorted_p + at, mask=at < N, other=-1):
            pieces = at // PIECE + tl.arange(0, ROWS)
            offs = tl.maximum(pieces * PIECE, last)
            mine = token == tl.load(sorted_p + offs, mask=offs < N, other=-1)
            rows = 2 * pieces.to(tl.int64) + (pieces == piece).to(tl.int32)
            mask = mine[:, None] & (cols < C)[None, :]
            acc += tl.load(part_p + rows[:, None] * C + cols[None, :], mask=mask, other=0)
            at = (at // PIECE + ROWS) * PIECE
        store(dwte_p + token.to(tl.int64) * C + cols, tl.sum(acc, 0), cols < C, ADD)


@triton.jit
def zero_kernel(y_p, N, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    store(y_p + offs, tl.zeros((BLOCK,), tl.float32), offs < N, False)


def d_embed_workspace(*, B: int, T: int, C: int, **_: object) -> int:
    """Ids sorted in blocks, ids sorted, their places; two partial rows for each piece."""
    padded = triton.cdiv(B * T, block_of(B * T)) * block_of(B * T)
    return 4 * (3 * padded + 2 * triton.cdiv(B * T, PIECE) * C)


def block_of(N: int) -> int:
    """Elements of a block: so many that all blocks are searched at once, if BLOCK allows it."""
    return min(BLOCK, power_of_2(triton.cdiv(N, OTHERS), SLICE))


def d_embed(dwte, dwpe, dx, ids, add, work):
    """dwte (V, C) and dwpe (P, C) or None from dx (B, T, C) and ids (B, T); both may accumulate."""
    (B, T, C), (V, _) = dx.shape, dwte.shape
    N, pieces, columns = B * T, triton.cdiv(B * T, PIECE), triton.cdiv(C, COLUMNS)
    tile = {"ROWS": ROWS, "COLUMNS": COLUMNS}
    if dwpe is not None:
        rows = T if add[1] else dwpe.shape[0]
        add_positions_kernel[(rows, columns)](dwpe, dx, B, T, C, ADD=add[1], **tile)
    in_order, order, part = sort(ids, V, pieces, C, work)
    if not add[0]:
        zero_kernel[(triton.cdiv(V * C, ELEMENTS),)](dwte, V * C, BLOCK=ELEMENTS)
    block = power_of_2(C)
    add_runs_kernel[(N,)](
        dwte, part, dx, in_order, order, N, V, C, ADD=add[0], PIECE=PIECE,
        ROWS=RUN_ROWS, BLOCK_C=block, num_warps=min(8, max(1, block // 256)),
    )  # fmt: skip
    join_runs_kernel[(pieces, columns)](
        dwte, part, in_order, N, V, C, ADD=add[0], PIECE=PIECE, **tile
    )


def sort(ids: Tensor, V: int, pieces: int, C: int, work: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(the ids in order, where each stands in ids, room for partial rows), all in work."""
    N = math.prod(ids.shape)
    block = block_of(N)
    blocks = triton.cdiv(N, block)
    n = blocks * block
    keys, in_order, order = (work.part(4 * i * n, "i32", n) for i in range(3))
    grid, sizes = (blocks, block // SLICE), {"BLOCK": block, "SLICE": SLICE}
    sort_blocks_kernel[grid](keys, ids, N, V, **sizes)
    merge_blocks_kernel[grid](
        in_order, order, keys, blocks, OTHERS=OTHERS, STEPS=block.bit_length(), **sizes
    )
    return in_order, order, work.part(12 * n, "fp32", 2 * pieces, C)
