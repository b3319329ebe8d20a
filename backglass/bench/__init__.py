"""Benchmarks: ours and rivals in one run, each in a process of its own, with what reproduces
them."""
