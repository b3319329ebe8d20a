"""mix on the GPU: products of tiles, those of scores/gpu.py in the other direction.

mix reads B·NH·T² weights; d_mix reads as many and writes as many.  The rest is small.
"""

from backglass.ops.scores.gpu import rows_by_rows, weighted_rows, zero_rows


def mix(y, att, qkv, add):
    """y (B, T, NH, HS) = att (B, NH, T, T)·v; qkv (B, T, 3, NH, HS)."""
    NH = att.shape[1]
    weighted_rows((y, 0), att, (qkv, 2 * NH))


def d_mix(datt, dqkv, dy, att, qkv, add):
    """datt (B, NH, T, T) and dqkv (B, T, 3, NH, HS) (+)= the gradient of v, from dy."""
    NH = att.shape[1]
    rows_by_rows(datt, (dy, 0), (qkv, 2 * NH))  # derivation step 4
    weighted_rows((dqkv, 2 * NH), att, (dy, 0), transposed=True, add=add[1])  # 8
    if not add[1]:
        zero_rows(dqkv, 0, 2 * NH)  # 10
