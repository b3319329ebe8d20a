"""backglass: llm.c in Python.  GPT-2 trained with every forward and backward pass written by
hand."""

__version__ = "0.1.0"
