"""Generation: the cache equals the whole window, sampling does what it says, text streams whole."""

import io
import json

import numpy as np
import pytest

from backglass import cli, device
from backglass.checks.kernel import rms
from backglass.data import tokenizer
from backglass.errors import UserError
from backglass.formats import hf
from backglass.infer import generate
from backglass.infer.cache import declare_cache, with_cache
from backglass.infer.generate import Generator, sample_text
from backglass.infer.model import Model, load
from backglass.infer.sampling import Sampling, choose, probabilities
from backglass.infer.stream import TextStream
from backglass.layout import Layout
from backglass.models import gpt2
from backglass.ops import table
from backglass.program.record import make_call
from backglass.program.step import record_logits
from backglass.training import checkpoint
from backglass.training.session import Session
from backglass.training.settings import Settings
from backglass.view import View

C = gpt2.Config(layers=2, heads=3, channels=48, vocab_size=256, max_seq_len=24)
GREEDY = Sampling(temperature=0)
ULP = 2.0**-23
DEVICES = ["numpy", "cpu"]


def parameters(c=C, dtype="fp32", seed=0) -> np.ndarray:
    """Random weights, large enough that every token matters; pad rows too, to show they do not."""
    layout = Layout(gpt2.PARAMS, c.sizes(1, 1), dtype)
    flat = layout.initial(seed)
    return flat + 0.2 * np.random.default_rng(seed).standard_normal(flat.size).astype(flat.dtype)


def model(dev="numpy", c=C, dtype="fp32", kind="bytes") -> Model:
    layout = Layout(gpt2.PARAMS, c.sizes(1, 1), dtype)
    texts = ["the cat sat on the mat, äöü 日本語. " * 20]
    tok = tokenizer.build(kind, texts)
    return Model(c, layout, parameters(c, dtype), device.get(dev), tok, "here")


def prompts(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, C.vocab_size, n) for n in lengths]


def greedy(g: Generator, given, count: int) -> list[list[int]]:
    steps = list(g.stream(given, count, GREEDY))
    return [[tokens[b] for tokens in steps] for b in range(len(given))]


def whole_window_greedy(m: Model, prompt, count: int) -> list[int]:
    """Without a cache: the whole text for every token."""
    tokens = [int(i) for i in prompt]
    for _ in range(count):
        tokens.append(int(m.logits(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


# ---------------------------------------------------------------- ops


def attend(dev, qkv, cache, start) -> list[np.ndarray]:
    """y, k and v of attention_cached for qkv (B, T, 3, NH, HS) and cache (2, B, NH, P, HS)."""
    B, T, _, NH, HS = qkv.shape
    memory = generate.Memory()
    names = dict(y=(B, T, NH, HS), k=cache.shape[1:], v=cache.shape[1:], qkv=qkv.shape)
    views = [View(n, shape, "fp32", "state") for n, shape in names.items()]
    starts = View("start", (B,), "i32", "input")
    for view, values in zip((*views[1:], starts), (*cache, qkv, start), strict=True):
        memory.array(view)[...] = values
    signature = table()["attention_cached"].signatures["attention_cached"]
    dev.bind([make_call(signature, (*views, starts), {}, "")], memory)[0]()
    return [memory.array(v).copy() for v in views[:3]]


def test_the_cpu_kernel_writes_the_new_positions_of_the_cache_and_no_others():
    B, T, NH, HS, P = 3, 4, 2, 5, 6
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((B, T, 3, NH, HS)).astype(np.float32)
    cache = rng.standard_normal((2, B, NH, P, HS)).astype(np.float32)
    y_want, *kv_want = attend(device.get("numpy"), qkv, cache, (0, 3, P))
    y, k, v = attend(device.get("cpu"), qkv, cache, (0, 3, P))
    assert rms(y - y_want) < 4 * ULP * rms(y_want)
    assert np.array_equal([k, v], kv_want)
    new = qkv.transpose(2, 0, 3, 1, 4)  # (3, B, NH, T, HS)
    assert np.array_equal(k[0, :, :4], new[1, 0])
    assert np.array_equal(k[0, :, 4:], cache[0, 0, :, 4:])
    assert np.array_equal(v[1, :, 3:], new[2, 1, :, :3]) and np.array_equal(k[2], cache[0, 2])


@pytest.mark.parametrize("chunk, threads", [(450, 1), (128, None), (100, None), (9, 1)])
def test_the_cpu_kernel_gives_the_same_bits_for_a_prompt_in_any_chunks(chunk, threads):
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((1, 450, 3, 3, 24)).astype(np.float32)
    cache = np.full((2, 1, 3, 460, 24), np.nan, np.float32)  # what is not written is not read
    want = attend(device.get("cpu"), qkv, cache, (0,))[0]
    dev, pieces = device.get("cpu", threads=threads), []
    for at in range(0, 450, chunk):
        y, *cache = attend(dev, qkv[:, at : at + chunk], np.asarray(cache), (at,))
        pieces.append(y)
    device.get("cpu")  # all threads again
    assert np.array_equal(np.concatenate(pieces, 1), want)


# ---------------------------------------------------------------- cache = whole window


@pytest.mark.parametrize("dev, dtype", [("numpy", "fp64"), ("numpy", "fp32"), ("cpu", "fp32")])
@pytest.mark.parametrize("first", [1, 7])
def test_logits_with_the_cache_equal_the_whole_forward_at_every_position(dev, dtype, first):
    m = model(dev, dtype=dtype)
    text = prompts(C.max_seq_len)[0]
    truth = model("numpy", dtype="fp64")
    for a, b in zip(m.layout.slots, truth.layout.slots, strict=True):  # the same in float64
        truth.parameters[b.offset : b.offset + b.size] = m.parameters[a.offset : a.offset + a.size]
    want, naive = truth.logits(text), model("numpy", dtype=dtype).logits(text)
    bound = max(2 * rms(naive - want), 4 * ULP * rms(want)) if dtype == "fp32" else 1e-12
    g = m.generator(1)
    g.begin([text[:first]])
    for t in range(first - 1, len(text)):
        assert rms(g.logits()[0] - want[t]) <= bound, t
        g.push([int(text[min(t + 1, len(text) - 1)])])


@pytest.mark.parametrize("dev", DEVICES)
def test_greedy_tokens_equal_those_without_a_cache(dev):
    m, prompt = model(dev), prompts(5)[0]
    assert greedy(m.generator(1), [prompt], 19) == [whole_window_greedy(m, prompt, 19)]


@pytest.mark.parametrize("dev", DEVICES)
def test_a_batch_of_unequal_prompts_equals_each_alone(dev):
    m, given = model(dev), prompts(1, 9, 20, 3)
    together = greedy(m.generator(4), given, 30)  # past the end of the context
    assert together == [greedy(m.generator(1), [p], 30)[0] for p in given]


def test_chunks_of_a_prompt_do_not_matter(monkeypatch):
    given = prompts(24, 11)
    found = []
    for chunk in (1, 4, 128):
        monkeypatch.setattr(generate, "CHUNK", chunk)
        found.append(greedy(model().generator(2), given, 5))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("length", [24, 25, 100])
def test_of_a_long_prompt_the_last_tokens_are_seen(length):
    m, prompt = model(), prompts(length)[0]
    assert greedy(m.generator(1), [prompt], 3) == greedy(m.generator(1), [prompt[-24:]], 3)
    g = m.generator(1)
    g.begin([prompt])
    assert rms(g.logits()[0] - m.logits(prompt[-24:])[-1]) < 1e-5


def test_a_full_context_slides_to_its_last_half():
    m, prompt = model(), prompts(24)[0]
    g = m.generator(1)
    g.begin([prompt])
    g.logits()
    g.push([7])
    window = [*prompt[-11:], 7]
    assert g.windows == [window]
    assert rms(g.logits()[0] - m.logits(window)[-1]) < 1e-5


@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_tiny_context_slides_too(context):
    c = gpt2.Config(layers=1, heads=1, channels=8, vocab_size=50, max_seq_len=context)
    g = Generator(c, parameters(c), device.get("numpy"))
    assert len(list(g.stream([[1, 2, 3]], 9, Sampling()))) == 9


def test_with_cache_refuses_attention_spelled_out():
    c = gpt2.Config(
        layers=1, heads=1, channels=8, vocab_size=5, max_seq_len=4, attention="explicit"
    )
    with pytest.raises(ValueError, match="scores cannot continue"):
        start = View("start", (1,), "i32", "input")
        with_cache(record_logits(gpt2, c, 1, 1), declare_cache(c, 1), start)


# ---------------------------------------------------------------- stopping and starting


class Script(Generator):
    """A generator whose logits want given tokens: script[b][n] is sequence b's n-th."""

    def play(self, script):
        self.script, self.turn = script, -1
        return self

    def logits(self):
        self.turn += 1
        found = np.zeros((self.B, self.c.vocab_size), np.float32)
        for b, tokens in enumerate(self.script):
            found[b, tokens[min(self.turn, len(tokens) - 1)]] = 9
        return found


def test_a_sequence_stops_at_end_of_text_and_the_others_go_on():
    g = Script(C, parameters(), device.get("numpy"), B=2).play([[65, 0, 66], [67, 68, 69, 0]])
    assert list(g.stream(prompts(2, 3), 9, GREEDY, stop=0)) == [[65, 67], [None, 68], [None, 69]]


def test_max_tokens_ends_it():
    assert len(list(model().generator(1).stream(prompts(2), 3, GREEDY))) == 3


@pytest.mark.parametrize("kind, start", [("bytes", [10]), ("bpe:300", None)])
def test_an_empty_prompt_begins_a_new_text(kind, start):
    c = gpt2.Config(layers=1, heads=1, channels=8, vocab_size=300, max_seq_len=16)
    m = model(c=c, kind=kind)
    assert m.encode("") == (start or [m.tokenizer.end_of_text])
    assert isinstance(m.generate("", max_tokens=5), str)


@pytest.mark.parametrize("bad", [[[]], [[256]], [[-1]], [[1], [2]]])
def test_bad_prompts_are_refused(bad):
    with pytest.raises(ValueError, match="prompt"):
        model().generator(1).begin(bad)


# ---------------------------------------------------------------- sampling


def test_temperature_zero_takes_the_most_likely_token():
    logits = np.array([0.1, 3.0, 2.9], np.float32)
    assert choose(logits, GREEDY, np.random.default_rng(0)) == 1


def test_top_k_keeps_the_k_most_likely():
    p = probabilities(np.array([1.0, 4.0, 3.0, 2.0]), Sampling(temperature=1, top_k=2))
    e = np.exp([4.0, 3.0])
    assert np.allclose(p, [0, e[0] / e.sum(), e[1] / e.sum(), 0])


def test_top_p_keeps_the_fewest_that_reach_p():
    logits = np.log([0.1, 0.5, 0.15, 0.25])
    p = probabilities(logits, Sampling(temperature=1, top_k=0, top_p=0.7))
    assert np.allclose(p, [0, 2 / 3, 0, 1 / 3])


def test_sampling_draws_with_the_probabilities():
    logits, s = np.log(np.array([0.1, 0.6, 0.3])), Sampling(temperature=1, top_k=0)
    rng = s.rng(0)
    counts = np.bincount([choose(logits, s, rng) for _ in range(4000)], minlength=3) / 4000
    assert np.abs(counts - [0.1, 0.6, 0.3]).max() < 0.03  # 4 standard deviations


def test_a_tiny_temperature_is_greedy_and_not_nan():
    s = Sampling(temperature=1e-300)
    assert choose(np.array([0.0, 2.0, 1.0], np.float32), s, s.rng(0)) == 1


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(UserError, match="not finite"):
        choose(np.array([0.0, np.nan]), Sampling(), np.random.default_rng(0))


def test_the_seed_decides_the_text():
    m = model()
    first = m.generate("ab", 40, seed=1)
    assert m.generate("ab", 40, seed=1) == first == model().generate("ab", 40, seed=1)
    assert m.generate("ab", 40, seed=2) != first


def test_equal_prompts_of_a_batch_differ_and_do_not_depend_on_the_batch():
    m, s = model(), Sampling(temperature=1, top_k=0, seed=3)
    a, b, c = (k.text for k in m.continuations(["x", "x", "x"], 20, s))
    assert len({a, b, c}) == 3
    assert m.continuations(["x"], 20, s, first=2)[0].text == c


def test_pad_rows_and_tokens_the_tokenizer_lacks_are_never_drawn():
    c = gpt2.Config(layers=1, heads=1, channels=8, vocab_size=300, max_seq_len=8)  # padded to 384
    g = Script(c, parameters(c), device.get("numpy")).play([[299]])
    wild = Sampling(temperature=50, top_k=0)
    drawn = [t for (t,) in g.stream([[1]], 2000, wild)]
    assert max(drawn) > 270 and max(drawn) < 300
    drawn = [t for (t,) in g.play([[299]]).stream([[1]], 2000, wild, vocab_size=256)]
    assert max(drawn) < 256
    m = model(c=c)  # a byte tokenizer: 256 of 300
    assert all(t < 256 for (t,) in m.steps(["a"], 200, wild))


# ---------------------------------------------------------------- streaming


TEXTS = ["plain", "é日本😀ä", "a\ufffdb", "\ufffd", ""]


@pytest.mark.parametrize("kind", ["bytes", "bpe:300"])
@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_join_to_the_text_and_never_hold_half_a_character(kind, text):
    tok = tokenizer.build(kind, ["the cat sat on the mat. é日本 " * 20])
    stream = TextStream(tok)
    pieces = [stream.push(int(i)) for i in tok.encode(text)] + [stream.flush()]
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["bytes", "bpe:300"])
def test_streamed_bytes_that_are_not_utf8_join_to_what_decode_makes_of_them(kind):
    tok = tokenizer.build(kind, ["the cat sat on the mat. é日本 " * 20])
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, 256, rng.integers(1, 40))
        stream = TextStream(tok)
        assert "".join([*map(stream.push, ids), stream.flush()]) == tok.decode(ids)


def test_text_comes_before_the_end():
    tok = tokenizer.build("bytes", ())
    stream = TextStream(tok)
    assert [stream.push(b) for b in "aé!".encode()] == ["a", "", "é", "!"]


def test_stream_joins_to_generate():
    m = model()
    pieces = list(m.stream("x", 60, temperature=2.0, top_k=0))
    assert len(pieces) > 10 and "".join(pieces) == m.generate("x", 60, temperature=2.0, top_k=0)


# ---------------------------------------------------------------- the trainer's sample


@pytest.mark.parametrize("dev", DEVICES)
def test_sample_text_is_reproducible_and_leaves_the_run_alone(dev):
    s = Settings(layers=1, heads=2, channels=16, seq_len=8, batch_size=2, device=dev, dropout=0.1)
    c = s.model_config(256)
    session = Session(c, s, device.get(dev))
    session.init()
    before = {name: flat.copy() for name, flat in session.flats.items()}
    tok = tokenizer.build("bytes", ())
    text = sample_text(c, session, tok, np.frombuffer(b"abc", np.uint8), 20, seed=1)
    again = sample_text(c, session, tok, np.frombuffer(b"abc", np.uint8), 20, seed=1)
    assert text and text == again
    assert all(np.array_equal(flat, before[name]) for name, flat in session.flats.items())


@pytest.mark.parametrize("dev", ["numpy", "cpu"])
def test_a_sample_of_a_run_lies_in_its_arena_and_changes_neither_text_nor_step(dev):
    s = Settings(layers=2, heads=2, channels=32, seq_len=16, batch_size=4, device=dev)
    c, tok = s.model_config(256), tokenizer.build("bytes", ())
    ids = np.random.default_rng(0).integers(0, 256, (4, 17)).astype(np.int32)
    batch, found = [(ids[:, :-1], ids[:, 1:])], []
    for sample_first in (False, True):
        session = Session(c, s, device.get(dev))
        session.init()
        for step in range(2):
            session.gradients(batch, step)
            session.update(step)
            if sample_first:
                arena = session.memory.flat["arena"]
                g = Generator(c, session.flats["p"], session.device, room=arena)
                assert all(np.shares_memory(g.memory.flat[n], arena) for n in ("cache", "arena"))
                assert not np.shares_memory(g.memory.flat["cache"], g.memory.flat["arena"])
                sample_text(c, session, tok, ids[0, :9], 30, seed=1)
        found.append((session.state()["p"], sample_text(c, session, tok, ids[0, :9], 30, seed=1)))
    alone = Session(c, s, device.get(dev))
    alone.load_state(session.state())
    assert "arena" not in alone.memory.flat
    text = sample_text(c, alone, tok, ids[0, :9], 30, seed=1)
    assert found[0][1] == found[1][1] == text
    assert np.array_equal(found[0][0], found[1][0])


# ---------------------------------------------------------------- Model


def saved(folder, c=C, kind="bytes"):
    """A checkpoint of random weights."""
    m = model(c=c, kind=kind)
    flats = {"p": m.parameters, "m": m.parameters, "v": m.parameters}
    checkpoint.save(folder, c, m.layout, flats, m.tokenizer, checkpoint.State(), Settings(steps=1))
    return folder


def test_load_takes_a_run_a_checkpoint_or_a_file(tmp_path):
    folder = saved(tmp_path / "run" / "checkpoints" / "step-00000001")
    texts = [
        load(path, "numpy").generate("ab", 5, temperature=0)
        for path in (tmp_path / "run", folder, folder / "model.safetensors")
    ]
    assert texts == [model().generate("ab", 5, temperature=0)] * 3


def test_repr_says_what_it_is(tmp_path):
    text = repr(load(saved(tmp_path / "m"), "numpy"))
    count = 256 * 48 + 24 * 48 + 2 * (12 * 48 * 48 + 13 * 48) + 2 * 48
    assert "2 layers" in text and f"{count:,} parameters" in text and "context 24" in text


@pytest.mark.parametrize("dev", DEVICES)
def test_loss_and_gradients_are_the_trainers(dev):
    m = model(dev)
    windows = np.random.default_rng(0).integers(0, 256, (2, 13))
    s = Settings(layers=2, heads=3, channels=48, seq_len=12, batch_size=2, device=dev)
    session = Session(C, s, device.get(dev))
    session.flats["p"][...] = m.parameters
    loss = session.gradients([(windows[:, :-1], windows[:, 1:])], 0)
    assert abs(m.loss(windows) - loss) < 1e-6 * loss
    want = hf.tensors_out(session.t.layout, session.flats["dp"])
    found = m.grads(windows)
    assert found.keys() == want.keys()
    for name, g in found.items():
        assert rms(g - want[name]) <= 1e-5 * rms(want[name]), name


def test_loss_is_minus_the_mean_log_probability():
    m = model(dtype="fp64")
    tokens = prompts(9)[0]
    z = m.logits(tokens)[:-1]
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    assert abs(m.loss(tokens) + log_p[np.arange(8), tokens[1:]].mean()) < 1e-12


def test_numbers_of_a_text_are_those_of_its_tokens():
    m = model()
    assert m.loss("hello") == m.loss([*b"hello"])
    assert m.logits("hello").shape == (5, 256) and m.logits([[1, 2]]).shape == (1, 2, 256)


@pytest.mark.parametrize(
    "tokens, words",
    [([1, 256], "no token 256"), ([-1, 1], "no token -1"), ([3], "from 2"), ([], "shape"),
     (list(range(30)), "context"), ([0.5, 1.0], "integers")],
)  # fmt: skip
def test_tokens_that_cannot_be_are_refused(tokens, words):
    with pytest.raises(UserError, match=words):
        model().loss(tokens)


def test_a_model_without_a_tokenizer_computes_but_does_not_generate(tmp_path):
    folder = saved(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    m = load(folder, "numpy")
    assert m.logits([1, 2]).shape == (2, 256)
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        m.generate("x")


# ---------------------------------------------------------------- the command


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """generate(args…) -> (exit code, standard output, standard error), with a model at ./m."""
    monkeypatch.setitem(cli.COMMANDS, "generate", "Generate")
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "m")

    def run(*args: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = cli.main(["generate", *args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


QUICK = ["m", "--device", "numpy", "--max-tokens", "8", "--seed", "4"]


def test_generate_prints_prompt_and_continuation(command):
    code, out, _ = command(*QUICK, "--prompt", "The ")
    assert code == 0 and out.rstrip("\n") == "The " + model().generate("The ", 8, seed=4).rstrip(
        "\n"
    )


def test_generate_reads_standard_input(command):
    assert command(*QUICK, "--prompt", "-", stdin=b"The ") == command(*QUICK, "--prompt", "The ")


def test_generate_json_has_a_row_for_each_prompt(command, tmp_path):
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    code, out, _ = command(
        *QUICK, "--prompt", "zero", "--prompts-file", "p.txt", "--batch-size", "2", "--json"
    )
    rows = json.loads(out)["rows"]
    assert code == 0 and [r["prompt"] for r in rows] == ["zero", "one", "two"]
    assert all(len(r["tokens"]) == 8 and r["stop"] == "max-tokens" for r in rows)
    assert rows[0]["text"] == model().generate("zero", 8, seed=4)


def test_generate_without_a_prompt_begins_a_new_text(command):
    code, out, _ = command(*QUICK)
    assert code == 0 and out


def test_generate_help_has_examples(command):
    code, out, _ = command("--help")
    assert code == 0 and "For example:" in out and "--top-p" in out


@pytest.mark.parametrize(
    "args, words",
    [
        (["nowhere"], "there is no 'nowhere'"),
        (["m", "--temperature", "-1"], "--temperature"),
        (["m", "--temperature", "nan"], "--temperature"),
        (["m", "--top-k", "-1"], "--top-k"),
        (["m", "--top-p", "0"], "--top-p"),
        (["m", "--top-p", "1.5"], "--top-p"),
        (["m", "--max-tokens", "0"], "--max-tokens"),
        (["m", "--max-tokens", "many"], "--max-tokens"),
        (["m", "--batch-size", "0"], "--batch-size"),
        (["m", "--seed", "-3"], "--seed"),
        (["m", "--device", "abacus"], "abacus"),
        (["m", "--prompts-file", "missing.txt"], "cannot be read"),
        (["m", "--prompt", "-", "--prompt", "-"], "once"),
        (["m", "--device", "numpy", "--prompt", "\udcff"], "not valid"),
        (["m", "--nosuchflag"], "nosuchflag"),
    ],
)
def test_wrong_use_exits_2_with_one_paragraph(command, args, words):
    code, out, err = command(*args)
    assert code == 2 and words in out + err


def test_standard_input_that_is_not_text_is_refused(command):
    code, _, err = command(*QUICK, "--prompt", "-", stdin=b"\xff\xfe")
    assert code == 2 and "UTF-8" in err


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("config.json", b"{", "damaged"),
        ("model.safetensors", b"", "damaged"),
        ("tokenizer.json", b"[]", "not a tokenizer.json"),
    ],
)
def test_a_damaged_model_exits_1(command, tmp_path, file, content, words):
    (tmp_path / "m" / file).write_bytes(content)
    code, _, err = command(*QUICK)
    assert code == 1 and words in err


def test_a_folder_without_a_model_exits_1(command, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = command("empty")
    assert code == 1 and "no model" in err


def test_a_tokenizer_of_another_model_is_noticed(command, tmp_path):
    big = tokenizer.build("bpe:400", ["the cat sat on the mat. " * 50])
    (tmp_path / "m" / "tokenizer.json").write_text(big.to_json())
    code, _, err = command(*QUICK, "--prompt", "the cat sat on the mat")
    assert code == 1 and "another model" in err


# ---------------------------------------------------------------- oracle


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("dev", DEVICES)
def test_greedy_tokens_equal_transformers(tmp_path, dev):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=101, n_positions=40, n_embd=48, n_layer=3, n_head=3, bos_token_id=0,
        eos_token_id=None, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs", dev)
    for n in (1, 6, 30):
        prompt = np.random.default_rng(n).integers(0, 101, n)
        ids = torch.tensor(prompt)[None]
        want = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40 - n, do_sample=False
        )
        assert greedy(ours.generator(1), [prompt], 40 - n) == [want[0, n:].tolist()]
