"""Shared by all tests: the repository's root on the path, so that train_gpt2.py can be imported."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
