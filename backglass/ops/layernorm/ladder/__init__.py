"""layernorm, from the formulas to the kernel that trains, one idea at a time.

GB/s of the bytes the op must move (forward 8NC, backward with all three `+` 16NC), C = 768, two
cores of an Intel Sapphire Rapids at 2.3 GHz, shared with others, best of 1.5 s, 2026-11-22:

                                            forward           backward
    version                             N=256   N=1024     N=256   N=1024
    v1  a pass for each quantity           35       41         9        6
    v2  a row at a time                    28       46        27       30
    v3  blocks of rows (cpu.py)            49       46        30       43

v1, v1_naive.py. Every formula is a loop nest of its own. Forward it does better than it looks:
    x still fits the L2 and L3 caches here, and the sums vectorise. Backward it goes down the
    columns for dw and db, and uses 4 of each 64 bytes it fetches.
v2, v2_two_pass.py. Three looks at a row while it is in the L1 cache. The column sums are taken
    along the rows, which is five times faster at N=1024 although one thread does them alone.
v3, ../cpu.py. The sums over rows are shared out as well: each block of rows has partial sums of
    its own in the workspace, and a second loop adds the blocks up, sharing out the columns. dy
    and x are read once, for dx, dw and db together. The blocks are a function of N alone (at
    least 16 rows, at most 64 blocks), so the bits are the same for any number of threads; v1 and
    v2 have that property for free, because there one thread does each sum from end to end.

Where v3 stands: at N=1024 it runs at the speed of a triad over as many bytes, so what is left is
not to move them: fusing layernorm with the residual add before it.

On the GPU, the first three in CUDA's thread model (backglass/device/cuda_threads.py), which run
without a GPU in numba-cuda's simulator:

v1, v1_row.py. A thread walks along its row; neighbours read numbers a whole row apart.
v2, v2_block.py. A block for each row: neighbours read neighbours, sums meet in shared memory.
v3, v3_warp.py. A warp for each row: sums by shuffles. dw and db by pieces of the rows.
v4, ../gpu.py. Plain Triton: a few whole rows in registers, read once, fused with the add before.
"""

VERSIONS = {
    "v1": "backglass.ops.layernorm.ladder.v1_naive",
    "v2": "backglass.ops.layernorm.ladder.v2_two_pass",
    "v3": "backglass.ops.layernorm.cpu",
}

GPU_VERSIONS = {
    "v1": "backglass.ops.layernorm.ladder.v1_row",
    "v2": "backglass.ops.layernorm.ladder.v2_block",
    "v3": "backglass.ops.layernorm.ladder.v3_warp",
    "v4": "backglass.ops.layernorm.gpu",
}
