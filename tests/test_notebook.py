"""The notebook for a free GPU runs, on the CPU and small: its Python in here, its `!` lines through
the command line.  Jupyter is not needed."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from backglass import cli

ROOT = Path(__file__).parent.parent
NOTEBOOK = json.loads((ROOT / "examples" / "colab.ipynb").read_text(encoding="utf-8"))
# What the notebook says -> what is run here
SMALLER = {
    'DEVICE, STEPS, OUT = "cuda", 800,': 'DEVICE, STEPS, OUT = "cpu", 3,',
    "--layers 4 --heads 4 --channels 256 --seq-len 256 --batch-size 32":
        "--layers 1 --heads 2 --channels 16 --seq-len 32 --batch-size 2 --val-batches 1",
}  # fmt: skip


def code_cells() -> list[str]:
    return ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]


def cell_with(words: str) -> str:
    (found,) = [cell for cell in code_cells() if words in cell]
    return found


def execute(cell: str, names: dict) -> None:
    """A cell as IPython runs it: `!` lines are commands, in which {NAME} is a variable."""
    python: list[str] = []
    for line in [*cell.splitlines(), "!"]:
        if not line.startswith("!"):
            python.append(line)
            continue
        exec("\n".join(python), names)
        python = []
        words = shlex.split(re.sub(r"\{(\w+)\}", lambda m: str(names[m[1]]), line[1:]))
        if words[:1] == ["backglass"]:
            code = cli.main(words[1:])
            assert code == 0 or words[1] == "doctor", line


def test_the_notebook_is_valid_and_keeps_no_outputs():
    assert NOTEBOOK["nbformat"] == 4 and NOTEBOOK["nbformat_minor"] >= 5
    assert len({c["id"] for c in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None


def test_the_notebook_installs_an_extra_that_exists():
    extra = re.search(r'pip install -q "backglass\[(\w+)\] @ git\+\{REPOSITORY\}"', code_cells()[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extra and extra[1] in project["optional-dependencies"]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the cells have defined, all of them having run, in a folder of their own."""
    import matplotlib

    matplotlib.use("Agg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        found: dict = {}
        text = "\0".join(code_cells())
        for theirs, ours in SMALLER.items():
            assert text.count(theirs) == 1, theirs
            text = text.replace(theirs, ours)
        for cell in text.split("\0"):
            execute(cell, found)
        found["folder"] = Path.cwd()
        found["curve"] = Path("curve.png").read_bytes()
        found["log"] = Path(found["OUT"], "log.jsonl").read_text(encoding="utf-8")
    return found


def test_the_notebook_trains_to_a_loss(names):
    steps = [e for e in map(json.loads, names["log"].splitlines()) if e["event"] == "step"]
    assert len(steps) == names["STEPS"] and 0 < steps[-1]["loss"] < 6


def test_the_notebook_draws_a_curve(names):
    assert names["curve"].startswith(b"\x89PNG") and len(names["plt"].gcf().axes) == 1


def test_the_notebook_checks_a_gradient_that_is_not_zero(names):
    assert names["backward"] != 0


def test_the_check_of_a_gradient_fails_for_a_wrong_one(names):
    wrong = cell_with("difference").replace(
        "difference = ", "backward = backward * 1.001\ndifference = "
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(names["folder"])
        with pytest.raises(AssertionError):
            execute(wrong, dict(names))
