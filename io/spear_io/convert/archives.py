"""Zip archives from strangers: read in memory, member by member, never unpacked to disk and never without a limit."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files.safety import SMALL
from ..problems import FileError, Place, listing, size_text
from .source import EXPANSION, check_count, reading

BLOCK = 2**20
ENCRYPTED = 0x1
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive and hold what it claims against what is there.

    Raises
    ------
    FileError
        If it is damaged, packed in an unusual way, holds two members of one name, or unpacks to far more than its
        size. What a member claims is also the most that is ever read of it.
    """
    place = Place(path)
    with reading(place):
        archive = zipfile.ZipFile(path)
    with archive:
        members = archive.infolist()
        check_count(len(members), place)
        twice = [name for name, count in Counter(archive.namelist()).items() if count > 1]
        if twice:
            msg = f"an archive that holds {listing(twice)} more than once"
            raise FileError(msg, place, "export the file again")
        if any(member.compress_type not in PACKINGS or member.flag_bits & ENCRYPTED for member in members):
            msg = "an archive that is encrypted or packed in an unusual way"
            raise FileError(msg, place, "pack it with deflate, or not at all")
        claimed, size = sum(member.file_size for member in members), path.stat().st_size
        if claimed > max(SMALL, EXPANSION * size):
            msg = f"an archive of {size_text(size)} that would unpack to {size_text(claimed)}"
            raise FileError(msg, place, "if it is yours and means it, save it without packing (numpy.savez)")
        yield archive


def read_member(archive: zipfile.ZipFile, name: str, place: Place) -> io.BytesIO:
    """Return one member of an open archive, whole, and never more of it than it claims."""
    claimed = archive.getinfo(name).file_size
    content = io.BytesIO()
    with reading(place), archive.open(name) as member:
        while block := member.read(
            min(BLOCK, claimed + 1 - content.tell())
        ):  # `read()` would unpack all of it at once
            content.write(block)
            if content.tell() > claimed:
                msg = f"it unpacks to more than the {claimed} bytes that it claims"
                raise ValueError(msg)
    content.seek(0)
    return content
