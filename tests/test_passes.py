"""Every pass leaves the numbers as they are: on GPT-2 and on random programs, dead memory poisoned
with NaN.

And the passes' own conditions are needed: each is removed in turn, and the tests must notice.
"""

import importlib
import inspect
import itertools
import random
from types import ModuleType

import numpy as np
import pytest
from random_programs import fill, random_program

from backglass.checks.model import B, T, prepare, small_config
from backglass.device import get
from backglass.execute.compare import compare, first_divergence
from backglass.execute.memory import Memory
from backglass.execute.poison import run_poisoned
from backglass.execute.run import Run
from backglass.models import gpt2
from backglass.program import cost, fuse, plan, recompute
from backglass.program.step import record_micro

NUMPY = get("numpy")


RECOMPUTE = [
    (),
    ("fch_gelu",),
    ("ln1", "ln2", "lnf", "fch_gelu"),
    ("ln1", "qkv", "atty", "attproj", "res2", "ln2", "fch", "fch_gelu"),
]


def gradients_of(program, c, poisoned_plan=None):
    memory, t = prepare(gpt2, c)
    if poisoned_plan is None:
        Run(program, NUMPY, memory)()
    else:
        run_poisoned(poisoned_plan, NUMPY, memory)
    return memory.array(t.dp.flat).copy(), memory.array(t.io.loss).copy()


@pytest.mark.parametrize(
    "fields, fused, inplace", [*itertools.product(RECOMPUTE, (False, True), (False, True))]
)
def test_gpt2_transformed_equals_plain_with_dead_memory_poisoned(fields, fused, inplace):
    c = small_config(gpt2, layers=3)
    plain = record_micro(gpt2, c, B, T, "fp64")
    want, want_loss = gradients_of(plain, c)
    program = recompute.recompute(plain, fields) if fields else plain
    program = program.fuse() if fused else program
    program.validate()
    p = plan.plan(program, inplace=inplace)
    plan.check(p)
    got, loss = gradients_of(program, c, p)
    assert np.linalg.norm(got - want) <= 1e-12 * np.linalg.norm(want)
    assert np.abs(loss - want_loss).max() <= 1e-12


def test_fusing_finds_everything_there_is_to_find():
    c = small_config(gpt2, layers=3)
    ops = [call.op for call in record_micro(gpt2, c, B, T, "fp64").fuse()]
    assert ops.count("linear_xent") == 1 and ops.count("d_layernorm_add") == 6
    assert ops.count("add_layernorm") == 6 and ops.count("d_matmul_x_gelu") == 3
    assert "softmax_xent" not in ops and "d_add" not in ops


def test_fuse_then_recompute_is_right_too():
    c = small_config(gpt2, layers=3)
    plain = record_micro(gpt2, c, B, T, "fp64")
    program = plain.fuse().recompute("fch_gelu").validate()
    want, _ = gradients_of(plain, c)
    got, _ = gradients_of(program, c)
    assert np.linalg.norm(got - want) <= 1e-12 * np.linalg.norm(want)


def test_recomputing_drops_memory_as_much_as_it_says():
    c = gpt2.Config(layers=6, heads=2, channels=64, vocab_size=64, max_seq_len=64)
    program = record_micro(gpt2, c, 4, 64)
    unit = 4 * 64 * 64 * 4  # one (B, T, C) in fp32
    peaks = [
        program.recompute(*fields).fuse().plan().peak / unit / c.layers
        if fields
        else program.fuse().plan().peak / unit / c.layers
        for fields in RECOMPUTE
    ]
    kept = [16, 12, 10, 1]  # (B,T,C) kept per layer: ln1 qkv atty res2 ln2 fch fch_gelu res3, …
    for peak, want in zip(peaks, kept, strict=True):
        assert want < peak < want + 5, peaks


def test_the_planner_reaches_its_lower_bound_on_gpt2():
    c = gpt2.Config(layers=12, heads=2, channels=64, vocab_size=64, max_seq_len=64)
    p = record_micro(gpt2, c, 4, 64).fuse().plan()
    assert p.peak <= 1.02 * p.bound


def test_recompute_of_an_unknown_field_lists_the_known_ones():
    program = record_micro(gpt2, small_config(gpt2), B, T)
    with pytest.raises(ValueError, match="fch_gelu"):
        program.recompute("gelu_output")


def test_compare_finds_the_line_where_two_devices_part():
    class Wrong:
        name = "wrong"

        def bind(self, calls, memory):
            def line(c):
                def run():
                    NUMPY.bind([c], memory)[0]()
                    if str(c).startswith("h1.fch ="):
                        memory.array(c.outs[0])[0, 0, 0] += 1

                return run

            return [line(c) for c in calls]

    c = small_config(gpt2)
    program = record_micro(gpt2, c, B, T, "fp64")
    memory, _ = prepare(gpt2, c)
    assert first_divergence(compare(program, NUMPY, NUMPY, memory), 0) is None
    found = first_divergence(compare(program, NUMPY, Wrong(), memory), 1e-12)
    assert found is not None and found.tensor == "h1.fch"


def test_cost_counts_gpt2s_flops():
    c = gpt2.Config()
    program = record_micro(gpt2, c, 4, 64)
    total = sum((k for k in cost.cost(program, 1e12, 1e11)), cost.Cost())
    weights = 12 * 12 * 768**2 + 50304 * 768
    assert total.flops == pytest.approx(6 * weights * 256, rel=0.05)
    assert next(iter(cost.by_op(program, cost.cost(program, 1e12, 1e11)))).startswith(
        ("matmul", "d_matmul")
    )


# ------------------------------------------------------------------------------ random programs
def problem_with(seed: int, passes: dict[str, ModuleType]) -> str:
    """What goes wrong when a random program is fused and planned; empty if nothing does."""
    rng = random.Random(seed)
    base = random_program(rng, rng.randint(20, 45)).validate()
    memory = Memory()
    fill(memory, base, seed)
    with np.errstate(all="ignore"):
        Run(base, NUMPY, memory)()
    want = {
        v.name: memory.array(v).copy()
        for v in base.views().values()
        if v.kind in ("grad", "output")
    }
    if not all(np.isfinite(w).all() and np.abs(w).max(initial=0) < 1e6 for w in want.values()):
        return ""  # it overflowed by itself; that tests nothing
    try:
        program = passes["fuse"].fuse(base).validate()
        p = passes["plan"].plan(program, inplace=rng.random() < 0.8)
        plan.check(p)
        memory = Memory()
        fill(memory, base, seed)
        with np.errstate(all="ignore"):
            run_poisoned(p, NUMPY, memory)
        for v in base.views().values():
            if v.name in want and np.linalg.norm(memory.array(v) - want[v.name]) > 1e-7 * (
                1 + np.linalg.norm(want[v.name])
            ):
                return f"{v.name} is wrong"
            if v.name in want and not np.isfinite(memory.array(v)).all():
                return f"{v.name} is not finite"
    except Exception as error:
        return repr(error)
    return ""


RIGHT = {"fuse": fuse, "plan": plan}


def test_five_hundred_random_programs_survive_fusing_and_planning():
    problems = {seed: p for seed in range(500) if (p := problem_with(seed, RIGHT))}
    assert not problems


def test_random_programs_do_get_fused():
    fused = sum(
        call.op == "d_layernorm_add"
        for seed in range(60)
        for call in fuse.fuse(random_program(random.Random(seed), 30))
    )
    assert fused > 20


MUTANTS = [
    ("fuse", "return not (_clash(a.written, (*b.read, *b.written)) or _clash(b.written, a.read))", "return True", "all lines commute"),
    ("fuse", " or _read_elsewhere(calls, v.name, at))", ")", "inner tensors may be read elsewhere"),
    ("fuse", "untouched = not any(i < j <= last for j in writers.get(dy.name, ()))", "untouched = True", "the source of a copy may change under its readers"),
    ("fuse", "if any(add and not v.add for add, v in zip(line.adds, outs, strict=True)):", "if False:", "'+' in a pattern matches '='"),
    ("fuse", "outs = tuple(+env[o.name] if first[o.name].add else env[o.name] for o in sig.outs)", "outs = tuple(env[o.name] for o in sig.outs)", "'+' is lost by fusing"),
    ("fuse", "if len(written) < len(first) or written & {v.name for v in ins}:", "if False:", "one name plays two parts"),
    ("plan", "a.end == i and b.start == i and ", "b.start == i and ", "in place over a tensor that is still needed"),
    ("plan", "if first <= end and start <= last:", "if first < end and start < last:", "neighbouring lives may overlap"),
    ("plan", "            p.lives[k].end = i\n", "            pass\n", "reads do not extend lives"),
    ("plan", "if not (v.add or v.name in p.life_of[-1]):", "if v.name not in current:", "a second '=' starts no second life"),
]  # fmt: skip


def mutated(name: str, old: str, new: str) -> ModuleType:
    """A pass with one of its conditions removed."""
    module = importlib.import_module(f"backglass.program.{name}")
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"the mutant's text is not in {name}.py: {old}"
    wrong = ModuleType(module.__name__)
    wrong.__dict__.update({"__name__": module.__name__, "__file__": module.__file__})
    exec(compile(source.replace(old, new), f"<mutated {name}>", "exec"), wrong.__dict__)
    return wrong


@pytest.mark.parametrize("name, old, new, what", MUTANTS, ids=[m[3] for m in MUTANTS])
def test_every_condition_of_a_pass_is_needed(name, old, new, what):
    passes = RIGHT | {name: mutated(name, old, new)}
    assert any(problem_with(seed, passes) for seed in range(2000)), f"nothing noticed: {what}"


def test_recompute_repeats_the_inputs_of_a_repeated_line():
    wrong = mutated("recompute", "                need(line)\n", "")
    c = gpt2.Config(layers=6, heads=2, channels=64, vocab_size=64, max_seq_len=64)
    program = record_micro(gpt2, c, 4, 64)
    fields = RECOMPUTE[-1]
    right_peak = recompute.recompute(program, fields).plan().peak
    assert wrong.recompute(program, fields).plan().peak > 1.5 * right_peak
