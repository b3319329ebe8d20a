"""against check: does a training step compute what another program computed?

llm.c publishes a *debug state*: one batch, and the logits, the loss and all sixteen gradients that
PyTorch found for it.  We run the same batch through the same weights and compare, one result for
each of the eighteen; a tensor of the blocks is compared with all its layers together.

Errors are norm-scaled: rms(ours − theirs) / rms(truth).  The bound is derived, not chosen:

 1  truth: the maths in float64 on the file's weights, which fp32 and bf16 files give exactly.
 2  naive: the same maths in float32.  rms(naive − truth) is what rounding does to this tensor.
 3  The rule of every kernel check allows one fp32 program the error
        E = max(2 · rms(naive − truth), 4 ulp · rms(truth)).
 4  That bounds rms(ours − truth).  Their numbers come out of fp32 arithmetic just as ours do, and
    are then stored in fp32, so rms(theirs − truth) has the same bound.
 5  Triangle inequality: rms(ours − theirs) ≤ E + E.  The bound is 2·E / rms(truth).

The loss is one number, and one number's rounding error can be 0 by chance, so line 2 takes the rms
over the tokens' own losses: |mean of the errors| ≤ rms of the errors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backglass.checks.kernel import ULP, rms
from backglass.checks.op import Result
from backglass.device import get
from backglass.errors import UserError, wrong_use
from backglass.execute.eager import Eager
from backglass.formats import llmc
from backglass.layout import Layout, is_layered
from backglass.models import gpt2
from backglass.training.session import Session
from backglass.training.settings import Settings

SUFFIX = "_debug_state.bin"


def check_against(
    debug_state_path: str | Path, model_path: str | Path | None = None, device: str = "cpu"
) -> list[Result]:
    """Eighteen results: logits, loss, and the gradient of each parameter.

    model_path: the weights; without it the file that llm.c writes beside the debug state, X.bin for
    X_debug_state.bin.  Raises UserError if a file is missing, damaged or of another model.
    """
    path = Path(debug_state_path)
    model = Path(model_path) if model_path else model_beside(path)
    header = llmc.read_header(model)
    state = llmc.read_debug_state(path, header)
    c, layout, flat = llmc.read_model(model)
    B, T = state.x.shape
    case = f"B={B} T={T} fp32 {device}"
    ours = evaluate(c, layout, flat, state, device, "fp32")
    naive = evaluate(c, layout, flat, state, "numpy", "fp32")
    truth = evaluate(c, layout, flat, state, "numpy", "fp64")
    theirs = {"logits": state.logits, "loss": np.float64(state.loss)}
    theirs |= {f"d{name}": g for name, g in state.grads.items()}
    theirs["dwte"] = theirs["dwte"][: c.vocab_size]
    results = []
    for name, want in truth.items():
        found = ours[name].astype(np.float64)
        naive_error = rms(naive[name] - want)
        if name == "loss":
            want, found = want.mean(), found.mean()
        size = max(rms(want), 1e-300)
        allowed = 2 * max(2 * naive_error, 4 * ULP["fp32"] * size)
        error = rms(found - theirs[name])
        results.append(Result("against", "gpt2", name, case, error / size, allowed / size))
    return results


def model_beside(path: Path) -> Path:
    """The model file that belongs to a debug state by its name."""
    if not path.name.endswith(SUFFIX):
        raise wrong_use(
            f"{path} is not named …{SUFFIX}, so the model it belongs to is unknown. Name it, or "
            "rename the file as llm.c does: gpt2_124M_debug_state.bin beside gpt2_124M.bin."
        )
    model = path.with_name(path.name.removesuffix(SUFFIX) + ".bin")
    if path.exists() and not model.exists():
        raise UserError(
            f"{model} does not exist; {path.name} can only be checked with the model it was made "
            "with beside it"
        )
    return model


def evaluate(
    c: gpt2.Config, layout: Layout, flat: np.ndarray, state: llmc.DebugState, device: str,
    dtype: str,
) -> dict[str, np.ndarray]:  # fmt: skip
    """logits (B, T, V), loss of each token (B, T), gradients d… without pad rows, as a training
    step on this device computes them."""
    B, T = state.x.shape
    s = Settings(
        layers=c.layers, heads=c.heads, channels=c.channels, vocab_size=c.vocab_size,
        batch_size=B, seq_len=T, device=device, dtype=dtype,
    )  # fmt: skip
    session = Session(c, s, get(device))
    for ours, theirs in zip(session.t.layout.slots, layout.slots, strict=True):
        llmc.tensor_of(session.flats["p"], ours)[...] = llmc.tensor_of(flat, theirs)
    session.gradients([(state.x, state.y)], 0)
    found = {"loss": session.memory.array(session.t.io.loss).copy()}
    # The step fuses the logits away where it can, so they are made once more, line by line.
    gpt2.logits_forward(
        Eager(session.device, session.memory), c, session.t.p, session.t.a, session.t.io
    )
    logits = session.memory.array(session.t.a.logits)[..., : c.vocab_size]
    return {"logits": logits} | found | gradients(session)


def gradients(session: Session) -> dict[str, np.ndarray]:
    """dwte, dwpe, dln1w (L, C), …: each parameter's gradient, layers stacked, pad rows dropped."""
    found = {}
    layout, dp = session.t.layout, session.flats["dp"]
    for param in layout.params:
        parts = [llmc.tensor_of(dp, s) for s in layout.slots if s.param == param]
        found[f"d{param.name}"] = np.stack(parts) if is_layered(param.dims) else parts[0]
    found["dwte"] = found["dwte"][: session.c.vocab_size]
    return found
