"""matmul on the CPU, one idea per rung. Each file has matmul, d_matmul_x and d_matmul_w.

    rung          adds                                                           GFLOP/s
    v1_naive      one output at a time, one core's worth of scalar loops on all   V1_GF
    v2_blocked    loop order and blocks: vectors, and data met while in cache     V2_GF
    v3_packed     packed panels and a small tile of sums kept in registers        V3_GF
    ../cpu.py     the same with vector intrinsics and a tile of 8×48              V4_GF
    blas          np.dot: what OpenBLAS makes of it (`--matmul blas`)             VB_GF

matmul at N = 256, O = 2304, C = 768 on 2 cores of Sapphire Rapids (AVX-512), 2026-11-22, best of 7.
Why each rung exists: v1 is the formula; v2 shows that memory, not arithmetic, was the limit; v3
that registers are the fastest memory of all; cpu.py that LLVM must be told so; blas is the
yardstick.
"""

RUNGS = ("v1_naive", "v2_blocked", "v3_packed", "blas")
