"""qk_norm on the GPU: a program takes a few heads, whole, into registers.

Forward: reads and writes B·T·H·HS numbers.  Backward: reads twice that, writes it once; dqw and dkw
are sums over all heads, made as rmsnorm makes its dw: PROGRAMS partial rows, added up in order.
"""

import triton
import triton.language as tl

from backglass.device.tiles import column_sums, store
from backglass.ops.layernorm.gpu import tile

PROGRAMS = 528  # of the backward: four for each of an H100's 132 multiprocessors
ROWS = 8  # heads of a tile, at least


@triton.jit
def weights_of(h, qw_p, kw_p, cols, H, QK, HS):
    """(ROWS, BLOCK) weights of the heads h (ROWS,), for v's heads what they are not used for."""
    qw = tl.load(qw_p + cols, mask=cols < HS, other=0).to(tl.float32)
    kw = tl.load(kw_p + cols, mask=cols < HS, other=0).to(tl.float32)
    return tl.where((h < 2 * QK - H)[:, None], qw[None, :], kw[None, :])


@triton.jit
def qk_norm_kernel(
    out_p, rstd_p, qkv_p, qw_p, kw_p, N, H, QK, HS, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # n·H + h
    cols = tl.arange(0, BLOCK)
    h, there = rows % H, rows < N * H
    mask = there[:, None] & (cols < HS)[None, :]
    offs = rows[:, None] * HS + cols[None, :]
    x = tl.load(qkv_p + offs, mask=mask, other=0).to(tl.float32)  # (ROWS, BLOCK)
    rstd = 1 / tl.sqrt(tl.sum(x * x, 1) / HS + eps)
    y = x * rstd[:, None] * weights_of(h, qw_p, kw_p, cols, H, QK, HS)
    store(out_p + offs, tl.where((h < QK)[:, None], y, x), mask, False)
    tl.store(rstd_p + rows // H * QK + h, rstd, mask=there & (h < QK))


def qk_norm(out, rstd, qkv, qw, kw, eps, add):
    """out (B, T, H, HS), rstd (B, T, QK) from qkv and qw, kw (HS,)."""
    (B, T, H, HS), QK = qkv.shape, rstd.shape[2]
    rows, block, warps = tile(HS, ROWS)
    qk_norm_kernel[(triton.cdiv(B * T * H, rows),)](
        out, rstd, qkv, qw, kw, B * T, H, QK, HS, eps, ROWS=rows, BLOCK=block, num_warps=warps
    )


@triton.jit
def d_qk_norm_kernel(
    dqkv_p, part_p, dout_p, qkv_p, qw_p, kw_p, rstd_p, N, H, QK, HS,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dqkv of every programs-th tile; part: this program's share of dqw, then of dkw."""
    cols = tl.arange(0, BLOCK)
    acc_dqw = tl.zeros((BLOCK,), tl.float32)
    acc_dkw = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(tl.program_id(0) * ROWS, N * H, tl.num_programs(0) * ROWS):
        rows = (first + tl.arange(0, ROWS)).to(tl.int64)
        h, there = rows % H, rows < N * H
        mask = there[:, None] & (cols < HS)[None, :]
        offs = rows[:, None] * HS + cols[None, :]
        dy = tl.load(dout_p + offs, mask=mask, other=0).to(tl.float32)  # (ROWS, BLOCK)
        x = tl.load(qkv_p + offs, mask=mask, other=0).to(tl.float32)
        rstd = tl.load(rstd_p + rows // H * QK + h, mask=there & (h < QK), other=0)
        n = x * rstd[:, None]  # 0 in v's heads
        is_q = (h < 2 * QK - H)[:, None]
        acc_dqw += tl.sum(tl.where(is_q, dy * n, 0), 0)  # derivation step 1
        acc_dkw += tl.sum(tl.where(is_q, 0, dy * n), 0)  # 1
        dn = dy * weights_of(h, qw_p, kw_p, cols, H, QK, HS)  # 2
        along_n = tl.sum(dn * n, 1) / HS  # 7, second term
        dx = rstd[:, None] * (dn - n * along_n[:, None])  # 7
        store(dqkv_p + offs, tl.where((h < QK)[:, None], dx, dy), mask, False)  # 9
    part_p += tl.program_id(0) * 2 * HS + cols
    tl.store(part_p, acc_dqw, mask=cols < HS)
    tl.store(part_p + HS, acc_dkw, mask=cols < HS)


def d_qk_norm_workspace(*, B: int, T: int, H: int, HS: int, **_: object) -> int:
    """A partial dqw and dkw for each program, in fp32."""
    return _programs(B * T * H, HS) * 2 * HS * 4


def d_qk_norm(dqkv, dqw, dkw, dout, qkv, qw, kw, rstd, add, work):
    """dqkv (B, T, H, HS), dqw and dkw (HS,) from dout; dqkv may be dout."""
    (B, T, H, HS), QK = qkv.shape, rstd.shape[2]
    rows, block, warps = tile(HS, ROWS)
    programs = _programs(B * T * H, HS)
    part = work.part(0, "fp32", programs, 2 * HS)
    d_qk_norm_kernel[(programs,)](
        dqkv, part, dout, qkv, qw, kw, rstd, B * T, H, QK, HS,
        ROWS=rows, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    column_sums(dqw, part, add[1], first=0)
    column_sums(dkw, part, add[2], first=HS)


def _programs(rows: int, HS: int) -> int:
    """Fewer than four tiles for each would not pay for the partial rows."""
    return min(PROGRAMS, triton.cdiv(rows, 4 * tile(HS, ROWS)[0]))
