"""spec: the notation, shape errors that name op, operand and dims, and the split of operands."""

import pytest

from backglass.checks.op import check_op
from backglass.ops import load_op, signature, table
from backglass.program.fuse import fused_ops
from backglass.program.record import make_call
from backglass.spec import OpSpec
from backglass.view import View


def test_bind_absorbs_leading_axes_into_the_first_dim():
    sizes = signature("layernorm").bind(((8, 5, 768), (8, 5), (8, 5), (8, 5, 768), (768,), (768,)))
    assert sizes == {"N": 40, "C": 768}


def test_bind_finds_packed_dims_through_the_weight():
    shapes = ((2, 37, 3, 3, 16), (2, 37, 48), (144, 48), (144,))
    assert signature("matmul").bind(shapes) == {"N": 74, "C": 48, "O": 144}


def test_bind_names_op_operand_and_dims_when_shapes_do_not_fit():
    with pytest.raises(ValueError, match=r"layernorm: .* has shape .* expected \(C\) = ") as caught:
        signature("layernorm").bind(
            ((8, 1024, 768), (8, 1024), (8, 1024), (8, 1024, 768), (768,), (512,))
        )
    assert "b has shape (512,)" in str(caught.value) and "(768,)" in str(caught.value)


def test_split_fills_an_absent_optional_operand_with_none():
    assert signature("matmul").split(("y", "x", "w")) == (("y",), ("x", "w", None))
    assert signature("d_matmul_w").split(("dw", "dy", "x")) == (("dw", None), ("dy", "x"))


def test_split_rejects_a_missing_operand():
    with pytest.raises(ValueError, match="layernorm takes"):
        signature("layernorm").split(("y", "mean", "rstd", "x", "w"))


def test_outputs_named_like_inputs_are_updated_in_place_and_passed_once():
    sig = signature("adamw")
    assert sig.updated == ("p", "m", "v", "dp", "master")
    assert [o.name for o in sig.passed] == ["p", "m", "v", "dp", "master", "scale", "hyper"]


def test_make_call_refuses_a_bf16_statistic():
    def view(name, dtype, *shape):
        return View(name, shape, dtype, "act")

    x, y = view("x", "bf16", 4, 8), view("y", "bf16", 4, 8)
    w, b = view("w", "bf16", 8), view("b", "bf16", 8)
    mean = view("mean", "fp32", 4)
    make_call(signature("layernorm"), (y, mean, view("rstd", "fp32", 4), x, w, b), {}, "")
    with pytest.raises(ValueError, match=r"rstd \(rstd\) is bf16, expected fp32"):
        make_call(signature("layernorm"), (y, mean, view("rstd", "bf16", 4), x, w, b), {}, "")


def test_make_call_refuses_two_working_dtypes():
    views = (View(n, (8,), d, "act") for n, d in (("y", "fp32"), ("x", "bf16")))
    with pytest.raises(ValueError, match=r"x \(x\) is bf16, expected fp32"):
        make_call(signature("gelu"), tuple(views), {}, "")


def test_backward_dims_default_to_the_forwards():
    spec = OpSpec(forward="x[N,C] -> y[N,C]", backward={"d_f": "dy x -> dx+"})
    d_f = spec.signatures("f")["d_f"]
    assert [o.dims for o in d_f.passed] == [("N", "C")] * 3
    assert d_f.outs[0].add


def test_unreadable_operand_is_an_error():
    with pytest.raises(ValueError, match="cannot read the operand"):
        OpSpec(forward="x[N,C y -> z").signatures("f")


def test_a_users_op_joins_the_table_with_its_fused_forms_and_is_checked(tmp_path):
    folder = tmp_path / "triple"
    folder.mkdir()
    head = "from backglass.spec import OpSpec\n"
    (folder / "maths.py").write_text(
        head + 'SPEC = OpSpec("x[N] -> y[N]", {"d_triple": "dy x -> dx"}, cases=(dict(N=5),))\n'
        "def triple(x):\n    return (3 * x,)\n\ndef d_triple(dy, x):\n    return (3 * dy,)\n"
    )
    (folder / "fused.py").write_text(
        head + 'FUSED = {"nine": OpSpec("x[N] -> z[N]", equals="y = triple(x)\\nz = triple(y)")}\n'
    )
    op = load_op(folder)
    try:
        assert signature("nine").op == "triple" and "nine" in fused_ops()
        assert [r.ok for r in check_op(op)] == [True]
    finally:
        del table()["triple"]
        signature.cache_clear()


def test_unknown_call_names_the_known_ones():
    with pytest.raises(AttributeError, match="layernorm"):
        signature("layernrom")


@pytest.mark.parametrize("name", table())
def test_every_op_is_documented_and_every_backward_line_numbered(name):
    doc = table()[name].maths.__doc__ or ""
    assert "Source:" in doc
    if table()[name].spec.backward:
        assert "Derivation" in doc and "Saved:" in doc
        steps = [line for line in doc.splitlines() if line[:7].strip().isdigit()]
        assert len(steps) >= 10
