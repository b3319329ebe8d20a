"""attention on the GPU, from the formulas to the kernels that train, one idea at a time.

    rung           adds                                                   memory, beside the tensors
    v1_thread      the formulas: a thread makes one number                T×T a head, twice backward
    v2_shared      FlashAttention: tiles in shared memory, online softmax T a head, backward
    v3_registers   several scores and sums a thread; shuffles             the same
    ../gpu.py      tensor cores, five products backward instead of seven  T·HS a program, backward

Why each exists:
v1, v1_thread.py. The formulas, kernel by kernel, and every number a reader might want to look at is
    in memory. What it costs: the T×T planes of all heads are written and read again, and every
    multiplication fetches both its factors.
v2, v2_shared.py. The planes exist one tile at a time, and a tile's rows are fetched once for all
    its threads. What is left: shared memory is read more than once for each multiplication.
v3, v3_registers.py. Each number read from shared memory is used for two to four multiplications,
    held in a register meanwhile. What is left: a multiplication for each instruction, of single
    numbers.
v4, ../gpu.py. Triton, where a program is a block and a tile is a value: tensor cores multiply whole
    tiles, loads run ahead, and the backward makes each tile of P and dS once.

v1 to v3 are written in CUDA's thread model (device/cuda_threads.py) and multiply number by number,
in fp32 whatever the tensors are held in; they run without a GPU in numba-cuda's simulator. All four
give the same bits in every run. `bench ops attention --device cuda --rung attention=v2` times one.
"""

GPU_VERSIONS = {
    "v1": "backglass.ops.attention.ladder.v1_thread",
    "v2": "backglass.ops.attention.ladder.v2_shared",
    "v3": "backglass.ops.attention.ladder.v3_registers",
    "v4": "backglass.ops.attention.gpu",
}
