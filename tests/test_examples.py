"""Every example runs, stays short, and shows what it promises."""

import importlib.util
import re
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *args: str) -> None:
    load(next(p for p in EXAMPLES if p.stem == name)).main(list(args))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_shorter_than_60_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_there_are_no_others_than_those_tested():
    assert {p.stem for p in EXAMPLES} == {"adder", "char_model", "sorter"}


def test_char_model_trains_on_characters_and_samples(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("à la recherche du temps perdu. " * 60, encoding="utf-8")
    run("char_model", "--steps", "2", "--data", str(tmp_path / "a.txt"))
    out = capsys.readouterr().out
    assert "vocabulary 15;" in out and "the model continues" in out


@pytest.mark.parametrize("name", ["adder", "sorter"])
def test_accuracy_is_printed_before_and_after(name, capsys):
    run(name, "--steps", "3")
    out = capsys.readouterr().out
    before, after = re.findall(r"(?:before|after): +([\d.]+)%", out)
    assert 0 <= float(before) < 10 and 0 <= float(after) <= 100


def test_adder_never_trains_on_what_it_is_tested_on():
    adder = load(next(p for p in EXAMPLES if p.stem == "adder"))
    rows = adder.sums()
    assert len({tuple(row) for row in rows}) == 10_000
    assert rows[4785].tolist() == [4, 7, 8, 5, 2, 3, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adder", "sorter"])
def test_the_task_is_learned(name, capsys):
    run(name)
    after = re.findall(r"after: +([\d.]+)%", capsys.readouterr().out)[-1]
    assert float(after) > 99
