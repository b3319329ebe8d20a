"""The checks pass on what is right and fail on what is wrong, for every op, model and kind of
planted bug."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from backglass import checks, models
from backglass.checks.kernel import check_kernel
from backglass.checks.model import check_model
from backglass.checks.op import check_op
from backglass.checks.update import check_update
from backglass.device import get
from backglass.ops import table


@pytest.mark.parametrize("name", table())
def test_backward_is_the_derivative_of_the_forward(name):
    op = table()[name]
    results = check_op(op) + check_update(op)
    assert results and all(r.ok for r in results), [r for r in results if not r.ok]


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("name", table())
def test_kernel_computes_what_the_maths_says(name, device):
    results = check_kernel(table()[name], get(device))
    assert results and all(r.ok for r in results), [r for r in results if not r.ok]


KERNELS = """
from backglass.checks.kernel import check_kernel
from backglass.device import get, vector_ir
from backglass.ops import table
print("lanes", vector_ir.LANES)
for op in table().values():
    for r in check_kernel(op, get("cpu")):
        print("ok" if r.ok else "bad", r)
"""


@pytest.mark.slow
@pytest.mark.parametrize("lanes", ["4", "8", "16"])
def test_kernels_compute_what_the_maths_says_with_vectors_of_another_width(lanes):
    environment = os.environ | {"BACKGLASS_LANES": lanes}
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    first, *results = done.stdout.splitlines()
    assert first == f"lanes {lanes}" and len(results) > 300
    assert not [r for r in results if not r.startswith("ok")]


@pytest.mark.parametrize("name", models.NAMES)
def test_whole_model_is_right(name):
    results = check_model(models.get(name), name)
    assert len(results) > 30 and all(r.ok for r in results), [r for r in results if not r.ok]


@pytest.mark.parametrize("name", [*table(), *models.NAMES])
def test_every_planted_bug_is_caught_or_listed_as_no_bug(name):
    bugs = checks.planted([name])
    outcomes = Counter(b.outcome for b in bugs)
    assert outcomes["caught"] >= 5
    unexplained = [b for b in bugs if b.outcome == "missed"]
    unexplained += [b for b in bugs if b.outcome == "equivalent" and not b.reason]
    assert not unexplained


def test_check_of_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="layernorm"):
        list(checks.check(["layernrom"], "numpy"))
