"""The tutorial: its blocks run as they stand, one after the other, and end in a report."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.documents import code_blocks
from tests.documents import run as run_code
from tests.io_files import command

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
STEPS = ("inspect", "invert", "report", "export")
"""Subcommands to run; `audit` takes its minute in its own tests, and `convert` is told of other files."""


def headings(printed: str) -> list[str]:
    """What stands over the columns of every table."""
    lines = printed.splitlines()
    over = [lines[number - 1] for number, line in enumerate(lines) if line.strip().startswith("──")]
    return [name for line in over for name in re.split(r"\s{2,}", line.strip())]


def test_it_leads_to_a_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spear = command(capsys)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (code,) = code_blocks(PAGE, "python")
    run_code(code)
    lines = [
        shlex.split(line, comments=True)
        for block in code_blocks(PAGE, "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    told = [words[1:] for words in lines if words[0] == "spear-np" and words[1] in STEPS]
    assert [arguments[0] for arguments in told] == list(STEPS)
    for arguments in told:
        run = spear(*arguments)
        assert run.status == 0, run.error
        if arguments[0] in ("inspect", "invert"):
            assert headings(run.out)
            assert [name for name in headings(run.out) if f"`{name}`" not in PAGE] == []
        if arguments[0] == "invert":
            assert "exact if layers linked, plain where W is blind" in " ".join(run.out.split())
    assert (tmp_path / "report.html").stat().st_size > 50_000
    assert len(list((tmp_path / "pictures").rglob("*.png"))) > 30
