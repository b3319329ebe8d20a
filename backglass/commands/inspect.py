"""backglass inspect"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclass
class Inspect:
    """Name a file or folder, print what it holds, and hold its size against its header.

    Knows runs, checkpoints, Hugging Face models, safetensors, tokenizer.json, log.jsonl, text, the
    files of llm.c and llama2.c, and guesses nanoGPT's shards.  Exit 1 if something is damaged.

    For example:
      backglass inspect runs/a                             a run and its checkpoints
      backglass inspect gpt2_124M.bin                      a model of llm.c
      backglass inspect tiny_shakespeare_train.bin --json
    """

    path: Annotated[Positional[Path], arg(help="a file or folder", metavar="FILE")]
    json: Annotated[bool, arg(help="as JSON")] = False

    def run(self) -> int:
        from backglass.tools.recognise import recognise

        found = recognise(self.path)
        print(json.dumps(found.row(), default=str) if self.json else found.text())
        return 0 if found.sound else 1
