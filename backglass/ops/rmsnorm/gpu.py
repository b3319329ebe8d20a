"""rmsnorm on the GPU: a program takes a few rows, whole, into registers.

    rmsnorm         reads N·C, writes N·C numbers; rstd costs 4 bytes a row
    add_rmsnorm     reads 2·N·C, writes 2·N·C
    d_rmsnorm       reads 2·N·C (3 with +dx), writes N·C; dw: PROGRAMS partial rows
    d_rmsnorm_add   reads 3·N·C, writes N·C

dw is a sum over all rows.  As in layernorm each of PROGRAMS programs walks over every PROGRAMS-th
tile with a dw of its own in registers, and column_sums adds the PROGRAMS rows in order.
"""

import triton
import triton.language as tl

from backglass.device.tiles import column_sums, store
from backglass.ops.layernorm.gpu import tile

# The tiles and programs that were measured for layernorm, which moves the same bytes.
PROGRAMS = 528
STAGES = 4
ROWS, ROWS_BACKWARD = 2, 1  # of a tile, at least
# What `bench ops --tune` times beside them.
CANDIDATES = {
    ("rmsnorm", "add_rmsnorm"): ({"ROWS": 1}, {"ROWS": 4}),
    ("d_rmsnorm", "d_rmsnorm_add"): (
        {"PROGRAMS": 264}, {"PROGRAMS": 792}, {"PROGRAMS": 1056}, {"STAGES": 3},
        {"ROWS_BACKWARD": 2}, {"ROWS_BACKWARD": 2, "STAGES": 3},
    ),
}  # fmt: skip


@triton.jit
def rmsnorm_kernel(
    y_p, rstd_p, res_p, x_p, branch_p, w_p, N, C, eps,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y = rmsnorm(x), or with a branch: res = x + branch, y = rmsnorm(res)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    cols = tl.arange(0, BLOCK_C)
    mask = (rows < N)[:, None] & (cols < C)[None, :]
    offs = rows[:, None] * C + cols[None, :]
    x = tl.load(x_p + offs, mask=mask, other=0).to(tl.float32)  # (ROWS, BLOCK_C)
    if branch_p is not None:
        x += tl.load(branch_p + offs, mask=mask, other=0).to(tl.float32)
        store(res_p + offs, x, mask, False)
    rstd = 1 / tl.sqrt(tl.sum(x * x, 1) / C + eps)
    w = tl.load(w_p + cols, mask=cols < C, other=0).to(tl.float32)
    store(y_p + offs, x * rstd[:, None] * w[None, :], mask, False)
    tl.store(rstd_p + rows, rstd, mask=rows < N)


def rmsnorm(y, rstd, x, w, eps, add):
    """y (N, C), rstd (N,) from x (N, C), w (C,)."""
    add_rmsnorm(None, y, rstd, x, None, w, eps, add)


def add_rmsnorm(res, y, rstd, x, branch, w, eps, add):
    """res (N, C) = x + branch and its rmsnorm y, rstd; res may be x or branch."""
    N, C = x.shape
    rows, block, warps = tile(C, ROWS)
    rmsnorm_kernel[(triton.cdiv(N, rows),)](
        y, rstd, res, x, branch, w, N, C, eps, ROWS=rows, BLOCK_C=block, num_warps=warps
    )


@triton.jit
def d_rmsnorm_kernel(
    dx_p, part_p, dres_p, dy_p, x_p, w_p, rstd_p, N, C,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx = (dres +) the gradient through the rmsnorm; part: this program's share of dw."""
    cols = tl.arange(0, BLOCK_C)
    w = tl.load(w_p + cols, mask=cols < C, other=0).to(tl.float32)
    acc_dw = tl.zeros((BLOCK_C,), tl.float32)
    step = tl.num_programs(0) * ROWS
    for first in tl.range(tl.program_id(0) * ROWS, N, step, num_stages=STAGES):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (cols < C)[None, :]
        offs = rows[:, None].to(tl.int64) * C + cols[None, :]
        dy = tl.load(dy_p + offs, mask=mask, other=0).to(tl.float32)
        x = tl.load(x_p + offs, mask=mask, other=0).to(tl.float32)
        rstd = tl.load(rstd_p + rows, mask=rows < N, other=0)
        n = x * rstd[:, None]
        acc_dw += tl.sum(dy * n, 0)  # derivation step 1
        dn = dy * w[None, :]  # 2
        along_n = tl.sum(dn * n, 1) / C  # 11, second term
        dx = rstd[:, None] * (dn - n * along_n[:, None])  # 11
        if dres_p is not None:
            dx += tl.load(dres_p + offs, mask=mask, other=0).to(tl.float32)
        store(dx_p + offs, dx, mask, False)
    tl.store(part_p + tl.program_id(0) * C + cols, acc_dw, mask=cols < C)


def d_rmsnorm_workspace(*, N: int, C: int, **_: object) -> int:
    """A partial dw for each program, in fp32."""
    return _programs(N, C) * C * 4


def d_rmsnorm(dx, dw, dy, x, w, rstd, add, work):
    """dx (N, C), dw (C,) from dy (N, C); both may accumulate."""
    d_rmsnorm_add(dx, dw, dx if add[0] else None, dy, x, w, rstd, add, work)


d_rmsnorm_add_workspace = d_rmsnorm_workspace


def d_rmsnorm_add(dx, dw, dres, dy, x, w, rstd, add, work):
    """d_rmsnorm plus dres (N, C), the gradient that passed the branch by; dx may be dres."""
    N, C = x.shape
    rows, block, warps = tile(C, ROWS_BACKWARD)
    programs = _programs(N, C)
    part = work.part(0, "fp32", programs, C)
    d_rmsnorm_kernel[(programs,)](
        dx, part, dres, dy, x, w, rstd, N, C,
        ROWS=rows, BLOCK_C=block, STAGES=STAGES, num_warps=warps,
    )  # fmt: skip
    column_sums(dw, part, add[1])


def _programs(N: int, C: int) -> int:
    """Of the backward; fewer than four tiles for each would not pay for the partial rows."""
    return min(PROGRAMS, triton.cdiv(N, 4 * tile(C, ROWS_BACKWARD)[0]))
