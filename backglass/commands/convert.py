"""backglass convert"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional, arg

from backglass.commands.options import Text, opt
from backglass.errors import UserError, wrong_use

if TYPE_CHECKING:
    from backglass.data.tokenizer import Tokenizer
    from backglass.layout import Layout


@dataclass
class Convert:
    """Turn a model of one format into another: Hugging Face folders and llm.c's .bin files.

    SRC may be a run, a checkpoint, a Hugging Face folder or a model .bin of llm.c, in fp32 or bf16.
    There and back gives the same bytes wherever the dtype on the way can hold them.

    For example:
      backglass convert runs/a a.bin --to llmc                 our newest checkpoint, for llm.c
      backglass convert gpt2_124M.bin gpt2 --to hf             a folder that transformers loads
      backglass convert gpt2 gpt2_124M_bf16.bin --to llmc --dtype bf16
    """

    src: Annotated[Positional[str], arg(help="run, folder or file to read", metavar="SRC")]
    dst: Annotated[Positional[str], arg(help="folder or file to write", metavar="DST")]
    to: Annotated[Literal["hf", "llmc"], arg(help="a Hugging Face folder, or llm.c's model .bin")]
    dtype: Annotated[
        Literal["fp32", "bf16"], arg(help="of the file written; bf16 rounds to nearest")
    ] = "fp32"
    tokenizer: Annotated[
        Text,
        opt(
            "bytes, gpt2 or a tokenizer.json to put into the folder",
            "NAME",
            "(default: the source's, if it has one)",
        ),
    ] = None
    json: Annotated[bool, arg(help="what was written as JSON")] = False

    def run(self) -> int:
        from backglass import models
        from backglass.models import gpt2

        dst = Path(self.dst).resolve()
        if dst.exists() and (dst.is_file() or any(dst.iterdir())):
            raise wrong_use(f"{self.dst} already exists; choose another name or delete it first")
        if self.to == "llmc" and dst.is_dir():
            raise wrong_use(f"{self.dst} is a folder; llm.c's model is one file, such as model.bin")
        c, layout, flat, tokenizer = read_any(Path(self.src))
        if self.to == "llmc" and not isinstance(c, gpt2.Config):
            kind = models.title(c)
            raise wrong_use(f"--to llmc: {self.src} is a {kind}; llm.c's files hold GPT-2 only")
        tokenizer = self.chosen_tokenizer() or tokenizer
        if self.to == "hf" and tokenizer and tokenizer.vocab_size > c.vocab_size:
            raise wrong_use(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows "
                f"{c.vocab_size}; give with --tokenizer the one it was trained with"
            )
        try:
            dst.parent.mkdir(parents=True, exist_ok=True)
            if self.to == "hf":
                write_folder(dst, c, layout, flat, self.dtype, tokenizer)
            else:
                from backglass.formats import llmc

                llmc.write_model(dst, c, layout, flat, self.dtype)
        except OSError as error:
            raise UserError(
                f"{self.dst} could not be written: {error.strerror or error}. Nothing was kept."
            ) from None
        self.report(dst, layout, tokenizer)
        return 0

    def chosen_tokenizer(self) -> Tokenizer | None:
        from backglass.data.tokenizer import build

        if self.tokenizer and self.to == "llmc":
            raise wrong_use("--tokenizer belongs to --to hf; llm.c's model file holds none")
        if self.tokenizer and self.tokenizer.startswith("bpe:"):
            raise wrong_use("--tokenizer bpe:N would be learned anew; give its tokenizer.json")
        return build(self.tokenizer, ()) if self.tokenizer else None

    def report(self, dst: Path, layout: Layout, tokenizer: Tokenizer | None) -> None:
        files = sorted(dst.iterdir()) if dst.is_dir() else [dst]
        size = sum(f.stat().st_size for f in files)
        if self.json:
            row = {"path": self.dst, "format": self.to, "dtype": self.dtype, "bytes": size}
            print(json.dumps(row | {"parameters": layout.count}))
            return
        print(f"{self.dst}: {layout.count:,} parameters, {self.dtype}, "
              f"{size:,} bytes")  # fmt: skip
        if self.to == "hf" and not tokenizer:
            print("It holds no tokenizer.json, as the source names none; --tokenizer adds one.")


def read_any(src: Path) -> tuple[Any, Layout, np.ndarray, Tokenizer | None]:
    """Config, layout, fp32 parameters and, where there is one, the tokenizer of a model on disk."""
    from backglass import models
    from backglass.data import tokenizer
    from backglass.formats import hf, llmc
    from backglass.layout import Layout
    from backglass.training import checkpoint

    if not src.exists():
        raise wrong_use(
            f"there is no {src}. Give a run, a checkpoint, a Hugging Face folder or a model .bin "
            "of llm.c."
        )
    if src.is_file():
        return *llmc.read_model(src), None
    folder = checkpoint.find(src)
    c = hf.read_config(folder)
    layout = Layout(models.of(c).PARAMS, c.sizes(1, 1), "fp32")
    flat = hf.tensors_in(layout, folder)
    path = folder / "tokenizer.json"
    return c, layout, flat, tokenizer.load(path) if path.exists() else None


def write_folder(
    dst: Path, c: Any, layout: Layout, flat: np.ndarray, dtype: str,
    tokenizer: Tokenizer | None,
) -> None:  # fmt: skip
    """A Hugging Face folder, atomically."""
    from safetensors.numpy import save_file

    from backglass.formats import hf, hf_config
    from backglass.training import checkpoint
    from backglass.training.files import new_folder, write_json, write_text
    from backglass.view import DTYPES

    config = hf_config.write(c, tokenizer.end_of_text if tokenizer else None)
    config["torch_dtype"] = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    tensors = hf.tensors_out(layout, flat)
    tensors = {name: w.astype(DTYPES[dtype], copy=False) for name, w in tensors.items()}
    with new_folder(dst) as part:
        write_json(part / "config.json", config)
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        if tokenizer:
            write_json(part / "generation_config.json", checkpoint.generation_config(tokenizer))
            write_text(part / "tokenizer.json", tokenizer.to_json())
