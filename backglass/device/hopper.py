"""What kernels in Gluon share: buffers in shared memory, barriers, descriptors.

Gluon is Triton's lower level: it says which warps do what, and where every number lies.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from backglass.device.tiles import has_copy_engine

PROGRAMS = 132  # multiprocessors of an H100; a program's buffers fill the shared memory of one

# Triton 3.9 has other names for them.
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


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


def has_gluon() -> bool:
    """Whether these kernels run: compiled, on Hopper."""
    return not triton.knobs.runtime.interpret and has_copy_engine()


def specialises(*operands) -> bool:
    """Whether Gluon can multiply: bf16, and every row a multiple of 16 bytes."""
    return has_gluon() and all(x.dtype.itemsize == 2 and x.shape[1] % 8 == 0 for x in operands)


def describe(x, rows, columns):
    """The descriptor of a bf16 matrix for tiles of this shape."""
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], gl.bfloat16)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns], layout)
