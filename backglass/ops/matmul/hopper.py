"""What the warp-specialised matmuls share: buffers, barriers, descriptors."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from backglass.device.tiles import has_copy_engine
from backglass.ops.matmul.ladder.v4_plain import grouped_tile as plain_grouped_tile

PROGRAMS = 132  # multiprocessors of an H100; a program's buffers fill the shared memory of one
GROUP = 8  # rows of tiles visited together, so that what they read stays in the L2 cache

# Triton 3.9 has other names for them.
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

grouped_tile = gluon.jit(plain_grouped_tile.fn)


@gluon.jit
def buffers(desc, COUNT: gl.constexpr):
    """COUNT tiles of a descriptor's in shared memory."""
    return gl.allocate_shared_memory(desc.dtype, [COUNT] + desc.block_type.shape, desc.layout)


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """COUNT barriers on which so many arrivals end a phase."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(made.index(i), count=ARRIVALS)
    return made


@gluon.jit
def tiles_of(M, N, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    return ((M + BLOCK_M - 1) // BLOCK_M) * ((N + BLOCK_N - 1) // BLOCK_N)


def specialises(*operands) -> bool:
    """Whether Gluon can: bf16 on Hopper, compiled, every row a multiple of 16 bytes."""
    return (
        not triton.knobs.runtime.interpret
        and has_copy_engine()
        and all(x.dtype.itemsize == 2 and x.shape[1] % 8 == 0 for x in operands)
    )


def describe(x, rows, columns):
    """The descriptor of a bf16 matrix for tiles of this shape."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], gl.bfloat16)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns], layout)
