GPU_VERSIONS = {
    "v1": "backglass.ops.attention.ladder.v1_thread",
    "v2": "backglass.ops.attention.ladder.v2_shared",
    "v3": "backglass.ops.attention.ladder.v3_registers",
    "v4": "backglass.ops.attention.gpu",
}
