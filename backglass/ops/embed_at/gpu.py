"""embed_at on the GPU: embed's kernel, with each sequence's own first position.

Reads 2·N·C numbers and writes N·C, N = B·T.
"""

from backglass.ops.embed.gpu import embed_at

__all__ = ["embed_at"]
