"""add on the GPU: element by element.  Forward reads 2·N numbers and writes N; backward copies."""

import triton
import triton.language as tl

from backglass.device.tiles import ELEMENTS, store


@triton.jit
def add_kernel(y_p, a_p, b_p, N, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_p + offs, mask=offs < N, other=0).to(tl.float32)
    b = tl.load(b_p + offs, mask=offs < N, other=0).to(tl.float32)
    store(y_p + offs, a + b, offs < N, False)


@triton.jit
def d_add_kernel(
    da_p, db_p, dy_p, N, ADD_A: tl.constexpr, ADD_B: tl.constexpr, BLOCK: tl.constexpr
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(dy_p + offs, mask=offs < N, other=0).to(tl.float32)
    store(da_p + offs, dy, offs < N, ADD_A)  # derivation step 2
    if db_p is not None:
        store(db_p + offs, dy, offs < N, ADD_B)  # 3


def add(y, a, b, add):
    """y (N,) = a + b; y may be either."""
    (N,) = y.shape
    add_kernel[(triton.cdiv(N, ELEMENTS),)](y, a, b, N, BLOCK=ELEMENTS)


def d_add(da, db, dy, add):
    """da (N,) (+)= dy and db (+)= dy, if there is a db; da may be dy."""
    (N,) = dy.shape
    if da.address == dy.address and db is None and not add[0]:
        return  # it lies there already
    grid = (triton.cdiv(N, ELEMENTS),)
    d_add_kernel[grid](da, db, dy, N, ADD_A=add[0], ADD_B=add[1], BLOCK=ELEMENTS)
