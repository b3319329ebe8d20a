"""health(): one pass of a kernel against NumPy, told apart element by element."""

import ml_dtypes
import numpy as np
import pytest

from backglass.device.health import BINS, SIDE, health
from backglass.device.host import numba

EPS = 2.0**-53  # of a sum in float64, per addition
SHAPES = [(1,), (1, 1), (3, 5), (781,), (31, 33), (64, 1), (7, 3, 65), (2, 3, 5, 7), (1823, 37)]


def odd(shape, seed=0):
    """Numbers of every size, both zeros, subnormals, NaN and both infinities, in float32."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 2.0 ** rng.integers(-30, 30, shape)).astype(np.float32)
    special = np.float32([0, -0.0, 1e-40, -1e-40, np.nan, np.inf, -np.inf, 3.4e38, -3.4e38])
    some = rng.random(shape) < 0.3
    x[some] = rng.choice(special, int(some.sum()))
    return x


def blocks(matrix):
    """((band, column), block) of the picture."""
    rows, columns = matrix.shape
    down, across = min(rows, SIDE), min(columns, SIDE)
    for i in range(down):
        band = matrix[i * rows // down : (i + 1) * rows // down]
        for j in range(across):
            yield (i, j), band[:, j * columns // across : (j + 1) * columns // across]


def expected_histogram(x):
    """By the exponent that frexp finds."""
    bins = np.zeros(BINS, np.int64)
    x = x[np.isfinite(x) & (x != 0)]
    power = np.clip(np.frexp(x)[1] - 1 + 24, 0, BINS // 2 - 1)  # |x| = [0.5, 1)·2^e
    np.add.at(bins, np.where(x > 0, BINS // 2 + power, BINS // 2 - 1 - power), 1)
    return bins


def check(x, seen):
    """health(x) against NumPy on `seen`, the same numbers in float64 as fp32 holds them."""
    h = health(x)
    finite = seen[np.isfinite(seen)]
    assert h.nans == np.isnan(seen).sum() and h.infs == np.isinf(seen).sum()
    assert h.zeros == (seen == 0).sum()
    assert (h.min, h.max) == ((finite.min(), finite.max()) if finite.size else (0, 0))
    n = max(1, finite.size)
    squares = float(np.sum(finite * finite))
    assert abs(h.mean - finite.sum() / n) <= EPS * np.abs(finite).sum()
    assert abs(h.norm - np.sqrt(squares)) <= 2 * n * EPS * np.sqrt(squares)
    assert abs(h.std**2 - (squares / n - (finite.sum() / n) ** 2)) <= 8 * EPS * squares
    matrix = seen.reshape(-1, seen.shape[-1])
    for (i, j), block in blocks(matrix):
        low, high, mean, bad = h.planes[:, i, j]
        good = block[np.isfinite(block)]
        assert bad == block.size - good.size
        assert (low, high) == ((good.min(), good.max()) if good.size else (np.inf, -np.inf))
        with np.errstate(over="ignore"):
            want = np.float32(good.mean() if good.size else 0)
        assert mean == want or abs(mean - want) <= 2.0**-23 * abs(want) + EPS * np.abs(good).sum()
    np.testing.assert_array_equal(h.histogram, expected_histogram(seen))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_health_is_what_numpy_finds(shape):
    x = odd(shape)
    check(x, x.astype(np.float64))


def test_health_of_bf16():
    x = odd((65, 34), 1).astype(ml_dtypes.bfloat16)
    check(x, x.astype(np.float64))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_health_of_other_types_is_that_of_fp32(dtype):
    x = np.random.default_rng(2).integers(-70000, 70000, (40, 41)).astype(dtype)
    check(x, x.astype(np.float64))


def test_fp64_beyond_fp32_is_infinite():
    h = health(np.array([1e300, -1e300, 1.0]))
    assert (h.infs, h.max) == (2, 1)


@pytest.mark.parametrize("value", [0.0, -0.0, 3.5, np.nan, np.inf])
def test_health_of_one_number_everywhere(value):
    check(np.full((33, 34), value, np.float32), np.full((33, 34), value))


def test_health_of_a_scalar():
    assert health(np.array(2.5, np.float32)).mean == 2.5


def test_a_view_that_is_not_contiguous_is_read_in_its_order():
    x = odd((50, 40), 3)[::2, ::3].T
    check(x, x.astype(np.float64))


@pytest.mark.parametrize("value, name", [(np.nan, "nans"), (-np.inf, "infs")])
def test_one_bad_number_in_three_million_lights_one_block(value, name):
    x = np.random.default_rng(4).standard_normal((3000, 1000)).astype(np.float32)
    x[1234, 567] = value
    h = health(x)
    assert getattr(h, name) == 1 and h.nans + h.infs == 1
    lit = np.argwhere(h.planes[3])
    want = next(at for at, block in blocks(x) if not np.isfinite(block).all())
    assert lit.tolist() == [list(want)] and h.planes[3].sum() == 1
    assert h.planes[3].astype(ml_dtypes.bfloat16).any()  # as it is stored


def test_one_spike_in_three_million_is_the_largest_of_its_block():
    x = np.random.default_rng(5).standard_normal((3000, 1000)).astype(np.float32)
    x[2999, 999] = 1e6
    planes = health(x).planes
    assert planes[1, -1, -1] == 1e6 and planes[1].ravel()[:-1].max() < 10


def test_a_large_tensor_has_every_third_row_in_its_histogram():
    x = np.random.default_rng(6).standard_normal((3000, 1000)).astype(np.float32)
    np.testing.assert_array_equal(health(x).histogram, expected_histogram(x[::3]))


def test_health_has_the_same_bits_on_any_number_of_threads():
    x = odd((500, 300), 7)
    found, before = [], numba.get_num_threads()
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            h = health(x)
            found.append((h.mean, h.std, h.norm, h.planes.tobytes(), h.histogram.tobytes()))
    finally:
        numba.set_num_threads(before)
    assert found[0] == found[1]
