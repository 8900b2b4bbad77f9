"""Benchmarks: see `python benchmarks/run.py --help`. They need the extra "bench" (rich, matplotlib)."""
