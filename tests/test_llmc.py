"""llm.c's files: exact sizes, round trips to the byte, damage; the debug state check."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tyro

import train_gpt2 as one
from backglass.checks.against import check_against
from backglass.commands.convert import Convert
from backglass.commands.data import Data
from backglass.data import sources, tokenizer
from backglass.errors import UserError
from backglass.formats import hf, llmc
from backglass.layout import Layout
from backglass.models import gpt2
from backglass.training import checkpoint
from backglass.view import DTYPES

C = gpt2.Config(layers=2, heads=3, channels=15, vocab_size=131, max_seq_len=9)
B, T = 2, 7


def as_one(c: gpt2.Config) -> SimpleNamespace:
    """The config as train_gpt2.py has it."""
    names = ("layers", "heads", "channels", "vocab_size", "max_seq_len")
    return SimpleNamespace(**{name: getattr(c, name) for name in names})


def random_parameters(c: gpt2.Config, seed: int = 0) -> SimpleNamespace:
    """Of train_gpt2.py, fp32, biases and layernorms away from 0 and 1."""
    rng = np.random.default_rng(seed)
    p = one.init(as_one(c), rng)
    for w in vars(p).values():
        w += 0.3 * rng.standard_normal(w.shape).astype(np.float32)
    return p


@pytest.fixture
def model_bin(tmp_path):
    """A model file written by train_gpt2.py."""
    one.save(tmp_path / "m.bin", as_one(C), random_parameters(C))
    return tmp_path / "m.bin"


def convert(src, dst, to: str, dtype: str = "fp32", **options) -> Path:
    assert Convert(str(src), str(dst), to, dtype, **options).run() == 0
    return dst


# ----------------------------------------------------------------------------------- model files
def test_sizes_of_gpt2_124m_are_llm_cs():
    c = gpt2.Config()
    assert llmc.model_bytes(c, "fp32") == 497_904_640
    assert llmc.model_bytes(c, "bf16") == 248_952_832
    assert llmc.debug_state_bytes(c, 4, 64) == 549_369_860


def test_a_model_of_train_gpt2_is_read_tensor_by_tensor(model_bin):
    c, layout, flat = llmc.read_model(model_bin)
    assert c == C and flat.dtype == np.float32
    theirs = one.load(model_bin)[1]
    for s in layout.slots:
        want = getattr(theirs, s.param.name)
        want = want if s.layer is None else want[s.layer]
        found = llmc.tensor_of(flat, s)
        np.testing.assert_array_equal(found[: len(want)], want)
        assert not found[len(want) :].any()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_reading_and_writing_gives_the_same_bytes(tmp_path, model_bin, dtype):
    first = convert(model_bin, tmp_path / "first.bin", "llmc", dtype)
    again = convert(first, tmp_path / "again.bin", "llmc", dtype)
    assert first.read_bytes() == again.read_bytes()
    assert first.stat().st_size == llmc.model_bytes(C, dtype)
    if dtype == "fp32":
        assert first.read_bytes() == model_bin.read_bytes()


def test_bf16_is_the_nearest_upper_half_ties_to_even(tmp_path):
    c = gpt2.Config(layers=1, heads=1, channels=2, vocab_size=3, max_seq_len=2)
    layout = Layout(gpt2.PARAMS, c.sizes(1, 1), "fp32")
    flat = np.zeros(layout.size, np.float32)
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F80FFFF, 0xC0490FDB, 0x00000001])
    slot = next(s for s in layout.slots if s.name == "wte")
    llmc.tensor_of(flat, slot)[:3] = bits.astype(np.uint32).view(np.float32).reshape(3, 2)
    llmc.write_model(tmp_path / "m.bin", c, layout, flat, "bf16")
    raw = np.fromfile(tmp_path / "m.bin", np.uint16, offset=1024)
    assert [hex(i) for i in raw[:6]] == ["0x3f80", "0x3f82", "0x3f81", "0x3f81", "0xc049", "0x0"]


def test_train_gpt2_reads_both_versions(tmp_path, model_bin):
    want = one.load(model_bin)[1]
    for dtype in ("fp32", "bf16"):
        path = convert(model_bin, tmp_path / f"{dtype}.bin", "llmc", dtype)
        for name, w in vars(one.load(path)[1]).items():
            rounded = getattr(want, name).astype(DTYPES[dtype]).astype(np.float32)
            np.testing.assert_array_equal(w, rounded)


def test_pad_rows_are_written_as_zeros_whatever_the_buffer_holds(tmp_path, model_bin):
    c, layout, flat = llmc.read_model(model_bin)
    slot = next(s for s in layout.slots if s.name == "wte")
    llmc.tensor_of(flat, slot)[c.vocab_size :] = 7
    llmc.write_model(tmp_path / "again.bin", c, layout, flat)
    assert (tmp_path / "again.bin").read_bytes() == model_bin.read_bytes()


def test_another_padding_than_ours_is_read(tmp_path, model_bin):
    whole = model_bin.read_bytes()
    h = np.frombuffer(whole[:1024], np.int32).copy()
    rows, h[7] = h[7], C.vocab_size + 1
    keep = 1024 + 4 * C.channels * int(h[7])
    path = tmp_path / "other.bin"
    path.write_bytes(h.tobytes() + whole[1024:keep] + whole[1024 + 4 * C.channels * int(rows) :])
    np.testing.assert_array_equal(llmc.read_model(path)[2], llmc.read_model(model_bin)[2])


def edited(path: Path, index: int, value: int) -> None:
    h = np.fromfile(path, np.int32)
    h[index] = value
    h.tofile(path)


@pytest.mark.parametrize(
    "index, value, words",
    [
        (0, 20240520, "it is a token shard"),
        (0, 12345, "starts with 12345"),
        (1, 2, "version 2"),
        (2, 0, "max_seq_len must be at least 1"),
        (3, -5, "vocab_size must be at least 1"),
        (4, 3, "3 layers"),
        (5, 4, "cannot be divided"),
        (6, 2**31 - 1, "cannot be divided"),
        (7, 130, "130 rows of wte"),
        (7, 384, "bytes"),
    ],
)
def test_an_impossible_header_is_refused(model_bin, index, value, words):
    edited(model_bin, index, value)
    with pytest.raises(UserError, match=words):
        llmc.read_model(model_bin)


@pytest.mark.parametrize("size", [0, 3, 1000, 1024, 5000, -1])
def test_a_cut_file_is_refused(model_bin, size):
    model_bin.write_bytes(model_bin.read_bytes()[:size])
    with pytest.raises(UserError, match="bytes|starts with"):
        llmc.read_model(model_bin)


def test_a_longer_file_is_refused(model_bin):
    model_bin.write_bytes(model_bin.read_bytes() + b"x")
    with pytest.raises(UserError, match="damaged"):
        llmc.read_header(model_bin)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            llmc.read_header(path)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), llmc.new_file(tmp_path / "m.bin") as f:
        f.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- Hugging Face and back
def test_llmc_to_hf_to_llmc_gives_the_same_bytes(tmp_path, model_bin):
    folder = convert(model_bin, tmp_path / "hf", "hf")
    again = convert(folder, tmp_path / "again.bin", "llmc")
    assert again.read_bytes() == model_bin.read_bytes()


@pytest.mark.parametrize("on_the_way", ["fp32", "bf16"])
def test_bf16_survives_a_folder_of_either_dtype(tmp_path, model_bin, on_the_way):
    first = convert(model_bin, tmp_path / "first.bin", "llmc", "bf16")
    folder = convert(first, tmp_path / "hf", "hf", on_the_way)
    again = convert(folder, tmp_path / "again.bin", "llmc", "bf16")
    assert again.read_bytes() == first.read_bytes()


def test_a_checkpoint_survives_llmc(tmp_path):
    folder = checkpoint.step_folder(tmp_path / "run", 3)
    tok = tokenizer.build("bpe:300", ["the cat sat on the mat. "])
    tok_path = tmp_path / "tokenizer.json"
    tok_path.write_text(tok.to_json(), encoding="utf-8")
    c = gpt2.Config(layers=2, heads=3, channels=15, vocab_size=300, max_seq_len=9)
    layout = Layout(gpt2.PARAMS, c.sizes(1, 1), "fp32")
    flats = dict.fromkeys("pmv", layout.initial(1))
    checkpoint.save(folder, c, layout, flats, tok, checkpoint.State(), checkpoint.Settings())
    path = convert(tmp_path / "run", tmp_path / "m.bin", "llmc")
    back = convert(path, tmp_path / "back", "hf", tokenizer=str(tok_path))
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json", "config.json"):
        assert (back / name).read_bytes() == (folder / name).read_bytes(), name


def test_convert_keeps_the_tokenizer_of_a_folder_and_says_when_there_is_none(
    tmp_path, model_bin, capsys
):
    folder = convert(model_bin, tmp_path / "hf", "hf", json=True)
    assert json.loads(capsys.readouterr().out)["dtype"] == "fp32"
    convert(folder, tmp_path / "hf2", "hf", "bf16")
    assert "no tokenizer.json" in capsys.readouterr().out
    assert hf.read_config(tmp_path / "hf2") == C
    assert json.loads((tmp_path / "hf2/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_convert_refuses_what_cannot_work(tmp_path, model_bin):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "x").write_text("x")
    for args, words in [
        ((model_bin, taken, "hf"), "already exists"),
        ((model_bin, model_bin, "llmc"), "already exists"),
        ((tmp_path / "none", tmp_path / "x.bin", "llmc"), "there is no"),
        ((taken, tmp_path / "x.bin", "llmc"), "holds no model"),
        ((model_bin, tmp_path / "y", "hf", "fp32", "bytes"), "256 tokens"),
        ((model_bin, tmp_path / "y", "hf", "fp32", "bpe:300"), "bpe:N"),
        ((model_bin, tmp_path / "y.bin", "llmc", "fp32", "bytes"), "--to hf"),
    ]:
        with pytest.raises(UserError, match=words):
            Convert(*map(str, args)).run()
    assert not (tmp_path / "y").exists()


# ------------------------------------------------------------------------------------ debug states
def debug_state(c: gpt2.Config, p: SimpleNamespace, seed: int = 1) -> llmc.DebugState:
    """One batch through train_gpt2.py in float64, from fp32 weights."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, c.vocab_size, (2, B, T))
    wide = one.zeros(as_one(c), np.float64)
    for name, w in vars(p).items():
        getattr(wide, name)[...] = w
    grads = one.zeros(as_one(c), np.float64)
    loss = one.loss_and_grads(as_one(c), wide, grads, x, y)
    logits = one.forward(as_one(c), wide, x)[0].reshape(B, T, -1)
    return llmc.DebugState(x, y, logits, loss, vars(grads))


@pytest.fixture
def state_bin(tmp_path, model_bin):
    path = tmp_path / "m_debug_state.bin"
    llmc.write_debug_state(path, C, debug_state(C, random_parameters(C)))
    return path


def test_debug_state_survives_a_round_trip(tmp_path, model_bin, state_bin):
    assert state_bin.stat().st_size == llmc.debug_state_bytes(C, B, T)
    state = llmc.read_debug_state(state_bin, llmc.read_header(model_bin))
    want = debug_state(C, random_parameters(C))
    np.testing.assert_array_equal(state.x, want.x)
    np.testing.assert_array_equal(state.logits, want.logits.astype(np.float32))
    np.testing.assert_array_equal(state.grads["qkvw"], want.grads["qkvw"].astype(np.float32))
    assert state.grads["wte"].shape == (256, 15) and not state.grads["wte"][131:].any()
    llmc.write_debug_state(tmp_path / "again.bin", C, state)
    assert (tmp_path / "again.bin").read_bytes() == state_bin.read_bytes()


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_check_against_is_green_on_the_oracles_numbers(state_bin, device):
    results = check_against(state_bin, device=device)
    assert [r.what for r in results] == ["logits", "loss", *(f"d{p.name}" for p in gpt2.PARAMS)]
    assert all(r.ok for r in results), [(r.what, r.error, r.bound) for r in results if not r.ok]
    assert all(0 < r.bound < 1e-4 for r in results)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_check_against_is_green_on_pytorchs_numbers_in_fp32(tmp_path, model_bin):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = convert(model_bin, tmp_path / "hf", "hf")
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    x, y = np.random.default_rng(1).integers(0, C.vocab_size, (2, B, T))
    logits = model(torch.tensor(x)).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(B * T, -1), torch.tensor(y).reshape(-1))
    loss.backward()
    found = {k: w.grad.numpy() for k, w in model.named_parameters()}
    grads = {name: [] for name in llmc.tensor_shapes(C)}
    for s in Layout(gpt2.PARAMS, C.sizes(1, 1), "fp32").slots:
        ((name, transposed),) = hf.names(s.param, s.layer)
        grads[s.param.name].append(found[name].T if transposed else found[name])
    grads = {k: np.stack(g) if len(g) > 1 else g[0] for k, g in grads.items()}
    state = llmc.DebugState(x, y, logits.detach().numpy(), loss.item(), grads)
    llmc.write_debug_state(tmp_path / "m_debug_state.bin", C, state)
    for device in ("numpy", "cpu"):
        results = check_against(tmp_path / "m_debug_state.bin", device=device)
        assert all(r.ok for r in results), [(r.what, r.error, r.bound) for r in results]
        assert len(results) == 18


@pytest.mark.parametrize("what", ["logits", "loss", *(p.name for p in gpt2.PARAMS)])
def test_check_against_is_red_where_the_file_is_one_percent_off(state_bin, model_bin, what):
    state = debug_state(C, random_parameters(C))
    grads = {k: g * 1.01 if k == what else g for k, g in state.grads.items()}
    logits = state.logits * (1.01 if what == "logits" else 1)
    loss = state.loss * (1.01 if what == "loss" else 1)
    llmc.write_debug_state(state_bin, C, llmc.DebugState(state.x, state.y, logits, loss, grads))
    bad = [r.what for r in check_against(state_bin, device="numpy") if not r.ok]
    assert bad == [what if what in ("logits", "loss") else f"d{what}"]


def test_check_against_is_red_for_nan(state_bin, model_bin):
    state = debug_state(C, random_parameters(C))
    state.grads["fcb"][1, 2] = np.nan
    llmc.write_debug_state(state_bin, C, state)
    bad = [r.what for r in check_against(state_bin, model_bin, device="numpy") if not r.ok]
    assert bad == ["dfcb"]


@pytest.mark.parametrize(
    "index, value, words",
    [
        (0, 20240326, "it is a model"),
        (1, 1, "version 1"),
        (2, 0, "0 sequences"),
        (2, 3, "bytes"),
        (3, 10, "10 tokens"),
        (256, 131, "token 131"),
        (257, -1, "token -1"),
    ],
)
def test_a_damaged_debug_state_is_refused(state_bin, index, value, words):
    edited(state_bin, index, value)
    with pytest.raises(UserError, match=words):
        check_against(state_bin, device="numpy")


def test_a_debug_state_of_another_model_is_refused(tmp_path, state_bin):
    other = gpt2.Config(layers=1, heads=3, channels=15, vocab_size=131, max_seq_len=9)
    one.save(tmp_path / "other.bin", as_one(other), random_parameters(other))
    with pytest.raises(UserError, match="another model"):
        check_against(state_bin, tmp_path / "other.bin", device="numpy")


def test_check_against_says_which_model_it_misses(tmp_path, state_bin, model_bin):
    model_bin.unlink()
    with pytest.raises(UserError, match=r"m\.bin does not exist"):
        check_against(state_bin)
    shutil.copy(state_bin, tmp_path / "renamed.bin")
    with pytest.raises(UserError, match="gpt2_124M_debug_state"):
        check_against(tmp_path / "renamed.bin")


# ------------------------------------------------------------------------------------------ shards
def prepare(source, out, **options) -> Path:
    assert Data("prepare", str(source), str(out), **options).run() == 0
    return out


def tokens_of(folder: Path, split: str) -> np.ndarray:
    shards = [sources.read_shard(p) for p in sorted(folder.glob(f"{split}_*.bin"))]
    return np.concatenate(shards)


@pytest.mark.parametrize("shard_tokens", [100, 450, 10**8])
def test_prepared_shards_hold_the_text_in_order(tmp_path, shard_tokens):
    text = "héllo wörld\n" * 71 + "end"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    out = prepare(tmp_path / "a.txt", tmp_path / "out", shard_tokens=shard_tokens)
    train, val = tokens_of(out, "train"), tokens_of(out, "val")
    assert bytes(np.concatenate([train, val]).astype(np.uint8)).decode() == text
    assert len(val) == (len(train) + len(val)) // 10
    for path in out.glob("*.bin"):
        h = np.fromfile(path, np.int32, 256)
        assert h[:2].tolist() == [20240520, 1] and 0 < h[2] <= shard_tokens
        assert path.stat().st_size == 1024 + 2 * h[2]
    assert {p.suffix for p in out.iterdir()} == {".bin", ".json"}


def test_every_text_starts_with_end_of_text(tmp_path):
    (tmp_path / "a.txt").write_text("the cat " * 50)
    (tmp_path / "b.txt").write_text("the dog " * 50)
    out = prepare(tmp_path / "*.txt", tmp_path / "out", tokenizer="bpe:260")
    tok = tokenizer.load(out / "tokenizer.json")
    tokens = np.concatenate([tokens_of(out, "train"), tokens_of(out, "val")])
    assert tokens[0] == tok.end_of_text and (tokens == tok.end_of_text).sum() == 2
    assert tok.decode(tokens) == f"<|endoftext|>{'the cat ' * 50}<|endoftext|>{'the dog ' * 50}"


def test_a_prepared_folder_trains(tmp_path, monkeypatch):
    from backglass.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 30)
    prepare("a.txt", tmp_path / "out", tokenizer="bpe:270")
    command = "train tiny --device numpy --layers 1 --channels 16 --heads 2 --seq-len 8 --steps 1"
    data = ["--data", "out", "--tokenizer", "out/tokenizer.json", "--out", "run"]
    assert main([*command.split(), *data, "--val-batches", "1"]) == 0


def test_prepare_refuses_what_cannot_work(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 20)
    used = tmp_path / "used"
    used.mkdir()
    (used / "x").write_text("x")
    shards = prepare(tmp_path / "a.txt", tmp_path / "shards")
    for source, out, options, words in [
        (tmp_path / "a.txt", used, {}, "not empty"),
        (tmp_path / "a.txt", tmp_path / "a.txt", {}, "is a file"),
        (shards, tmp_path / "y", {}, "token shards already"),
        (tmp_path / "none", tmp_path / "y", {}, "no file found"),
        (tmp_path / "a.txt", tmp_path / "y", {"tokenizer": "klingon"}, "bpe:N"),
        (tmp_path / "a.txt", tmp_path / "y", {"shard_tokens": 0}, "--shard-tokens"),
    ]:
        with pytest.raises(UserError, match=words):
            prepare(source, out, **options)
    assert not (tmp_path / "y").exists()


def test_a_token_that_is_no_uint16_is_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some text " * 20)
    wide = np.array([3, 65535, 65536])
    monkeypatch.setattr(tokenizer.Tokenizer, "encode_all", lambda self, texts: [wide])
    with pytest.raises(UserError, match="token 65536 at position 2"):
        prepare(tmp_path / "a.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    "kind, line",
    [
        (Data, "prepare a.txt --tokenizer bytes --out out"),
        (Data, "prepare - --out out --shard-tokens 1000"),
        (Convert, "a.bin b --to hf --dtype bf16"),
    ],
)
def test_the_command_line_is_the_documented_one(kind, line):
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.ConsolidateSubcommandArgs)
    found = tyro.cli(kind, args=line.split(), config=config)
    assert line.split()[1] in (getattr(found, "source", ""), getattr(found, "dst", ""))


def test_prepare_json_lists_the_shards(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("x" * 1000)
    prepare(tmp_path / "a.txt", tmp_path / "out", shard_tokens=600, json=True)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [r["tokens"] for r in rows] == [600, 300, 100]
    assert [r["split"] for r in rows] == ["train", "train", "val"]
