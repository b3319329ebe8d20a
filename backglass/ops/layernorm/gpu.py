"""layernorm on the GPU: a program takes a few rows, whole, into registers.

    layernorm         reads N·C, writes N·C numbers; mean and rstd cost 8 bytes a row
    add_layernorm     reads 2·N·C, writes 2·N·C
    d_layernorm       reads 2·N·C (3 with +dx), writes N·C; dw and db: PROGRAMS partial rows
    d_layernorm_add   reads 3·N·C, writes N·C

dw and db are sums over all rows.  Atomic additions would come in another order on every run;
instead each of PROGRAMS programs walks over every PROGRAMS-th tile and keeps its own dw and db in
registers, writes them once to `work`, and column_sums adds the PROGRAMS rows in order.
"""

import triton
import triton.language as tl

from backglass.device.tiles import column_sums, power_of_2, store

# Of the backward: four for each of an H100's 132 multiprocessors, each with the loads of three rows
# in flight while it works on a fourth.  3.6 TB/s where two programs with eight warps and no loads
# ahead reached 0.9 (N = 65,536, C = 768, bf16, H200, 2026-11-24).
PROGRAMS = 528
STAGES = 4
ROWS, ROWS_BACKWARD = 2, 1  # of a tile, at least
PER_WARP = 512  # numbers of a tile: 16 for each thread
# What `bench ops --tune` times beside them.
CANDIDATES = {
    ("layernorm", "add_layernorm"): tuple(
        {"ROWS": rows, "PER_WARP": numbers} for rows in (1, 2, 4) for numbers in (256, 512)
    ),
    ("d_layernorm", "d_layernorm_add"): (
        {"PROGRAMS": 264}, {"PROGRAMS": 792}, {"PROGRAMS": 1056}, {"STAGES": 2}, {"STAGES": 3},
        {"STAGES": 5}, {"ROWS_BACKWARD": 2}, {"ROWS_BACKWARD": 2, "STAGES": 3}, {"PER_WARP": 256},
        {"PER_WARP": 256, "PROGRAMS": 264}, {"PER_WARP": 1024, "PROGRAMS": 1056},
    ),
}  # fmt: skip


@triton.jit
def layernorm_kernel(
    y_p, mean_p, rstd_p, res_p, x_p, branch_p, w_p, b_p, N, C, eps,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y = layernorm(x), or with a branch: res = x + branch, y = layernorm(res)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    cols = tl.arange(0, BLOCK_C)
    mask = (rows < N)[:, None] & (cols < C)[None, :]
    offs = rows[:, None] * C + cols[None, :]
    x = tl.load(x_p + offs, mask=mask, other=0).to(tl.float32)  # (ROWS, BLOCK_C)
    if branch_p is not None:
        x += tl.load(branch_p + offs, mask=mask, other=0).to(tl.float32)
        store(res_p + offs, x, mask, False)
    mean = tl.sum(x, 1) / C
    xmean = tl.where(mask, x - mean[:, None], 0)
    rstd = 1 / tl.sqrt(tl.sum(xmean * xmean, 1) / C + eps)
    w = tl.load(w_p + cols, mask=cols < C, other=0).to(tl.float32)
    b = tl.load(b_p + cols, mask=cols < C, other=0).to(tl.float32)
    y = xmean * rstd[:, None] * w[None, :] + b[None, :]
    store(y_p + offs, y, mask, False)
    tl.store(mean_p + rows, mean, mask=rows < N)
    tl.store(rstd_p + rows, rstd, mask=rows < N)


def layernorm(y, mean, rstd, x, w, b, eps, add):
    """y (N, C), mean (N,), rstd (N,) from x (N, C), w (C,), b (C,)."""
    add_layernorm(None, y, mean, rstd, x, None, w, b, eps, add)


def add_layernorm(res, y, mean, rstd, x, branch, w, b, eps, add):
    """res (N, C) = x + branch and its layernorm y, mean, rstd; res may be x or branch."""
    N, C = x.shape
    rows, block, warps = tile(C, ROWS)
    layernorm_kernel[(triton.cdiv(N, rows),)](
        y, mean, rstd, res, x, branch, w, b, N, C, eps, ROWS=rows, BLOCK_C=block, num_warps=warps
    )


@triton.jit
def d_layernorm_kernel(
    dx_p, part_p, dres_p, dy_p, x_p, w_p, mean_p, rstd_p, N, C,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx = (dres +) the gradient through the layernorm; part: this program's share of dw, db."""
    cols = tl.arange(0, BLOCK_C)
    w = tl.load(w_p + cols, mask=cols < C, other=0).to(tl.float32)
    acc_dw = tl.zeros((BLOCK_C,), tl.float32)
    acc_db = tl.zeros((BLOCK_C,), tl.float32)
    step = tl.num_programs(0) * ROWS
    for first in tl.range(tl.program_id(0) * ROWS, N, step, num_stages=STAGES):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (cols < C)[None, :]
        offs = rows[:, None].to(tl.int64) * C + cols[None, :]
        dy = tl.load(dy_p + offs, mask=mask, other=0).to(tl.float32)
        x = tl.load(x_p + offs, mask=mask, other=0).to(tl.float32)
        mean = tl.load(mean_p + rows, mask=rows < N, other=0)
        rstd = tl.load(rstd_p + rows, mask=rows < N, other=0)
        n = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0)
        acc_db += tl.sum(dy, 0)  # derivation step 1
        acc_dw += tl.sum(dy * n, 0)  # 2
        dn = dy * w[None, :]  # 3
        along_ones = tl.sum(dn, 1) / C  # 13, second term
        along_n = tl.sum(dn * n, 1) / C  # 13, third term
        dx = rstd[:, None] * (dn - along_ones[:, None] - n * along_n[:, None])  # 13
        if dres_p is not None:
            dx += tl.load(dres_p + offs, mask=mask, other=0).to(tl.float32)
        store(dx_p + offs, dx, mask, False)
    part_p += tl.program_id(0) * 2 * C + cols
    tl.store(part_p, acc_dw, mask=cols < C)
    tl.store(part_p + C, acc_db, mask=cols < C)


def d_layernorm_workspace(*, N: int, C: int, **_: object) -> int:
    """A partial dw and db for each program, in fp32."""
    return _programs(N, C) * 2 * C * 4


def d_layernorm(dx, dw, db, dy, x, w, mean, rstd, add, work):
    """dx (N, C), dw (C,), db (C,) from dy (N, C); every one may accumulate."""
    dres = dx if add[0] else None
    d_layernorm_add(dx, dw, db, dres, dy, x, w, mean, rstd, add, work)


d_layernorm_add_workspace = d_layernorm_workspace


def d_layernorm_add(dx, dw, db, dres, dy, x, w, mean, rstd, add, work):
    """d_layernorm plus dres (N, C), the gradient that passed the branch by; dx may be dres."""
    N, C = x.shape
    rows, block, warps = tile(C, ROWS_BACKWARD)
    programs = _programs(N, C)
    part = work.part(0, "fp32", programs, 2 * C)
    d_layernorm_kernel[(programs,)](
        dx, part, dres, dy, x, w, mean, rstd, N, C,
        ROWS=rows, BLOCK_C=block, STAGES=STAGES, num_warps=warps,
    )  # fmt: skip
    column_sums(dw, part, add[1], first=0)
    column_sums(db, part, add[2], first=C)


def _programs(N: int, C: int) -> int:
    """Of the backward; fewer than four tiles for each would not pay for the partial rows."""
    return min(PROGRAMS, triton.cdiv(N, 4 * tile(C, ROWS_BACKWARD)[0]))


def tile(C: int, rows: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of a tile: whole rows, more of them if they are short."""
    block = power_of_2(C)
    rows = max(rows, min(64, 512 // block))
    return rows, block, min(16, max(1, rows * block // PER_WARP))
