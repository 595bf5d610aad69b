"""Pages of one file each: templates filled, nothing loaded from anywhere, no script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...files.atomic import new_file
from ...files.inversion import open_inversion
from ...files.limits import working
from ...problems import FileError, Place
from ..beside import beside
from .content import Report
from .gather import gather

MARK = b'<meta name="generator" content="spear-np">'
"""What tells a page of ours from other files of that name."""
WHAT = "a page that spear-np wrote"
TEMPLATES = Path(__file__).parent / "templates"
LARGEST_PAGE = 20_000_000
"""Bytes of a page: more is slow to open and cannot be sent by mail."""


def write_report(
    inversion: Path,
    output: Path,
    *,
    against: Path | None = None,
    of_data: bool | None = None,
    title: str | None = None,
    replace_any: bool = False,
) -> Report:
    """Write the page about an inversion, and return what is on it.

    Parameters
    ----------
    inversion : Path
        A file written by `spear-np invert`.
    output : Path
        The page; appears whole or not at all.
    against : Path, optional
        The dump it came from, or true inputs: see `spear_io.show.beside.beside`.
    of_data : bool, optional
        Whether true inputs that no dump holds are in the units of the data; by default whichever fits better.
    title : str, optional
        Instead of "What this update gives away".
    replace_any : bool
        Whether `output` may replace a file that is no page of ours.

    Raises
    ------
    FileError
        If a file cannot be read, what stands beside it does not fit, or the page cannot be written.
    """
    sources = [path for path in (inversion, against) if path is not None]
    with (
        open_inversion(inversion) as opened,
        beside(against, opened, of_data=of_data) as other,
        new_file(output, what=WHAT, mark=MARK, sources=sources, replace=replace_any) as write,
    ):
        report = gather(opened, other, title=title)
        with working():
            page = rendered("report.html", report=report).encode()
        if len(page) > LARGEST_PAGE:
            msg = f"the page would be {len(page) / 1e6:.0f} MB long"
            raise FileError(msg, Place(output), "use spear-np export for a file with so much in it")
        write(page)
    return report


def rendered(template: str, **values: Any) -> str:
    """Return a page; every value is text until its template says otherwise."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (TEMPLATES / "page.css").read_text()
    return environment.get_template(template).render(style=style, version=_version(), **values)


def _version() -> str:
    import spear_np

    return spear_np.__version__
