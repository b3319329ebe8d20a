"""Text of every kind and size becomes tokens: read in pieces, prepared in bounded memory."""

import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from test_cli import TINY, fails

from backglass.cli import main
from backglass.data import documents, encode, loader, sources, tokenizer
from backglass.errors import UserError

# What has led cutters of text astray: words, contractions, runs of every white space, characters of
# one to four bytes, separators that only some tables call white space, special tokens.
CRUMBS = [
    "the", "isn't", "'s", "we'll", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\x0b", "\x1c", "\x85",
    "\xa0", "\u2003", "\u3000", "!", "...", "é", "漢字", "🙂", "12", "<|endoftext|>", "<|", "|>",
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def crumbs(seed: int, count: int = 3000) -> str:
    return "".join(np.random.default_rng(seed).choice(CRUMBS, count))


def all_text(source: sources.Source) -> str:
    return "".join(block for document in source.documents() for block in document)


def all_tokens(source: sources.Source, tok: tokenizer.Tokenizer) -> np.ndarray:
    return np.concatenate(list(encode.encoded(source, tok)))


def shards(folder, split: str) -> np.ndarray:
    found = [sources.read_shard(p) for p in sorted(folder.glob(f"{split}_*.bin"))]
    return np.concatenate(found) if found else np.empty(0, np.uint16)


# -------------------------------------------------------------------------------------- documents
@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_blocks_cut_no_character(monkeypatch, block):
    monkeypatch.setattr(documents, "BLOCK_BYTES", block)
    text = crumbs(0, 200)
    assert "".join(documents.blocks(io.BytesIO(text.encode()), "x")) == text


@pytest.mark.parametrize("block", [1, 3, 4, 1 << 20])
@pytest.mark.parametrize("bad, byte", [(b"\xff", 0xFF), (b"\xe6\xbc", 0xE6)])
def test_blocks_name_the_first_bad_byte(monkeypatch, block, bad, byte):
    monkeypatch.setattr(documents, "BLOCK_BYTES", block)
    good = "aé漢🙂".encode()
    with pytest.raises(UserError, match=f"byte 0x{byte:02x} at position {len(good)}"):
        list(documents.blocks(io.BytesIO(good + bad), "x"))


def test_a_jsonl_is_a_document_a_line(tmp_path):
    lines = [{"text": "one"}, {"n": 1, "text": "two\n"}, {"content": "thrée"}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    found = ["".join(d) for d in sources.read("a.jsonl").documents()]
    assert found == ["one\n", "two\n", "thrée\n"]


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "is not JSON in line 2"),
        ("[1]", "line 2: expected an object with a field `text` or `content`.*found a list"),
        ('{"body": "x", "n": 1}', "found body, n"),
        ('{"text": 3}', "that is a string, found text"),
        ("[" * 100_000, "is not JSON in line 2"),
    ],
)
def test_a_jsonl_of_another_kind_is_refused(tmp_path, capsys, line, words):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(UserError, match=words):
        all_text(sources.read("a.jsonl"))


def test_a_parquet_is_a_document_a_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"n": [1, 2, 3], "text": ["a", None, "b\n"]}), "a.parquet")
    assert ["".join(d) for d in sources.read("a.parquet").documents()] == ["a\n", "b\n"]


@pytest.mark.parametrize("columns, words", [({"x": ["a"]}, "it has x"), ({"text": [1]}, "no text")])
def test_a_parquet_of_another_kind_is_refused(columns, words):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), "a.parquet")
    with pytest.raises(UserError, match=words):
        all_text(sources.read("a.parquet"))


def test_a_damaged_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(UserError, match=r"a\.parquet is damaged, or no parquet file"):
        all_text(sources.read("a.parquet"))


def test_a_parquet_without_pyarrow_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="python -m pip install pyarrow") as error:
        all_text(sources.read("a.parquet"))
    assert error.value.code == 2


def test_a_folder_is_read_without_hidden_and_empty_files(tmp_path):
    for name, text in [("b.txt", "b"), ("a/c.md", "c"), ("e.py", ""), (".git/x", "no"), ("i", "i")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert all_text(sources.read(".")) == "cbi"


# ------------------------------------------------------------------------- pieces and their tokens
def bytes_and_bpe() -> list[tokenizer.Tokenizer]:
    return [tokenizer.build("bytes", []), tokenizer.build("bpe:500", [crumbs(1), crumbs(2)])]


@pytest.mark.parametrize("piece", [1, 2, 5, 64])
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_pieces_have_the_tokens_of_the_whole(monkeypatch, kind, piece, seed):
    tok, text = bytes_and_bpe()[kind], crumbs(10 + seed)
    monkeypatch.setattr(encode, "PIECE", piece)
    blocks = (text[i : i + 7] for i in range(0, len(text), 7))
    found = list(encode.pieces(blocks, encode.cuts(tok)))
    assert len(found) > len(text) // (40 + 2 * piece) and "".join(found) == text
    np.testing.assert_array_equal(np.concatenate([tok.encode(p) for p in found]), tok.encode(text))


def test_a_cut_beside_any_character_would_change_tokens():
    """The test above can fail: cut where the cutter does not, and tokens differ."""
    tok, text = bytes_and_bpe()[1], crumbs(10)
    differs = [
        not np.array_equal(
            np.concatenate([tok.encode(text[:at]), tok.encode(text[at:])]), tok.encode(text)
        )
        for at in range(1, 300)
        if not encode.BEFORE_SPACE.match(text, at)
    ]
    assert sum(differs) > len(differs) // 4


def test_a_text_without_white_space_stays_whole_for_bpe_and_is_searched_once(monkeypatch):
    monkeypatch.setattr(encode, "PIECE", 10)
    found = list(encode.pieces(iter(["漢" * 1000] * 100 + [" end"]), encode.BEFORE_SPACE))
    assert [len(p) for p in found] == [100_000, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"added": {"rstrip": True}},
        {"added": {"content": "a b"}},
    ],
)
def test_other_tokenizers_get_whole_documents(tmp_path, change):
    j = json.loads(tokenizer.build("bpe:300", [crumbs(0)]).to_json())
    j["pre_tokenizer"] |= {"trim_offsets": True}
    j["added_tokens"][0] |= change.pop("added", {})
    for key, value in change.items():
        j[key] = value if key == "normalizer" else {"trim_offsets": True} | value
    if j["pre_tokenizer"]["type"] == "Metaspace":
        j["pre_tokenizer"].pop("trim_offsets")
    (tmp_path / "t.json").write_text(json.dumps(j))
    assert encode.cuts(tokenizer.load(tmp_path / "t.json")) is None
    assert list(encode.pieces(iter(["a b", " c"]), None)) == ["a b c"]


def test_bpe_learns_the_same_from_pieces_as_from_the_whole(tmp_path, monkeypatch):
    text = sources.python_docs()[:40_000]
    (tmp_path / "a.txt").write_text(text)
    whole = tokenizer.build("bpe:400", [text]).to_json()
    monkeypatch.setattr(encode, "PIECE", 100)
    pieces = list(encode.lessons(sources.read("a.txt")))
    assert len(pieces) > 300 and tokenizer.build("bpe:400", pieces).to_json() == whole


def test_a_tokenizer_that_would_cut_texts_short_does_not(tmp_path):
    tok = tokenizer.build("bytes", [])
    tok.inner.enable_truncation(5)
    tok.inner.enable_padding(length=9)
    j = json.loads(tok.inner.to_str())
    j["model"]["vocab"]["more"] = 256  # no longer plain bytes, which need no library
    (tmp_path / "t.json").write_text(json.dumps(j))
    assert len(tokenizer.load(tmp_path / "t.json").encode("a text")) == 6


# ---------------------------------------------------------------------------------------- prepare
@pytest.mark.parametrize("kind", ["bytes", "bpe:300"])
def test_training_and_prepare_make_the_same_tokens(tmp_path, monkeypatch, kind):
    from backglass.training import start
    from backglass.training.settings import Settings

    monkeypatch.setattr(encode, "PIECE", 50)
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(crumbs(ord(name)))
    assert main(["data", "prepare", "*.txt", "--tokenizer", kind, "--out", "out"]) == 0
    tok = tokenizer.load(tmp_path / "out/tokenizer.json")
    for data in ("*.txt", "out"):
        s = Settings(data=data, seq_len=8)
        train, val = start._tokens(s, sources.read(data), tok)
        np.testing.assert_array_equal(np.concatenate(train), shards(tmp_path / "out", "train"))
        np.testing.assert_array_equal(np.concatenate(val), shards(tmp_path / "out", "val"))


def test_prepare_reads_standard_input_twice(tmp_path):
    text = crumbs(0)
    command = [sys.executable, "-m", "backglass", "data", "prepare", "-", "--tokenizer", "bpe:280"]
    done = subprocess.run([*command, "--out", "out"], input=text.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    tok = tokenizer.load(tmp_path / "out/tokenizer.json")
    found = np.concatenate([shards(tmp_path / "out", s) for s in ("train", "val")])
    np.testing.assert_array_equal(found[1:], tok.encode(text))


def test_prepare_refuses_a_used_folder_and_force_replaces_its_own(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("x" * 400)
    (tmp_path / "b.txt").write_text("y" * 100)
    command = ["data", "prepare", "a.txt", "--out", "out", "--shard-tokens", "100"]
    assert main(command) == 0 and len(list((tmp_path / "out").glob("*.bin"))) == 5
    code, text = fails(capsys, *command)
    assert code == 2 and "--out out is not empty" in text and "--force" in text
    assert main(["data", "prepare", "b.txt", "--out", "out", "--force"]) == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.bin")) == [
        "train_000000.bin", "val_000000.bin",
    ]  # fmt: skip
    assert bytes(shards(tmp_path / "out", "train").astype(np.uint8)) == b"y" * 90


def test_force_deletes_nothing_that_prepare_did_not_write(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("x" * 400)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.doc").write_text("years")
    code, text = fails(capsys, "data", "prepare", "a.txt", "--out", "out", "--force")
    assert code == 2 and "thesis.doc" in text and (tmp_path / "out/thesis.doc").exists()


def test_a_bad_byte_far_into_the_text_leaves_nothing(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"fine " * 500_000 + b"\xff")
    code, text = fails(capsys, "data", "prepare", "a.txt", "--out", "out")
    assert code == 1 and "byte 0xff at position 2500000" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt"]


def test_prepare_shows_progress_while_it_reads(tmp_path, capsys, monkeypatch):
    from backglass.commands import data

    (tmp_path / "a.txt").write_text("some text " * 300_000)
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr(data.time, "monotonic", lambda: next(clock))
    assert main(["data", "prepare", "a.txt", "--out", "out"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["tokenising: 2.1 MB of text, of 3.0 MB"]


MEASURED = """
import resource, sys
from backglass.cli import main
main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured in Linux's unit")
@pytest.mark.parametrize("kind", ["bytes", "bpe:512"])
def test_prepare_needs_little_memory_for_much_text(tmp_path, kind):
    block = (sources.python_docs() + "\n").encode()
    with (tmp_path / "a.txt").open("wb") as f:
        while f.tell() < 200_000_000:
            f.write(block)
    command = ["data", "prepare", "a.txt", "--tokenizer", kind, "--out", "out"]
    peaks = []
    for args in (["data", "prepare", "python-docs", *command[3:5], "--out", "small"], command):
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *args], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 60_000_000, f"{peaks} bytes"
    count = sum(len(shards(tmp_path / "out", split)) for split in ("train", "val"))
    text = (tmp_path / "a.txt").stat().st_size
    assert count == text if kind == "bytes" else count < text


# ------------------------------------------------------------------------ shards larger than memory
OPENED = """
import sys, resource
from pathlib import Path
from backglass.data import loader, sources
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = sources.read("big.bin", sys.argv[1])
feed = loader.Loader(found.train, 1 << 20, seed=0)
for _ in range(3): feed.batch(1)
print(found.train[0].size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files and Linux's unit of memory")
@pytest.mark.parametrize("shard_format", ["auto", "nanogpt"])
def test_a_shard_larger_than_memory_is_opened_without_reading_it(tmp_path, shard_format):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    header = 1024 if shard_format == "auto" else 0
    count = min(memory, (1 << 31) - 1) if header else memory  # llm.c's header has 32 bits
    with (tmp_path / "big.bin").open("wb") as f:
        if header:
            f.write(np.array([20240520, 1, count, *[0] * 253], np.int32).tobytes())
        f.truncate(header + 2 * count)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", OPENED, shard_format], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    size, grown = map(int, done.stdout.split())
    assert size == count and grown < 100 << 20 and time.perf_counter() - start < 30


def test_a_vocabulary_of_every_uint16_needs_no_look_at_the_tokens():
    class Unread(np.ndarray):
        def max(self, *args, **kwargs):
            raise AssertionError("read")

    tokens = np.zeros(10, np.uint16).view(Unread)
    loader.check_range([tokens], 65536, "x")
    with pytest.raises(AssertionError, match="read"):
        loader.check_range([tokens], 65535, "x")


def test_a_shard_trains_with_the_tokenizer_it_was_made_with_only(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(crumbs(0))
    assert main(["data", "prepare", "a.txt", "--tokenizer", "bpe:300", "--out", "out"]) == 0
    code, text = fails(capsys, *TINY, "--data", "out", "--tokenizer", "bpe:300", "--out", "run")
    assert code == 2 and "learns from text, but out holds tokens" in text
