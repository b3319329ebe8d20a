"""record, validate, mirror, table: the list is right, and wrong lists are refused at the line that
is wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backglass.layout import Layout
from backglass.models import gpt2
from backglass.program.record import Program, Record
from backglass.program.step import declare, record_micro, record_update
from backglass.program.validate import mirror, unread, validate
from backglass.view import View

C = gpt2.Config(layers=3, heads=3, channels=15, vocab_size=11, max_seq_len=8)


def act(name, *shape, **kwargs):
    return View(name, shape, "fp32", "act", **kwargs)


def test_recording_reports_a_wrong_shape_at_once_with_the_op():
    ops = Record()
    with pytest.raises(ValueError, match="gelu: x has shape"):
        ops.gelu(act("y", 3, 4), act("x", 3, 5))


def test_every_call_keeps_its_source_line():
    program = record_micro(gpt2, C, 2, 5)
    assert program[0].where.startswith("models/gpt2.py:")
    line = int(program[0].where.split(":")[1])
    assert "ops.embed" in Path(gpt2.__file__).read_text().splitlines()[line - 1]


@pytest.mark.parametrize("changes", [{}, {"attention": "explicit"}, {"dropout": 0.1}])
def test_gpt2_is_valid_and_its_backward_mirrors_its_forward(changes):
    program = record_micro(gpt2, replace(C, **changes), 2, 5)
    validate(program)
    mirror(program)
    assert unread(program) == []


def test_repeated_layers_are_printed_once():
    text = record_micro(gpt2, replace(C, layers=12), 2, 5).table()
    assert "for l = 0 .. 10" in text and len(text.splitlines()) < 70
    plain = record_micro(gpt2, replace(C, layers=12), 2, 5).table(fold=False)
    assert len(plain.splitlines()) == len(record_micro(gpt2, replace(C, layers=12), 2, 5))


def test_validate_refuses_a_read_before_the_write():
    program = record_micro(gpt2, C, 2, 5)
    with pytest.raises(ValueError, match=r"line 0, models/gpt2.py:\d+.*\n.*embd is read before"):
        validate(Program(program.calls[1:]))


def test_validate_refuses_a_tensor_as_output_and_input():
    ops = Record()
    x = act("x", 4)
    ops.add(x, View("a", (4,), "fp32", "input"), View("b", (4,), "fp32", "input"))
    ops.gelu(x, x)
    with pytest.raises(ValueError, match="appears twice"):
        validate(ops.program)


def test_validate_refuses_two_tensors_of_one_name():
    ops = Record()
    ops.gelu(act("y", 4), View("a", (4,), "fp32", "input"))
    ops.gelu(act("z", 6), act("y", 6))
    with pytest.raises(ValueError, match="a name is one tensor"):
        validate(ops.program)


def test_plus_is_refused_where_the_spec_does_not_allow_it():
    ops = Record()
    with pytest.raises(ValueError, match="gelu cannot accumulate into y"):
        ops.gelu(+act("y", 4), act("x", 4))


def test_update_reads_and_writes_the_groups():
    program = record_update(gpt2, C)
    adamw = program[-1]
    assert [v.name for v in adamw.written] == ["p", "m", "v", "dp"]
    assert {"p", "m", "v", "dp"} <= {v.name for v in adamw.read}


def test_layout_places_decayed_tensors_first_aligned_and_without_overlap():
    layout = Layout(gpt2.PARAMS, C.sizes(2, 5), "fp32")
    ends = 0
    for slot in layout.slots:
        assert slot.offset * 4 % 256 == 0 and slot.offset >= ends
        ends = slot.offset + slot.size
        assert (slot.offset < layout.decay_size) == slot.param.decay
    assert layout.size >= ends


def test_layout_initial_has_gpt2s_statistics_and_zero_pad_rows():
    c = gpt2.Config(layers=8, heads=4, channels=64, vocab_size=300, max_seq_len=64)
    t = declare(gpt2, c, 1, 8)
    flat = t.layout.initial(0)
    find = {s.name: flat[s.offset : s.offset + s.size].reshape(s.shape) for s in t.layout.slots}
    assert find["wte"][:300].std() == pytest.approx(0.02, rel=0.03)
    assert not find["wte"][300:].any()
    assert find["h3.attprojw"].std() == pytest.approx(0.02 / np.sqrt(16), rel=0.05)
    assert (find["h3.ln1w"] == 1).all() and not find["h3.qkvb"].any()


def test_symbolic_view_has_no_values_and_says_so():
    with pytest.raises(ValueError, match="symbolic"):
        act("x", 3).numpy()


def test_space_names_what_there_is_when_asked_for_something_else():
    with pytest.raises(AttributeError, match="qkvw"):
        _ = declare(gpt2, C, 2, 5).p.h[0].qkv_weight
