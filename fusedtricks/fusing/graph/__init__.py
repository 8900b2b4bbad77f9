"""Graphs of forwards: which layers there are, which chains, whether fusing them is legal, and the rewriting."""
