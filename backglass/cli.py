"""The command line: backglass COMMAND.  Each command is a dataclass with a run() in
backglass/commands/."""

from __future__ import annotations

import importlib
import sys

import tyro

from backglass.errors import UserError

# name -> class in backglass/commands/<name>.py
COMMANDS = {
    "train": "Train",
    "generate": "Generate",
    "trace": "TraceCommand",
    "studio": "Studio",
    "compare": "Compare",
    "check": "Check",
    "explain": "Explain",
    "program": "Program",
    "plan": "Plan",
    "bench": "Bench",
    "inspect": "Inspect",
    "convert": "Convert",
    "data": "Data",
    "plot": "Plot",
    "list": "List",
    "lines": "Lines",
    "doctor": "Doctor",
}


def main(argv: list[str] | None = None) -> int:
    """Entry point.  0 success, 1 a problem was found, 2 wrong use."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--version"]:
        from backglass import __version__

        print(f"backglass {__version__}")
        return 0
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            {name: load(name) if argv[:1] == [name] else summary(name) for name in COMMANDS},
            args=argv,
            prog="backglass",
            description="llm.c in Python: GPT-2, every forward and backward pass by hand.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.ConsolidateSubcommandArgs),
        )
        return command.run()
    except UserError as error:
        print(f"backglass: {error}", file=sys.stderr)
        return error.code
    except MemoryError as error:
        why = str(error) or "this process may have no more"
        print(f"backglass: there is not enough memory: {why}. Ask for less.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbackglass: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def load(name: str):
    """The class of a command."""
    return getattr(importlib.import_module(f"backglass.commands.{name}"), COMMANDS[name])


def summary(name: str) -> type:
    """The class with only the first sentence of its help, for the list of commands."""
    cls = load(name)
    return type(cls.__name__, (cls,), {"__doc__": (cls.__doc__ or "").partition("\n")[0]})
