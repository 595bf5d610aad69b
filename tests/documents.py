"""Code that stands in documents, taken out and run."""

from __future__ import annotations

import re
from typing import Any


def code_blocks(text: str, language: str) -> list[str]:
    """Return the blocks of a Markdown text in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(snippet: str, **given: Any) -> dict[str, Any]:
    """Return the variables that a snippet leaves."""
    variables = dict(given)
    exec(compile(snippet, "<snippet of a document>", "exec"), variables)  # noqa: S102  (ours, not a stranger's)
    return variables
