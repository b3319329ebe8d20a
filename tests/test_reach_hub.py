"""Downloads against a server on this machine that answers as the Hugging Face hub does: first
fetch, cached second fetch, and every way it can fail."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_cli import TINY, fails

from backglass.cli import main
from backglass.data import hub, repositories, sources, tokenizer
from backglass.errors import UserError

TEXT = b"the quick brown fox jumps over the lazy dog. " * 60
INDEX = "model.safetensors.index.json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories in memory, by path.  `wrong` changes how a file is answered."""

    def __init__(self, server):
        self.port = server.server_port
        self.files: dict[str, bytes] = {}  # owner/name/file, or datasets/owner/name/file
        self.large: set[str] = set()  # sent from elsewhere, as files in LFS are
        self.wrong: dict[str, str] = {}  # path -> cut, swapped, or a status
        self.gated: dict[str, str] = {}  # owner/name -> the token that opens it
        self.asked: list[tuple[str, str | None]] = []  # (path, Authorization)

    def add(self, repo: str, files: dict[str, bytes], large: bool = False) -> None:
        for name, content in files.items():
            self.files[f"{repo}/{name}"] = content
            if large:
                self.large.add(f"{repo}/{name}")

    def answer(self, host: str, path: str, token: str | None) -> tuple[int, dict, bytes]:
        """(status, headers, body) of a request."""
        if path.startswith("/elsewhere/"):
            return 200, {}, self._sent(path.removeprefix("/elsewhere/"))
        if path.startswith("/api/datasets/"):
            repo = path.removeprefix("/api/").partition("?")[0]
            return self._listing(repo, token)
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        name = repo + "/" + rest.partition("/")[2]
        if refused := self._refusal(repo, token):
            return refused, {}, b"no"
        if name not in self.files or self.wrong.get(name, "").isdigit():
            return int(self.wrong.get(name, 404)), {}, b"no"
        content = self.files[name]
        if name in self.large:
            linked = {"X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            linked |= {"X-Linked-Size": str(len(content)), "X-Repo-Commit": COMMIT}
            return (
                302,
                {"Location": f"http://localhost:{self.port}/elsewhere/{name}", **linked},
                b"",
            )
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return 200, {"ETag": f'"{blob}"', "X-Repo-Commit": COMMIT}, self._sent(name)

    def _refusal(self, repo: str, token: str | None) -> int:
        wanted = self.gated.get(repo)
        return 0 if wanted is None or token == f"Bearer {wanted}" else 403 if token else 401

    def _listing(self, repo: str, token: str | None) -> tuple[int, dict, bytes]:
        if refused := self._refusal(repo, token):
            return refused, {}, b"no"
        found = {p.removeprefix(repo + "/"): f for p, f in self.files.items() if p.startswith(repo)}
        if not found:
            return 404, {}, b"no"
        siblings = [{"rfilename": name, "size": len(f)} for name, f in found.items()]
        return 200, {}, json.dumps({"sha": COMMIT, "siblings": siblings}).encode()

    def _sent(self, name: str) -> bytes:
        content = self.files[name]
        return content[::-1] if self.wrong.get(name) == "swapped" else content


@pytest.fixture(scope="module")
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.server.hub
            token = self.headers.get("Authorization")
            known.asked.append((self.path, token))
            status, headers, body = known.answer(self.headers["Host"], self.path, token)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            cut = any(how == "cut" and self.path.endswith(p) for p, how in known.wrong.items())
            self.wfile.write(body[: len(body) // 2] if cut else body)

        def log_message(self, *args):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def remote(server, tmp_path, monkeypatch):
    """A hub with nothing on it yet, an empty cache, an empty folder to work in."""
    server.hub = Hub(server)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKGLASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "*")
    for name in ("HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return server.hub


@pytest.fixture
def switch_off(monkeypatch):
    """Calling it: from now on nobody answers."""
    return lambda: monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The files of a small GPT-2, and the text of its run's settings that fit it."""
    run = tmp_path_factory.mktemp("model") / "run"
    assert main([*TINY, "--out", str(run)]) == 0
    names = ("config.json", "tokenizer.json", "model.safetensors")
    return {name: (run / "checkpoints/step-00000001" / name).read_bytes() for name in names}


def in_two(model: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    """The same model with its weights in two files and an index."""
    (tmp_path / "w").write_bytes(model["model.safetensors"])
    tensors = sorted(load_file(tmp_path / "w").items())
    found = {n: f for n, f in model.items() if n != "model.safetensors"}
    where = {}
    for k, part in enumerate((tensors[:5], tensors[5:]), 1):
        name = f"model-0000{k}-of-00002.safetensors"
        save_file(dict(part), tmp_path / "part")
        found[name] = (tmp_path / "part").read_bytes()
        where |= {tensor: name for tensor, _ in part}
    index = {"metadata": {}, "weight_map": where}
    return found | {INDEX: json.dumps(index).encode()}


def gpt2_tokenizer(size: int = 50257) -> bytes:
    """A tokenizer.json with as many tokens as GPT-2's, most of them never used."""
    j = json.loads(tokenizer.build("bytes", []).to_json())
    j["model"]["vocab"] |= {f"unused {i}": i for i in range(256, size)}
    return json.dumps(j).encode()


def leftovers(tmp_path: Path) -> list[str]:
    """Files in the cache that are not what they should be called."""
    return [p.name for p in (tmp_path / "cache").rglob("tmp*")]


# ----------------------------------------------------------------------------------- shakespeare
@pytest.fixture
def shakespeare(remote, monkeypatch):
    remote.add("w/s", {"input.txt": TEXT})
    url = f"http://127.0.0.1:{remote.port}/w/s/resolve/main/input.txt"
    monkeypatch.setattr(sources, "SHAKESPEARE_URL", url)
    monkeypatch.setattr(sources, "SHAKESPEARE_SHA256", hashlib.sha256(TEXT).hexdigest())
    return remote


def test_shakespeare_is_fetched_once(shakespeare, tmp_path):
    for run in ("a", "b"):
        assert main([*TINY, "--data", "shakespeare", "--out", run]) == 0
    assert len(shakespeare.asked) == 1
    assert (tmp_path / "cache" / "tinyshakespeare.txt").read_bytes() == TEXT


def test_shakespeare_with_another_checksum_is_refused(shakespeare, tmp_path, capsys):
    shakespeare.wrong["w/s/input.txt"] = "swapped"
    code, text = fails(capsys, *TINY, "--data", "shakespeare", "--out", "run")
    assert code == 1 and "arrived damaged" in text and "Nothing was kept" in text
    assert hashlib.sha256(TEXT).hexdigest() in text
    assert not (tmp_path / "cache" / "tinyshakespeare.txt").exists() and not leftovers(tmp_path)


def test_shakespeare_without_a_network_says_what_to_do_by_hand(
    shakespeare, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sources, "SHAKESPEARE_URL", "http://127.0.0.1:1/input.txt")
    code, text = fails(capsys, *TINY, "--data", "shakespeare", "--out", "run")
    target = tmp_path / "cache" / "tinyshakespeare.txt"
    assert code == 1 and "http://127.0.0.1:1/input.txt could not be fetched" in text
    assert f"put it at {target}" in text and "--data FILE" in text
    target.write_bytes(TEXT)  # as the message says
    assert main([*TINY, "--data", "shakespeare", "--out", "run"]) == 0


# ------------------------------------------------------------------------------------- data sets
@pytest.mark.parametrize("large", [False, True])
def test_a_data_set_trains_and_is_cached(remote, switch_off, capsys, large):
    remote.add("datasets/me/texts", {"README.md": b"#", "a.txt": TEXT, "b.txt": TEXT}, large)
    assert main([*TINY, "--data", "hf:me/texts", "--out", "a"]) == 0
    assert "fetching 2 files, 0.0 MB" in capsys.readouterr().err
    switch_off()
    assert main([*TINY, "--data", "hf:me/texts", "--out", "b"]) == 0
    assert "fetching" not in capsys.readouterr().err


def test_a_data_sets_files_are_of_the_revision_that_was_listed(remote):
    remote.add("datasets/me/texts", {"a.txt": TEXT})
    sources.read("hf:me/texts")
    assert remote.asked[-1][0] == f"/datasets/me/texts/resolve/{COMMIT}/a.txt"


@pytest.mark.parametrize(
    "files, asked, chosen",
    [
        (["a.jsonl", "b.txt", "c.txt", "README.md"], "hf:me/d", ["b.txt", "c.txt"]),
        (["a.jsonl", "dataset_infos.json"], "hf:me/d", ["a.jsonl"]),
        (["d-train.txt", "d-valid.txt", "d-test.txt"], "hf:me/d", ["d-train.txt"]),
        (["data/train-0.jsonl", "data/validation-0.jsonl"], "hf:me/d", ["data/train-0.jsonl"]),
        (["big/a.txt", "small/a.txt"], "hf:me/d/small", ["small/a.txt"]),
        (["big/a.txt", "small/a.txt"], "hf:me/d/*/a.txt", ["big/a.txt", "small/a.txt"]),
        (["train.txt", "test.txt"], "hf:me/d/test.txt", ["test.txt"]),
        (["notes.md", "a.txt"], "hf:me/d/notes.md", ["notes.md"]),
        (["x_train_0.bin", "x_val_0.bin"], "hf:me/d", ["x_train_0.bin", "x_val_0.bin"]),
    ],
)
def test_the_files_of_a_data_set_are_chosen_by_kind_and_name(remote, files, asked, chosen):
    remote.add("datasets/me/d", dict.fromkeys(files, TEXT))
    found = repositories.data_files(asked)
    folder = hub.folder_of("datasets/me/d")
    assert [p.relative_to(folder).as_posix() for p in found] == chosen


def test_a_data_set_may_have_no_owner(remote):
    remote.add("datasets/squad", {"a.txt": TEXT})
    assert repositories.data_files("hf:squad")[0].read_bytes() == TEXT


@pytest.mark.parametrize(
    "files, asked, code, words",
    [
        (["big/a.txt", "small/a.txt"], "hf:me/d", 2, "data sets, in the folders big, small"),
        (["big/a.txt", "small/a.txt"], "hf:me/d", 2, "Choose one: hf:me/d/big"),
        (["README.md", "a.zip"], "hf:me/d", 1, "the repository holds README.md, a.zip"),
        (["a.txt"], "hf:me/d/b*.txt", 1, "that matches b*.txt"),
        (["../../evil.txt"], "hf:me/d", 1, "leads out of the repository"),
        (["a.txt"], "hf:me/other", 1, "does not exist (the server answered 404)"),
        (["a.txt"], "hf:", 2, "expected hf:owner/name"),
        (["a.txt"], "hf:me/../x", 2, "expected hf:owner/name"),
    ],
)  # fmt: skip
def test_a_data_set_that_cannot_be_read_says_why(remote, capsys, files, asked, code, words):
    remote.add("datasets/me/d", dict.fromkeys(files, TEXT))
    found, text = fails(capsys, *TINY, "--data", asked, "--out", "run")
    assert found == code and words in text


def test_a_data_set_in_parquet_without_pyarrow_is_refused_before_it_is_fetched(
    remote, capsys, monkeypatch
):
    remote.add("datasets/me/d", {"a.parquet": b"PAR1"})
    monkeypatch.setattr(repositories.importlib.util, "find_spec", lambda name: None)
    code, text = fails(capsys, *TINY, "--data", "hf:me/d", "--out", "run")
    assert code == 2 and "python -m pip install pyarrow" in text
    assert not any("a.parquet" in path for path, _ in remote.asked)


def test_a_data_set_larger_than_the_disk_is_refused_before_it_is_fetched(
    remote, capsys, monkeypatch
):
    remote.add("datasets/me/d", {"a.txt": TEXT})
    monkeypatch.setattr(repositories.shutil, "disk_usage", lambda path: _Disk(len(TEXT) - 1))
    code, text = fails(capsys, *TINY, "--data", "hf:me/d", "--out", "run")
    assert code == 1 and "BACKGLASS_CACHE" in text and len(remote.asked) == 1


class _Disk:
    def __init__(self, free: int):
        self.free = free


def test_a_hub_that_answers_with_a_page_is_refused(remote, capsys, tmp_path):
    remote.answer = lambda *args: (200, {}, b"<html>log in to this network</html>")
    code, text = fails(capsys, *TINY, "--data", "hf:me/d", "--out", "run")
    assert code == 1 and "did not answer with a list of files" in text
    assert not list((tmp_path / "cache").rglob(".listing.json"))


# ---------------------------------------------------------------------------------------- models
def test_a_model_generates_and_is_cached(remote, switch_off, capsys, model):
    remote.add("me/m", model)
    command = ["generate", "hf:me/m", "--device", "numpy", "--max-tokens", "3", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)["rows"]
    switch_off()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == first


def test_a_model_in_several_files_is_the_same_and_cached(remote, switch_off, model, tmp_path):
    import backglass as bg

    remote.add("me/one", model, large=True)
    remote.add("me/two", in_two(model, tmp_path), large=True)
    one, two = (bg.load(f"hf:me/{name}", "numpy").parameters for name in ("one", "two"))
    switch_off()
    again = bg.load("hf:me/two", "numpy").parameters
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(two, again)


def test_a_model_is_what_training_starts_from(remote, model, tmp_path):
    remote.add("me/m", model)
    assert main([*TINY, "--steps", "0", "--init", "hf:me/m", "--out", "run"]) == 0
    found = tmp_path / "run/checkpoints/step-00000000/model.safetensors"
    assert found.read_bytes() == model["model.safetensors"]


def test_a_model_without_a_tokenizer_works_with_tokens(remote, model):
    import backglass as bg

    remote.add("me/m", {k: v for k, v in model.items() if k != "tokenizer.json"})
    found = bg.load("hf:me/m", "numpy")
    assert found.loss(np.arange(5)) > 0
    with pytest.raises(UserError, match="tokenizer"):
        found.generate("text")


def test_a_model_that_huggingface_hub_has_is_not_fetched(remote, switch_off, model, tmp_path):
    kept = tmp_path / "hf/hub/models--me--m"
    (kept / "snapshots/abc").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("abc")
    for name, content in model.items():
        (kept / "snapshots/abc" / name).write_bytes(content)
    switch_off()
    assert main(["generate", "hf:me/m", "--device", "numpy", "--max-tokens", "1"]) == 0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"config.json": None}, "config.json does not exist (the server answered 404)"),
        ({"model.safetensors": None}, "hf:me/m has no model.safetensors, in one file or several"),
        ({"config.json": b'{"model_type": "bert"}'}, "describes a 'bert' model"),
        ({"model.safetensors": b"\0" * 100}, "model.safetensors is damaged"),
        ({"model.safetensors": None, INDEX: b"{}"}, "index.json is damaged"),
        (
            {
                "model.safetensors": None,
                INDEX: b'{"weight_map": {"a": "../../b"}}',
            },
            "index.json is damaged",
        ),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_read_says_why(remote, capsys, model, change, words):
    files = {k: v for k, v in (model | change).items() if v is not None}
    remote.add("me/m", files)
    code, text = fails(capsys, "generate", "hf:me/m", "--device", "numpy")
    assert code == 1 and words in text


# ------------------------------------------------------------------------------------- tokenizers
def test_gpt2s_tokenizer_is_fetched_once(remote, switch_off):
    remote.add("openai-community/gpt2", {"tokenizer.json": gpt2_tokenizer()}, large=True)
    first = tokenizer.build("gpt2", [])
    switch_off()
    assert first.vocab_size == tokenizer.build("gpt2", []).vocab_size == 50257


def test_gpt2s_tokenizer_without_a_network_says_what_to_do_by_hand(
    remote, switch_off, capsys, tmp_path
):
    switch_off()
    code, text = fails(capsys, *TINY, "--tokenizer", "gpt2", "--out", "run")
    target = tmp_path / "cache" / "openai-community--gpt2" / "tokenizer.json"
    assert code == 1 and "Connection refused" in text
    assert f"put it at {target}" in text and "--tokenizer FILE" in text
    target.write_bytes(gpt2_tokenizer())  # as the message says
    assert tokenizer.build("gpt2", []).vocab_size == 50257


def test_gpt2s_tokenizer_of_another_size_is_refused(remote):
    remote.add("openai-community/gpt2", {"tokenizer.json": gpt2_tokenizer(50256)})
    with pytest.raises(UserError, match="has 50,256 tokens, GPT-2 has 50,257; delete it"):
        tokenizer.build("gpt2", [])


# ------------------------------------------------------------------------------ what can go wrong
@pytest.fixture
def one_file(remote):
    """Fetches me/m/a.txt."""
    remote.add("me/m", {"a.txt": TEXT})
    return lambda: hub.fetch("me/m", "a.txt", "a local one")


@pytest.mark.parametrize("large", [False, True])
def test_a_file_with_another_checksum_is_not_kept(remote, one_file, tmp_path, large):
    remote.add("me/m", {"a.txt": TEXT}, large)
    remote.wrong["me/m/a.txt"] = "swapped"
    with pytest.raises(UserError, match="arrived damaged: 2,700 of 2,700 bytes; its checksum is"):
        one_file()
    assert not list((tmp_path / "cache/me--m").iterdir())
    del remote.wrong["me/m/a.txt"]
    assert one_file().read_bytes() == TEXT


def test_a_file_that_breaks_off_is_not_kept(remote, one_file, tmp_path):
    remote.wrong["a.txt"] = "cut"
    with pytest.raises(UserError, match="arrived damaged: 1,350 of 2,700 bytes"):
        one_file()
    assert not list((tmp_path / "cache/me--m").iterdir())


@pytest.mark.parametrize(
    "status, token, words",
    [
        ("404", None, "does not exist (the server answered 404)"),
        ("500", None, "answered 500 Internal Server Error). Run the command again later"),
        ("401", None, "gated or private"),
        ("401", None, "No HF_TOKEN is set: accept the terms on the repository's page"),
        ("403", "wrong", "The HF_TOKEN that is set may not read it"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_do(remote, one_file, monkeypatch, status, token, words):
    remote.wrong["me/m/a.txt"] = status
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError) as error:
        one_file()
    assert words in str(error.value)


@pytest.mark.parametrize("where", ["http://127.0.0.1:1", "http://nowhere.invalid", "no-address"])
def test_a_hub_that_cannot_be_reached_says_what_to_do_by_hand(
    one_file, monkeypatch, tmp_path, where
):
    monkeypatch.setenv("HF_ENDPOINT", where)
    with pytest.raises(UserError) as error:
        one_file()
    assert f"{where}/me/m/resolve/main/a.txt could not be fetched (" in str(error.value)
    assert f"put it at {tmp_path / 'cache/me--m/a.txt'}, or" in str(error.value)


def test_a_token_opens_a_gated_repository_through_the_command_line(remote, capsys, monkeypatch):
    remote.add("datasets/me/d", {"a.txt": TEXT}, large=True)
    remote.gated["datasets/me/d"] = "hf_right"
    code, text = fails(capsys, *TINY, "--data", "hf:me/d", "--out", "run")
    assert code == 1 and "set HF_TOKEN" in text and not Path("run").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert main([*TINY, "--data", "hf:me/d", "--out", "run"]) == 0


def test_a_token_is_not_shown_to_where_the_hub_sends_us(remote, monkeypatch):
    remote.add("me/m", {"a.txt": TEXT}, large=True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.fetch("me/m", "a.txt", "a local one")
    assert [token for _, token in remote.asked] == ["Bearer hf_secret", None]


def test_a_token_is_not_shown_to_other_servers(shakespeare, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    sources.read("shakespeare")
    assert shakespeare.asked[-1][1] is None


def test_a_cache_that_cannot_be_written_is_told(one_file, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BACKGLASS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be kept: .* set BACKGLASS_CACHE to another folder"):
        one_file()
