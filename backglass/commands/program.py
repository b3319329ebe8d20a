"""backglass program"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from backglass.commands.options import Count, Text, opt
from backglass.errors import wrong_use


@dataclass
class Program:
    """Print the training step of a preset as the list of op calls it is, repeated layers folded.

    For example:
      backglass program tiny
      backglass program gpt2-124m --batch-size 4 --seq-len 64 --no-fold
      backglass program gpt2-124m --recompute fch_gelu --fuse     before and after
    """

    preset: Annotated[Positional[str], arg(metavar="PRESET")] = "tiny"
    batch_size: Annotated[Count, opt("sequences per micro-batch", "B")] = None
    seq_len: Annotated[Count, opt("tokens per sequence", "T")] = None
    attention: Annotated[Text, opt("flash or explicit", "NAME")] = None
    recompute: Annotated[
        str, arg(help="activations to make again in the backward", metavar="A,B")
    ] = ""
    fuse: Annotated[bool, arg(help="replace compositions by fused ops")] = False
    fold: Annotated[bool, arg(help="print repeated layers once")] = True
    json: Annotated[bool, arg(help="calls as JSON")] = False

    def run(self) -> int:
        from backglass import models, presets
        from backglass.program.step import record_micro, record_update

        names = ("batch_size", "seq_len", "attention")
        given = {k: getattr(self, k) for k in names if getattr(self, k) is not None}
        s = presets.get(self.preset).replace(**given)
        c = s.model_config(s.vocab_size or 256)
        model = models.of(c)
        micro = record_micro(model, c, s.batch_size, s.seq_len).validate()
        programs = {"micro": micro, "update": record_update(model, c).validate()}
        if self.recompute or self.fuse:
            programs["micro, transformed"] = self.transformed(micro).validate()
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

    def transformed(self, program):
        """The program after recompute and fuse, in that order."""
        fields = [f for f in self.recompute.split(",") if f]
        try:
            program = program.recompute(*fields) if fields else program
        except ValueError as error:
            raise wrong_use(f"--recompute {self.recompute}: {error}") from None
        return program.fuse() if self.fuse else program
