"""A character-level model of any text: the vocabulary is the characters that occur in it.

python examples/char_model.py                      CPython's documentation, about a minute
python examples/char_model.py --data poems.txt     your own text
"""

import argparse
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models

import backglass as bg
from backglass.data import sources


def character_tokenizer(text: str) -> Tokenizer:
    """One token per character; a BPE without merges is exactly that."""
    inner = Tokenizer(models.BPE({char: i for i, char in enumerate(sorted(set(text)))}, merges=[]))
    inner.decoder = decoders.Fuse()
    return inner


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="python-docs", help="a text file, or python-docs")
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args(argv)

    text = "".join(b for document in sources.read(args.data).documents() for b in document)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(character_tokenizer(text).to_str(), encoding="utf-8")
        settings = bg.presets.tiny(
            data=args.data,
            tokenizer=str(path),
            steps=args.steps,
            schedule_steps=args.steps,
            val_every=max(1, args.steps // 5),
        )
        bg.train(settings)  # prints its progress and, at the end, a sample


if __name__ == "__main__":
    main()
