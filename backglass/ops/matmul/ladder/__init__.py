"""matmul, one idea per rung. Each file has matmul, d_matmul_x and d_matmul_w.

    On the CPU    adds                                                     GFLOP/s of the three
    v1_naive      the formula: one output at a time                           40     2     2
    v2_blocked    loop order and blocks: vectors, data met while in cache     70    48    48
    v3_packed     packed panels, a tile of 4×4 sums in registers             114   104    67
    ../cpu.py     vector intrinsics: a tile of 8×48 sums                     313   316   294
    blas          np.dot: what OpenBLAS makes of it (`--matmul blas`)        264   290   239

At N = 256, O = 2304, C = 768 on 2 cores of a Sapphire Rapids (AVX-512), 2026-11-22, best of 8
rounds on a shared machine. Why each exists: v1 is the formula; v2 shows that
memory, not arithmetic, held it back; v3 that registers are the fastest memory of all; cpu.py that
LLVM must be told so; blas is the yardstick.

    On the GPU    adds
    v1_thread     the formula: one thread, one output
    v2_shared     tiles that a block's threads fetch together into shared memory
    v3_registers  a thread makes 4×4 outputs from numbers in its registers
    v4_plain      Triton, tensor cores: a program makes a tile, tl.dot multiplies tiles
    v5_tma        Hopper's copy engine brings the tiles, programs stay on their multiprocessor
    ../gpu.py     Gluon: warps that only fetch beside warps that only multiply, in turns
    cublaslt      NVIDIA's library (`--matmul cublaslt`), the yardstick
    fastest       the faster of the last two for each product: the default

The first three are CUDA's thread model in Python (backglass/device/cuda_threads.py) and multiply
number by number, in fp32 whatever the tensors are held in; they run without a GPU in numba-cuda's
simulator. `bench ops matmul --device cuda --rung matmul=v2` times a rung beside cuBLASLt.
"""

VERSIONS = {
    "v1": "backglass.ops.matmul.ladder.v1_naive",
    "v2": "backglass.ops.matmul.ladder.v2_blocked",
    "v3": "backglass.ops.matmul.ladder.v3_packed",
    "v4": "backglass.ops.matmul.cpu",
    "blas": "backglass.ops.matmul.ladder.blas",
}

GPU_VERSIONS = {
    "v1": "backglass.ops.matmul.ladder.v1_thread",
    "v2": "backglass.ops.matmul.ladder.v2_shared",
    "v3": "backglass.ops.matmul.ladder.v3_registers",
    "v4": "backglass.ops.matmul.ladder.v4_plain",
    "v5": "backglass.ops.matmul.ladder.v5_tma",
    "v6": "backglass.ops.matmul.gpu",
    "cublaslt": "backglass.ops.matmul.ladder.cublaslt",
    "fastest": "backglass.ops.matmul.ladder.fastest",
}
