"""Reads a forward as a graph without running it.

`statements.read` interprets the syntax tree of a forward (`source`) and of the functions that it calls, value by
value (`expressions`, `calls`, `builtins`). What it knows, such as modules, settings and numbers, it computes with;
everything else becomes a node of a `torch.fx` graph, in the same order. `state` looks up attributes and globals as
Python would, and notes each as an assumption (`assumptions`), which the block checks whenever its graph is to run.
`effects` says what code that is called, but not followed, may have set by then.
"""
