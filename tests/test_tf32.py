"""The kernel check's bound in TF32, on devices that do to products what tensor cores do."""

import numpy as np
import pytest

from backglass.checks.kernel import check_kernel
from backglass.checks.tf32 import Tf32, cut
from backglass.device.reference import Reference, evaluate, operands, store
from backglass.ops import table
from backglass.program.fuse import fused_ops

PRODUCTS = ("matmul", "scores", "mix", "attention", "attention_cached", "softmax_xent")


class Rounded(Tf32):
    """Products read their operands rounded to the nearest number of 10 bits, ties away from 0."""

    reads = staticmethod(lambda x: cut((x.view(np.uint32) + np.uint32(0x1000)).view(np.float32)))


class TensorCores(Reference):
    """The maths in TF32.  harm: what then becomes of an output, (operand, its values)."""

    dtypes = ("tf32",)

    def __init__(self, arrays=Tf32, harm=lambda o, x: None):
        self.arrays, self.harm = arrays, harm
        super().__init__()

    def fusable(self):
        return fused_ops()

    def _line(self, c, memory):
        outs, ins, sizes = operands(c, memory)
        given = dict(zip((o.name for o in c.signature.passed), (*outs, *ins), strict=True))

        def line():
            inputs = [
                x.view(self.arrays) if x is not None and x.dtype == np.float32 else x
                for x in (given[o.name] for o in c.signature.ins)
            ]
            made = evaluate(c.signature, inputs, c.attrs, sizes)
            for o, x in zip(c.signature.outs, made, strict=True):
                self.harm(o, x)
            store(outs, c.add, made)

        return line


def failed(op, device):
    return {r.what for r in check_kernel(table()[op], device, "tf32") if not r.ok}


@pytest.mark.parametrize("arrays", [Tf32, Rounded], ids=["cut", "rounded"])
@pytest.mark.parametrize("op", PRODUCTS)
def test_tf32_bound_admits_products_of_short_operands(op, arrays):
    assert failed(op, TensorCores(arrays)) == set()


@pytest.mark.parametrize(
    "op, outputs",
    [
        ("attention", {"attention.y", "attention.lse", "d_attention.dqkv"}),
        ("softmax_xent", {"linear_xent.loss", "linear_xent.dx", "linear_xent_loss.loss"}),
        ("scores", {"scores.preatt", "d_scores.dqkv"}),
        ("matmul", {"matmul.y", "d_matmul_w.dw", "d_matmul_x.dx"}),
    ],
)
def test_tf32_bound_catches_a_result_that_is_off_by_a_percent(op, outputs):
    def scale(o, x):
        np.asarray(x)[...] *= np.float32(1.01)

    assert failed(op, TensorCores(harm=scale)) >= outputs


@pytest.mark.parametrize("op", ["layernorm", "gelu", "add", "causal_softmax", "adamw"])
def test_tf32_bound_of_what_hangs_on_no_product_is_that_of_fp32(op):
    def shorten(o, x):
        if x.dtype == np.float32 and x.size:
            np.copyto(x, cut(np.ascontiguousarray(x)))

    every = {r.what for r in check_kernel(table()[op], TensorCores(), "tf32")}
    assert failed(op, TensorCores()) == set()
    caught = failed(op, TensorCores(harm=shorten))
    assert caught and caught <= every


def test_tf32_bound_catches_statistics_that_are_short():
    def shorten(o, x):
        if o.saved:
            np.copyto(x, cut(np.ascontiguousarray(x)))

    assert failed("layernorm", TensorCores(harm=shorten)) >= {"layernorm.mean", "layernorm.rstd"}


def test_tf32_arrays_are_cut_in_products_of_matrices_only():
    a, b = (np.array([[v]], np.float32).view(Tf32) for v in (0.5 * (1 + 2**-11), 1.0))
    assert (a @ b).item() == 0.5 and (a * b).item() == 0.5 * (1 + 2**-11)


def test_tf32_arrays_cut_what_is_computed_from_them_too():
    x = np.full((2, 2), 1 + 2**-12, np.float32).view(Tf32)
    for derived in (x.T, np.where([True, False], x, 0), x + 0, x[:1]):
        assert (np.asarray(derived @ x)[0, 0] * 8) % 1 == 0, derived
