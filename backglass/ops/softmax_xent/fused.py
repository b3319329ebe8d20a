"""Fused forms of softmax_xent: what each is equal to, line by line.  Kernel: cpu.py."""

from backglass.spec import OpSpec

FUSED = {
    # The head: the logits exist one chunk of rows at a time, so N·V numbers never do.
    "linear_xent": OpSpec(
        forward="x[N,C] w[V,C] targets[N] dloss[N] -> loss[N] dx[N,C]+ dw[V,C]+",
        equals="""
            logits = matmul(x, w)
            loss, lse = softmax_xent(logits, targets)
            dlogits = d_softmax_xent(dloss, logits, lse, targets)
            dw = d_matmul_w(dlogits, x)
            dx = d_matmul_x(dlogits, w)
        """,
        attrs="vocab_size=0",
        integers="targets:-1:vocab_size",
        wide="loss dloss",
        flops={"linear_xent": "6*N*C*V"},
        cases=(dict(N=1, C=3, V=5, vocab_size=5), dict(N=70, C=33, V=256, vocab_size=251)),
    ),
    # The same without gradients, for validation.
    "linear_xent_loss": OpSpec(
        forward="x[N,C] w[V,C] targets[N] -> loss[N]",
        equals="""
            logits = matmul(x, w)
            loss, lse = softmax_xent(logits, targets)
        """,
        attrs="vocab_size=0",
        integers="targets:-1:vocab_size",
        wide="loss",
        flops={"linear_xent_loss": "2*N*C*V"},
        cases=(dict(N=1, C=3, V=5, vocab_size=5), dict(N=70, C=33, V=256, vocab_size=251)),
    ),
}
