"""The documentation holds: every command parses, every path and every function named exists."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from backglass import cli

ROOT = Path(__file__).parent.parent
DOCS = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")])
OURS = "backglass|tests|examples|docs|bench|lessons"
PATH = re.compile(rf"(?<![\w/.:-])((?:(?:{OURS})/[\w.*/-]*|train_gpt2\.py))(?::(\w+))?")
GENERATED = ("bench/results",)  # made by commands, not kept in the repository


def commands(text: str) -> list[str]:
    """Every `backglass …` in inline code, and every line of a code block that starts with it."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.S | re.M)
    inline = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    found = [m.strip() for m in re.findall(r"`((?:\$ )?backglass(?: [^`\n]*)?)`", inline)]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if re.match(r"(python -m )?backglass( |$)", line):
                found.append(re.sub(r"\s\s+\S.*$|\s#.*$", "", line).removeprefix("python -m "))
    return [c.removeprefix("$ ") for c in found]


def parses(command: str) -> str:
    """An empty string, or what is wrong with a command."""
    line = re.split(r"\s[|>&;]", command)[0]
    words = shlex.split(line)[1:]
    if not words or words[0] in ("--help", "--version") or words[0].isupper():
        return ""
    if words[0] not in cli.COMMANDS:
        return f"there is no command {words[0]!r}"
    if "--help" in words:
        words.remove("--help")
    try:
        tyro.cli(
            cli.load(words[0]),
            args=words[1:],
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.ConsolidateSubcommandArgs),
        )
    except SystemExit as stop:
        return f"wrong use (exit {stop.code})"
    return ""


def missing(text: str) -> list[str]:
    """Paths of ours that do not exist, and functions that are not in the file they are said to be
    in.  `*` matches any name."""
    found = []
    for path, name in PATH.findall(text):
        path = path.rstrip(".")
        if path.startswith(GENERATED):
            continue
        files = [ROOT / path] if "*" not in path else list(ROOT.glob(path))
        if not files or not files[0].exists():
            found.append(path)
        elif name and not re.search(
            rf"^\s*(?:def|class) {name}\b|^{name}\b.*=", files[0].read_text(encoding="utf-8"), re.M
        ):
            found.append(f"{path}:{name}")
    return found


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_command_in_the_documentation_parses(path, capsys):
    wrong = {c: parses(c) for c in commands(path.read_text(encoding="utf-8"))}
    assert not {c: why for c, why in wrong.items() if why}, capsys.readouterr().out[-2000:]


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_path_and_function_in_the_documentation_exists(path):
    assert missing(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_inside_the_repository_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_llm_c_page_names_every_kernel_file_of_llm_c():
    text = (ROOT / "docs" / "llm.c.md").read_text(encoding="utf-8")
    names = (
        "adamw cublas_common cuda_common cuda_utils cudnn_att dataloader fused_classifier "
        "global_norm layernorm logger mfu outlier_detector rand sampler schedulers tokenizer utils "
        "zero train_gpt2.c train_gpt2.cu train_gpt2_fp32.cu test_gpt2.c test_gpt2.cu "
        "profile_gpt2.cu train_llama3.py export_hf.py hellaswag.py mmlu.py fineweb.py "
        "tinyshakespeare.py tinystories.py data_common.py run_gpt2_124M.sh run_gpt3_125M.sh"
    )
    assert [n for n in names.split() if n not in text] == []


@pytest.mark.parametrize(
    "text, words",
    [
        ("`backglass juggle`", "no command"),
        ("`backglass train tiny --nosuchflag 3`", "wrong use"),
        ("```\n$ backglass train tiny --steps many\n```", "wrong use"),
        ("```\nbackglass program tiny --no-such   and words\n```", "wrong use"),
    ],
)
def test_a_command_that_does_not_exist_is_found(text, words, capsys):
    assert words in parses(commands(text)[0])


def test_a_command_that_exists_passes_with_comment_pipe_and_help():
    text = "```\nbackglass program tiny --json | head   # calls\nbackglass train --help\n```"
    assert [parses(c) for c in commands(text)] == ["", ""]


def test_a_path_or_function_that_does_not_exist_is_found():
    text = "`backglass/nothing.py`, `train_gpt2.py:nothing`, `backglass/ops/*/maths.py`, `docs/`"
    assert missing(text) == ["backglass/nothing.py", "train_gpt2.py:nothing"]
    assert missing("https://example.org/backglass/nothing.py and llmc/adamw.cuh") == []


def test_the_japanese_readme_has_the_same_code_blocks():
    def blocks(name: str) -> list[str]:
        return re.findall(r"^```[^\n]*\n.*?^```", (ROOT / name).read_text("utf-8"), re.S | re.M)

    assert len(blocks("README.md")) > 10
    assert blocks("README.ja.md") == blocks("README.md")
