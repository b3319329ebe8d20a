"""The op table: every folder in here that has a maths.py, and user ops loaded by path."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType

from backglass.spec import OpSpec, Signature


@dataclass(frozen=True)
class Op:
    """One op's home: its spec and where its tiers live."""

    name: str
    package: str

    @cached_property
    def maths(self) -> ModuleType:
        return importlib.import_module(f"{self.package}.maths")

    @cached_property
    def spec(self) -> OpSpec:
        return self.maths.SPEC

    @cached_property
    def fused(self) -> dict[str, OpSpec]:
        """The specs of the fused calls whose main op this is; `equals` says what they compute."""
        module = self.tier("fused")
        return module.FUSED if module else {}

    @cached_property
    def signatures(self) -> dict[str, Signature]:
        """Every call of the op.  A call has those of the spec's attrs that its maths function
        takes."""
        found = {
            call: replace(s, attrs={k: v for k, v in s.attrs.items() if k in self.keywords(call)})
            for call, s in self.spec.signatures(self.name).items()
        }
        for call, spec in self.fused.items():
            found |= {call: replace(spec.signatures(call)[call], op=self.name)}
        return found

    def keywords(self, call: str) -> frozenset[str]:
        """Keyword-only parameters of a maths function: its attrs and the sizes it asks for."""
        found = inspect.signature(getattr(self.maths, call)).parameters.values()
        return frozenset(p.name for p in found if p.kind is p.KEYWORD_ONLY)

    def tier(self, name: str) -> ModuleType | None:
        """The module `cpu`, `gpu` or `ladder.v2_blocked`, or None if this op has no such file."""
        full = f"{self.package}.{name}"
        try:
            found = importlib.util.find_spec(full)
        except ModuleNotFoundError:
            found = None
        return importlib.import_module(full) if found else None

    def __repr__(self) -> str:
        sentence = (self.maths.__doc__ or "").strip().partition("\n")[0]
        return f"<op {self.name}: {sentence}>"


_table: dict[str, Op] = {}


def table() -> dict[str, Op]:
    """Every op by name."""
    if not _table:
        folder = Path(__file__).parent
        for info in pkgutil.iter_modules([str(folder)]):
            if info.ispkg and (folder / info.name / "maths.py").exists():
                _table[info.name] = Op(info.name, f"{__name__}.{info.name}")
    return _table


def load_op(path: str | Path) -> Op:
    """Add the op whose folder is `path`; it is then checked, benched and traced like ours.

    Raises ValueError if the folder has no maths.py or its name is taken.
    """
    folder = Path(path).resolve()
    if not (folder / "maths.py").exists():
        raise ValueError(f"{folder} is not an op: there is no maths.py in it")
    if folder.name in table():
        raise ValueError(f"an op called {folder.name!r} exists already; rename {folder}")
    if str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
    op = Op(folder.name, folder.name)
    table()[op.name] = op
    signature.cache_clear()
    return op


@cache
def signature(call: str) -> Signature:
    """The signature of a call such as 'd_matmul_x'.  Raises AttributeError with the known names."""
    for op in table().values():
        if call in op.signatures:
            return op.signatures[call]
    known = sorted(c for op in table().values() for c in op.signatures)
    raise AttributeError(f"there is no op call {call!r}; known: {', '.join(known)}")


def rungs_of(op: str, kind: str) -> dict[str, str]:
    """The rungs of an op's ladder for cpu or gpu: version -> module.  Empty if it has none."""
    ladder = table()[op].tier("ladder") if op in table() else None
    return getattr(ladder, {"cpu": "VERSIONS", "gpu": "GPU_VERSIONS"}[kind], {})


def known_rungs(op: str, kind: str) -> str:
    """A sentence about the rungs there are."""
    if op not in table():
        return f"there is no op {op!r}"
    names = ", ".join(rungs_of(op, kind))
    return f"{op} has the rungs {names}" if names else f"{op} has no ladder for the {kind}"


def __getattr__(name: str) -> Op:
    if name.startswith("_"):
        raise AttributeError(name)
    if name in table():
        return table()[name]
    raise AttributeError(f"there is no op {name!r}; there are {', '.join(sorted(table()))}")
