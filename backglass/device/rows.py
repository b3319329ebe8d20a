"""What the element-wise kernels share: copies, sums and in-place work on one row or one chunk.

Every helper takes 1-D slices that start at 0. That is not taste: LLVM's vectoriser gives up on
`x[lo + i]`, whose index might be negative for all it knows, and runs the same loop 4 to 7 times
faster on `x[lo:hi]` (AdamW, 124M parameters, 2 cores of a Zen 4: 285 ms against 70 ms,
2026-11-22).

The other trap is `y[i] = f(x[i])` where y and x are the same memory. LLVM checks for overlap
before the loop, finds it, and falls back to one element at a time. So a kernel that may be asked
to work in place always does: `start_from(y, x)` copies the chunk unless it is there already, and
the loop proper reads and writes y only. The copy stays in the L1 cache and is almost free.

And a third: the fast-math flags that let sums vectorise also let LLVM reorder what must not be,
a + (b-c) into (a+b) - c (a loss of 7.7119 for 7.7122 with logits near 10⁴), or σ·(e·σ) into
(σ·σ)·e, which is NaN far out. With them AdamW's p was at least 7 times as wrong as in NumPy's
float32 (tests/test_elementwise.py, 2026-11-22). `@as_written` compiles a helper without them: it
does what it says, in that order, also when it is inlined into a kernel. It cannot
hold a vectorised sum.
"""

from numba import njit
from numpy import float32

from backglass.device.host import inline

# fastmath=False must be said: a helper that says nothing is compiled with its caller's flags.
as_written = njit(nogil=True, cache=True, error_model="numpy", fastmath=False)

__all__ = [
    "CHUNK",
    "accumulate",
    "add_scaled",
    "as_written",
    "dot",
    "same_memory",
    "start_from",
    "write_or_add",
    "zero",
]

CHUNK = 4096  # floats a task takes at a time: 16 KiB, so two operands fit an L1 cache


@inline
def same_memory(a, b):
    """True if the two arrays start at the same address."""
    return a.ctypes.data == b.ctypes.data


@inline
def zero(y):
    """y = 0."""
    for i in range(y.size):
        y[i] = float32(0)


@inline
def accumulate(y, x):
    """y += x."""
    for i in range(y.size):
        y[i] += x[i]


@inline
def add_scaled(y, a, x):
    """y += a·x, a being one number."""
    for i in range(y.size):
        y[i] += a * x[i]


@inline
def dot(x, y):
    """Σ x·y."""
    acc = float32(0)
    for i in range(x.size):
        acc += x[i] * y[i]
    return acc


@inline
def start_from(y, x):
    """y = x, or nothing at all where y is x's memory."""
    if not same_memory(y, x):
        for i in range(y.size):
            y[i] = x[i]


@inline
def write_or_add(y, x, add):
    """y += x if add, else y = x; y's old content is read only in the first case."""
    if add:
        accumulate(y, x)
    else:
        start_from(y, x)
