"""causal_softmax on the GPU, one idea per rung.  Each file has causal_softmax and d_causal_softmax.

    rung       adds
    v1_row     the formula: a thread walks along its row
    v2_block   a block for each row: neighbours read neighbours, sums in shared memory
    v3_warp    a warp for each row: sums by shuffles, maximum and sum in one walk
    ../gpu.py  plain Triton: a few whole rows in registers, read once

v1 to v3 are CUDA's thread model in Python (backglass/device/cuda_threads.py) and run without a GPU
in numba-cuda's simulator.
"""

GPU_VERSIONS = {
    "v1": "backglass.ops.causal_softmax.ladder.v1_row",
    "v2": "backglass.ops.causal_softmax.ladder.v2_block",
    "v3": "backglass.ops.causal_softmax.ladder.v3_warp",
    "v4": "backglass.ops.causal_softmax.gpu",
}
