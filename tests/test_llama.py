"""LLaMA: whole-model checks, passes, training, resuming, generation, folders, recordings."""

import dataclasses
import itertools

import numpy as np
import pytest

from backglass import device, presets
from backglass.checks.model import B, T, check_model, prepare, small_config
from backglass.debugger.trace import Trace
from backglass.device import get
from backglass.errors import UserError
from backglass.execute.poison import run_poisoned
from backglass.execute.run import Run
from backglass.formats import hf, hf_config
from backglass.infer.generate import Generator
from backglass.infer.sampling import Sampling
from backglass.layout import Layout
from backglass.models import llama
from backglass.program import plan
from backglass.program.step import declare, record_logits, record_micro
from backglass.training.session import Session
from backglass.training.settings import Settings
from backglass.training.start import prepare as start_run

NUMPY = get("numpy")
FULL = llama.VARIANTS[-1]
RECOMPUTE = [(), ("glu",), ("norm1", "norm2", "normf", "glu"), llama.RECOMPUTE[-1].split()]
TINY = dict(
    layers=2, channels=32, heads=4, kv_heads=2, seq_len=32, batch_size=4, steps=6, schedule_steps=6,
    warmup_steps=2, val_every=0, val_batches=1,
)  # fmt: skip


def tiny(**changes) -> Settings:
    return presets.get("llama-tiny").replace(**(TINY | changes))


@pytest.mark.parametrize("changes", llama.VARIANTS, ids=str)
def test_llama_transformed_equals_plain_with_dead_memory_poisoned(changes):
    c = small_config(llama, **changes)
    plain = record_micro(llama, c, B, T, "fp64")
    memory, t = prepare(llama, c)
    Run(plain, NUMPY, memory)()
    want = memory.array(t.dp.flat).copy()
    for fields, fused, inplace in itertools.product(RECOMPUTE, (False, True), (False, True)):
        program = plain.recompute(*fields) if fields else plain
        program = (program.fuse() if fused else program).validate()
        placed = plan.plan(program, inplace=inplace)
        plan.check(placed)
        memory, t = prepare(llama, c)
        run_poisoned(placed, NUMPY, memory)
        got = memory.array(t.dp.flat)
        assert np.linalg.norm(got - want) <= 1e-12 * np.linalg.norm(want), (fields, fused, inplace)


def test_llama_fusing_finds_everything_there_is_to_find():
    program = record_micro(llama, small_config(llama, layers=3, **FULL), B, T, "fp64").fuse()
    ops = [call.op for call in program]
    assert ops.count("add_rmsnorm") == 6 and ops.count("d_rmsnorm_add") == 6
    assert ops.count("linear_xent") == 1 and not {"softmax_xent", "add", "d_add"} & set(ops)


def test_llama_check_fails_where_a_backward_line_is_wrong(monkeypatch):
    right = llama.block_backward

    def wrong(ops, c, p, a, x, dp, da, dx, io):
        right(ops, c, exchanged(p, norm2w=p.norm1w), a, x, dp, da, dx, io)

    monkeypatch.setattr(llama, "block_backward", wrong)
    assert not all(r.ok for r in check_model(llama, "llama"))


def exchanged(space, **changes):
    """A space of tensors with some of them exchanged."""
    other = type(space)()
    vars(other).update(vars(space) | changes)
    return other


@pytest.mark.parametrize(
    "name, count",
    [("llama-15m", 15_191_712), ("llama-110m", 109_529_856), ("llama-1b", 1235814400)],
)
def test_llama_presets_have_the_sizes_of_their_models(name, count):
    c = presets.get(name).model_config(0)
    assert Layout(llama.PARAMS, c.sizes(1, 1), "fp32").count == count


def test_llama_tables_turn_slow_pairs_less_and_fast_ones_as_before():
    plain = llama.Config(head_size=64)
    scaled = dataclasses.replace(plain, rope_scaling="8 1 4 256")
    ratio = llama.frequencies(scaled) / llama.frequencies(plain)
    turns = 256 * llama.frequencies(plain) / (2 * np.pi)
    assert (ratio[turns > 4] == 1).all() and np.allclose(ratio[turns < 1], 1 / 8)
    between = ratio[(turns >= 1) & (turns <= 4)]
    assert len(between) and ((between > 1 / 8) & (between < 1)).all()


def test_llama_constants_are_in_every_memory_without_being_written():
    c, memory = small_config(llama, **FULL), NUMPY.memory()
    t = declare(llama, c, 1, 5, "bf16", memory)
    cos = np.cos(3 * llama.frequencies(c)).astype(np.float32)
    assert np.array_equal(memory.array(t.io.cos)[3], cos)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"kv_heads": 3}, "4 heads cannot be shared by 3"),
        ({"head_size": 5}, "odd"),
        ({"rope_scaling": "8 4 1 64"}, "four positive numbers"),
        ({"window": -1}, "window"),
        ({"dropout": 0.1}, "--dropout 0.1: llama-tiny is a llama"),
        ({"attention": "explicit"}, "--attention explicit: llama-tiny is a llama"),
    ],
)
def test_llama_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises((UserError, ValueError), match=message):
        tiny(**wrong).model_config(256)


def test_llama_settings_are_refused_by_gpt2():
    with pytest.raises(UserError, match="--kv-heads 2: tiny is a gpt2"):
        presets.get("tiny").replace(kv_heads=2)


def test_llama_run_learns_and_a_resumed_one_has_the_same_bits(tmp_path):
    import backglass as bg

    whole = bg.train(tiny(save_every=3), tmp_path / "whole", quiet=True)
    bg.train(tiny(steps=3), tmp_path / "part", quiet=True)
    from backglass.training.loop import train

    resumed = train(tiny(), tmp_path / "part", resume=True, quiet=True)
    assert whole.state.best_val_loss < 5.4  # it begins at ln 256 = 5.55
    for name, flat in whole.session.state().items():
        assert flat.tobytes() == resumed.session.state()[name].tobytes()


@pytest.mark.parametrize("dev", ["numpy", "cpu"])
@pytest.mark.parametrize("changes", [{}, {"window": 5}, {"qk_norm": True, "kv_heads": 1}], ids=str)
def test_llama_cached_generation_says_what_the_whole_sequence_says(dev, changes):
    c = tiny(**changes).model_config(256)
    layout = Layout(llama.PARAMS, c.sizes(1, 1), "fp32")
    rng = np.random.default_rng(0)
    flat = (layout.initial(0) + 0.2 * rng.standard_normal(layout.size)).astype(np.float32)
    on = device.get(dev)
    g = Generator(c, flat, on, B=3)
    prompts = [rng.integers(0, 256, n) for n in (1, 7, 20)]
    made = list(g.stream(prompts, 10, Sampling(temperature=0)))
    for b, prompt in enumerate(prompts):
        tokens = [*prompt, *(step[b] for step in made)]
        logits = whole_logits(c, layout, flat, on, tokens)
        assert tokens[len(prompt) :] == list(logits[len(prompt) - 1 : -1].argmax(-1))


def whole_logits(c, layout, flat, on, tokens) -> np.ndarray:
    memory, T = on.memory(), len(tokens)
    t = declare(llama, c, 1, T)
    memory.adopt(t.p.flat, flat)
    program = record_logits(llama, c, 1, T)
    run = Run(program, on, memory)
    memory.write(t.io.ids, np.array(tokens)[None])
    run()
    return memory.read(t.a.logits)[0, :, :256]


def session(**changes) -> Session:
    s = tiny(device="numpy", **changes)
    found = Session(s.model_config(256), s, NUMPY)
    found.init()
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"qkv_bias": True, "tied": False}, {"window": 9, "rope_scaling": "8 1 4 24"},
     {"qk_norm": True, "norm_eps": 1e-6}],
    ids=str,
)  # fmt: skip
def test_llama_folder_comes_back_byte_for_byte(tmp_path, changes):
    from safetensors.numpy import save_file

    one = session(**changes)
    p, layout = one.flats["p"], one.t.layout
    for slot in layout.slots:
        w = p[slot.offset : slot.offset + slot.size].reshape(slot.shape)[: layout.rows(slot)]
        w[...] = np.random.default_rng(slot.offset).standard_normal(w.shape)
    save_file(hf.tensors_out(layout, p), tmp_path / "model.safetensors")
    assert hf.tensors_in(layout, tmp_path).tobytes() == p.tobytes()
    assert hf_config.read(hf_config.write(one.c, 0), tmp_path) == one.c


def test_llama_is_converted_to_bf16_and_not_to_llmcs_format(tmp_path, capsys):
    import backglass as bg
    from backglass.cli import main

    bg.train(tiny(steps=1, device="numpy"), tmp_path / "run", quiet=True)
    run, folder = str(tmp_path / "run"), tmp_path / "bf16"
    assert main(["convert", run, str(folder), "--to", "hf", "--dtype", "bf16"]) == 0
    c = hf.read_config(folder)
    layout = Layout(llama.PARAMS, c.sizes(1, 1), "fp32")
    whole = bg.load(run, device="numpy").parameters
    half = hf.tensors_in(layout, folder)
    assert 0 < np.linalg.norm(half - whole) < 2.0**-8 * np.linalg.norm(whole)
    assert main(["convert", run, str(tmp_path / "a.bin"), "--to", "llmc"]) == 2
    assert "hold GPT-2 only" in capsys.readouterr().err


def test_llama_folder_that_lacks_a_part_of_a_packed_tensor_is_refused(tmp_path):
    from safetensors.numpy import save_file

    one = session()
    tensors = hf.tensors_out(one.t.layout, one.flats["p"])
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 tensors, among them layers\.1\.mlp\.up_proj"):
        hf.tensors_in(one.t.layout, tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_type is 'yarn'"),
        ({"num_key_value_heads": 3}, "cannot be shared"),
        ({"hidden_size": None}, "damaged"),
        ({"model_type": "gemma"}, "only gpt2, llama"),
    ],
)
def test_llama_config_that_we_cannot_run_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        hf_config.read(hf_config.write(session().c, 0) | change, tmp_path)


def test_llama_does_not_start_from_another_model(tmp_path):
    import backglass as bg

    gpt2 = presets.get("tiny").replace(**{k: v for k, v in TINY.items() if k != "kv_heads"})
    bg.train(gpt2.replace(steps=1, device="numpy"), tmp_path / "g", quiet=True)
    with pytest.raises(UserError, match="is a GPT-2, this run trains a LLaMA"):
        start_run(tiny(device="numpy", init=str(tmp_path / "g")), None)
    bg.train(tiny(steps=1, device="numpy"), tmp_path / "l", quiet=True)
    with pytest.raises(UserError, match="give --kv-heads 2"):
        start_run(tiny(device="numpy", init=str(tmp_path / "l"), kv_heads=4), None)


def test_llama_step_is_recorded_with_the_model_and_every_tensor(tmp_path):
    from backglass.debugger.reading import Reading
    from backglass.debugger.record import Wanted, record_step

    start = start_run(tiny(steps=1, device="numpy"), None)
    batches = [start.loader.batch(4)]
    want = start.session.gradients(batches, 0)
    start.session.memory.write(start.session.t.dp.flat, 0)
    folder = tmp_path / "trace" / "step-00000001"
    done = record_step(start.session, batches, 0, folder, Wanted(3), start.tokenizer, {})
    assert done.loss == pytest.approx(want, abs=1e-6)
    trace = Trace(folder)
    assert (folder / "src" / "models" / "llama.py").exists() and trace.config == start.c
    reading = Reading(folder)
    outs = [o for k in range(reading.count()) for o in reading.operands(k, "out")]
    dims = {o["version"]["tensor"]: o["dims"] for o in outs}
    assert dims["h1.gateup"] == ["B", "T", "2", "F"] and dims["h0.dqkv"] == ["B", "T", "H", "HS"]
