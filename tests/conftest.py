"""Shared by all tests: the repository's root on the path, so that train_gpt2.py can be imported;
a command run in this process."""

import sys
from pathlib import Path

import pytest

from backglass import cli

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


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
