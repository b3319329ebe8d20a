"""qk_norm on the CPU: rmsnorm's row, for each head of q and k; the heads of v are copied.

forward, reads and writes B·T·H·HS floats; one task a position.
backward, reads twice that, writes it once; one task a block of positions, each with a dqw and a dkw
of its own, which are added up in order (see rmsnorm).
"""

from numpy import float32

from backglass.device.host import kernel, prange
from backglass.device.rows import start_from, zero
from backglass.ops.layernorm.cpu import add_up, blocks_of, rows_per_block
from backglass.ops.rmsnorm.cpu import d_row, d_row_sums, normalise


@kernel
def qk_norm(out, rstd, qkv, qw, kw, eps, add):
    """out (B,T,H,HS), rstd (B,T,QK) from qkv and qw, kw (HS,)."""
    B, T, H, HS = qkv.shape
    QK = rstd.shape[2]
    x, y, r = qkv.reshape(B * T, H, HS), out.reshape(B * T, H, HS), rstd.reshape(B * T, QK)
    for n in prange(B * T):
        for h in range(QK):
            r[n, h] = normalise(y[n, h], x[n, h], qw if h < 2 * QK - H else kw, float32(eps))
        for h in range(QK, H):
            start_from(y[n, h], x[n, h])


def d_qk_norm_workspace(B: int, T: int, HS: int, threads: int = 1, **_: int) -> int:
    """Floats of workspace: a partial dqw and dkw for every block of positions."""
    return 2 * blocks_of(B * T) * HS


@kernel
def d_qk_norm(dqkv, dqw, dkw, dout, qkv, qw, kw, rstd, add, work):
    """dqkv (B,T,H,HS), dqw and dkw (HS,). dqkv may be dout's memory."""
    B, T, H, HS = qkv.shape
    N, QK = B * T, rstd.shape[2]
    x, dx, dy = qkv.reshape(N, H, HS), dqkv.reshape(N, H, HS), dout.reshape(N, H, HS)
    r = rstd.reshape(N, QK)
    rows = rows_per_block(N)
    n_blocks = (N + rows - 1) // rows
    for block in prange(n_blocks):
        partial = work[2 * block * HS : 2 * (block + 1) * HS]  # (2·HS,) = dqw and dkw
        zero(partial)
        for n in range(block * rows, min((block + 1) * rows, N)):
            for h in range(QK):
                is_k = h >= 2 * QK - H
                w, dw = kw if is_k else qw, partial[HS:] if is_k else partial[:HS]
                mean = d_row_sums(dw, dy[n, h], x[n, h], w, r[n, h])
                d_row(dx[n, h], dy[n, h], x[n, h], w, r[n, h], mean, False)
            for h in range(QK, H):
                start_from(dx[n, h], dy[n, h])
    add_up(dqw, work, 2 * HS, n_blocks, add[1])
    add_up(dkw, work[HS:], 2 * HS, n_blocks, add[2])
