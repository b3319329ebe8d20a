"""The planner against reality: what GPT-2 124M takes is what the plan said, and a step allocates
nothing."""

import json
import subprocess
import sys

import pytest

STEPS = """
import json, resource, tracemalloc
import numpy as np
from backglass import device
from backglass.models import gpt2
from backglass.training.session import Session
from backglass.training.settings import Settings

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()

cpu = device.get("cpu")
before = resident()
s = Settings(layers=12, heads=12, channels=768, vocab_size=50257, seq_len=64, batch_size=4)
session = Session(gpt2.Config(max_seq_len=1024), s, cpu)
session.init()
ids = np.random.default_rng(0).integers(0, 50257, (4, 65)).astype(np.int32)
batch = [(ids[:, :-1], ids[:, 1:])]
grown = 0
for step in range(13):
    if step == 2:
        tracemalloc.start()
        start = tracemalloc.get_traced_memory()[0]
    session.gradients(batch, step)
    session.update(step)
grown = tracemalloc.get_traced_memory()[0] - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
arena = max(p.peak for p in session.plans.values())
states = sum(session.state_bytes().values())
print(json.dumps(dict(before=before, arena=arena, states=states, peak=peak, grown=grown)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_gpt2_124m_takes_what_the_planner_said_and_steps_allocate_nothing():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    m = json.loads(done.stdout)
    said = m["before"] + m["arena"] + m["states"]
    assert abs(m["peak"] - said) <= 0.1 * m["peak"], m
    assert m["grown"] < 1_000_000, m
