"""How the words of `spear-np convert` are read, where typer needs help."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

FOLLOWS = "--follows"
EACH = "each"
"""What `--follows` alone stands for."""


class ConvertCommand(TyperCommand):
    """The command with an option that takes a value only if it is one: `--follows`, `--follows fc2=fc1`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give every bare `--follows` the value that it stands for, then parse as usual."""
        end = args.index("--") if "--" in args else len(args)
        options = [
            f"{FOLLOWS}={EACH}" if word == FOLLOWS and not is_link(following) else word
            for word, following in zip(args[:end], [*args[1:end], ""], strict=True)
        ]
        rest: list[str] = super().parse_args(ctx, options + args[end:])
        return rest


def is_link(word: str) -> bool:
    """Whether `word` has the form LAYER=EARLIER."""
    layer, _, before = word.partition("=")
    return bool(layer and before) and not word.startswith("-")
