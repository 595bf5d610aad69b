"""`python -m spear_io` is the command `spear-np`."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command and return its exit status; a Ctrl-C while it is loaded is one line as well."""
    try:
        from .cli.main import main

        return main()
    except KeyboardInterrupt:
        print("spear-np: error: interrupted; nothing was written", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run())
