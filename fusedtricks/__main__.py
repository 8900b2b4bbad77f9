"""The command line: `python -m fusedtricks info|demo`, or the installed command `fusedtricks`."""

from __future__ import annotations

import argparse
import sys


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fusedtricks", description="Fused training layers for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="show what was built, and run a self-check of each backend")
    commands.add_parser("demo", help="train the same network with stock and with fused layers", add_help=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "demo":
        from fusedtricks import demo

        return demo.main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    from fusedtricks import info

    return info.main()


if __name__ == "__main__":
    sys.exit(main())
