"""Benchmarks, which need the extra "bench" (rich, matplotlib): `python benchmarks/run.py --help`."""
