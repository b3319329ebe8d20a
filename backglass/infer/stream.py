"""Text from tokens as they come, never half a character.

A token may hold part of a character's UTF-8 bytes. Decoded too early these show as U+FFFD, and
what has been printed cannot be taken back. So the last U+FFFD of the text is held until the next
tokens say what it is.
"""

from __future__ import annotations

from backglass.data.tokenizer import Tokenizer

UNKNOWN = "\ufffd"  # what a decoder makes of bytes that are not, or not yet, a character


class TextStream:
    """push(token) returns the text that has become certain; flush() the rest.

    The pieces join to tokenizer.decode(all tokens).
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []  # since the last whole character, and the one token before
        self.shown = 0  # characters of their text that were returned already

    def push(self, token: int) -> str:
        self.ids.append(int(token))
        text = self.tokenizer.decode(self.ids)
        # An unfinished character is one U+FFFD, however many of its bytes are there.
        certain = len(text) - text.endswith(UNKNOWN)
        piece = text[self.shown : certain]
        self.shown = max(self.shown, certain)
        if certain == len(text):
            # One token stays: some decoders treat the first of a text differently.
            self.ids = self.ids[-1:]
            self.shown = len(self.tokenizer.decode(self.ids))
        return piece

    def flush(self) -> str:
        """What is still held: the last character, if its bytes never became whole."""
        piece = self.tokenizer.decode(self.ids)[self.shown :]
        self.ids, self.shown = [], 0
        return piece
