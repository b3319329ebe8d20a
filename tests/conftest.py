"""Shared by all tests: the repository's root on the path, so that train_gpt2.py can be imported;
this process interprets GPU kernels; a command run in it."""

import os
import sys
from pathlib import Path

import pytest

from backglass import cli
from backglass.device.interpret import SWITCHES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Before a test imports torch, which imports Triton, which reads its switch then.  Tests that
# compile start a process of their own, without them.
os.environ.update(dict.fromkeys(SWITCHES.values(), "1"))


@pytest.fixture
def run(capsys):
    """(exit code, output) of a command; never a traceback."""

    def run(*args: str) -> tuple[int, str]:
        try:
            code = cli.main([str(a) for a in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        return code, shown.out + shown.err

    return run
