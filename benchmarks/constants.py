"""Every threshold of the solver, read off its source: where, how large, and where its value comes from.

    python -m benchmarks.constants > docs/thresholds.md

A module constant of `spear_np` that is a number has a docstring: first what it decides, then a paragraph that begins with
one of the kinds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

SOLVER = Path(__file__).parent.parent / "spear_np"
KINDS = ("Definition", "Derived", "Measured", "Heuristic")
FUNCTIONS = ("factors/activation.py", "kernels/splitmix.py", "theory.py")
"""Modules whose constants belong to formulas: they decide nothing."""
HEAD = """# Thresholds

Every number that decides what counts as zero, clear, many or late. This page is made from the source by
`python -m benchmarks.constants`, and a test holds the two together: change the constant and its docstring, then make it anew.

| kind | what the value rests on |
| --- | --- |
| definition | it says what a word means, such as `exact`: another value is another promise |
| derived | a formula or a bound, which is stated |
| measured | figures, and the program that prints them |
| heuristic | judgement. What halving and doubling it does to five kinds of batches: [benchmarks/results/thresholds.md](../benchmarks/results/thresholds.md) |

The rooms are those of [architecture.md](architecture.md).
"""


@dataclass(frozen=True)
class Threshold:
    """One module constant."""

    module: str
    """Path below `spear_np/`."""
    name: str
    text: str
    """Its value as written."""
    meaning: str
    kind: str
    """One of `KINDS`; empty if its docstring names none."""
    source: str
    """Where the value comes from."""


def thresholds() -> list[Threshold]:
    """Return all of them, by module and in the order of the source."""
    return [
        threshold
        for path in sorted(SOLVER.rglob("*.py"))
        if (module := path.relative_to(SOLVER).as_posix()) not in FUNCTIONS
        for threshold in _of_module(module, ast.parse(path.read_text()))
    ]


def _of_module(module: str, tree: ast.Module) -> Iterator[Threshold]:
    """Constants whose value is made of numbers."""
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name = node.targets[0].id
        if not name.lstrip("_").isupper() or not _numeric(node.value):
            continue
        meaning, kind, source = _documentation(following)
        yield Threshold(module, name, ast.unparse(node.value), meaning, kind, source)


def _numeric(value: ast.expr) -> bool:
    """Whether an expression has numbers, and texts at most as the keys of a table."""
    texts = (node for node in ast.walk(value) if isinstance(node, ast.Constant))
    numbers = [node for node in texts if isinstance(node.value, int | float)]
    called = [node for node in ast.walk(value) if isinstance(node, ast.Call)]
    casts = all(isinstance(call.func, ast.Name) and call.func.id == "float" for call in called)
    return bool(numbers or called) and casts


def _documentation(node: ast.stmt | None) -> tuple[str, str, str]:
    """Meaning, kind and source in the docstring that `node` is."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return "", "", ""
    text = " ".join(str(node.value.value).split())
    for kind in KINDS:
        meaning, found, source = text.partition(f"{kind}: ")
        if found:
            return meaning.strip(), kind, source.strip()
    return text, "", ""


def literals() -> Iterator[tuple[str, int, Any]]:
    """Yield (module, line, number) for every number in the body of a function of the solver, defaults apart."""
    for path in sorted(SOLVER.rglob("*.py")):
        module = path.relative_to(SOLVER).as_posix()
        if module in FUNCTIONS:
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for statement in function.body:
                    for node in ast.walk(statement):
                        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
                            yield module, node.lineno, node.value


def page() -> str:
    """Return docs/thresholds.md."""
    lines = [HEAD]
    for module, members in groupby(thresholds(), key=attrgetter("module")):
        lines += [
            f"## `{module}`",
            "",
            "| constant | value | decides | kind | source |",
            "| --- | --- | --- | --- | --- |",
        ]
        for one in members:
            cells = (f"`{one.name}`", f"`{one.text}`", one.meaning, one.kind.lower(), one.source)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
