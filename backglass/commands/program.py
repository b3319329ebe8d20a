"""backglass program"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from backglass.commands.options import Count, Text, opt


@dataclass
class Program:
    """Print the training step of a preset as the list of op calls it is, repeated layers folded.

    Examples:
      backglass program tiny
      backglass program gpt2-124m --batch-size 4 --seq-len 64 --no-fold
    """

    preset: Annotated[Positional[str], arg(metavar="PRESET")] = "tiny"
    batch_size: Annotated[Count, opt("sequences per micro-batch", "B")] = None
    seq_len: Annotated[Count, opt("tokens per sequence", "T")] = None
    attention: Annotated[Text, opt("flash or explicit", "NAME")] = None
    fold: Annotated[bool, arg(help="print repeated layers once")] = True
    json: Annotated[bool, arg(help="calls as JSON")] = False

    def run(self) -> int:
        from backglass import presets
        from backglass.models import gpt2
        from backglass.program.step import record_micro, record_update

        names = ("batch_size", "seq_len", "attention")
        given = {k: getattr(self, k) for k in names if getattr(self, k) is not None}
        s = presets.get(self.preset).replace(**given)
        c = s.model_config(s.vocab_size or 256)
        programs = {
            "micro": record_micro(gpt2, c, s.batch_size, s.seq_len).validate(),
            "update": record_update(gpt2, c).validate(),
        }
        if self.json:
            rows = [
                {
                    "program": name,
                    "line": i,
                    "phase": call.phase,
                    "op": call.op,
                    "where": call.where,
                    "text": str(call),
                }
                for name, program in programs.items()
                for i, call in enumerate(program)
            ]
            print(json.dumps(rows))
            return 0
        for name, program in programs.items():
            times = (
                f", {s.micro_batches} times a step"
                if name == "micro" and s.micro_batches > 1
                else ""
            )
            print(f"{name}: {len(program)} lines{times}")
            print(program.table(self.fold))
        return 0
