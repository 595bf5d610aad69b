"""The command on a card: few kernels, one line while they are compiled, one line where the card is none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spear_io.cli.card import card_ready
from tests.fake_cupy import CUDARuntimeError, forgotten, install
from tests.io_files import command, write_good_dump

SAID = "spear-np: kernels for this card are being compiled, once; later runs start at once\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where CuPy keeps what it compiles; a card that works; nothing said of reductions."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CUPY_ACCELERATORS", "")
    monkeypatch.delenv("CUPY_ACCELERATORS")
    install(monkeypatch)
    with forgotten():
        yield tmp_path / "cache"


def compiled(cache: Path, name: str) -> None:
    cache.mkdir(exist_ok=True)
    (cache / name).touch()
    time.sleep(0.5)  # longer than between two looks


class TestFirstRun:
    @pytest.fixture(autouse=True)
    def _terminal(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def test_it_says_once_that_kernels_are_compiled(
        self, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # of what capsys put there
        with card_ready("gpu"):
            compiled(cache, "one.cubin")
            compiled(cache, "two.cubin")
        assert capsys.readouterr().err == SAID

    def test_it_says_nothing_where_all_are_there(
        self, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        compiled(cache, "one.cubin")
        with card_ready("gpu"):
            time.sleep(0.5)
        assert capsys.readouterr().err == ""

    def test_it_ends_where_the_work_fails(self, cache: Path) -> None:
        with pytest.raises(KeyError), card_ready("gpu:0"):
            raise KeyError


def test_without_a_terminal_nothing_is_said(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with card_ready("gpu"):
        compiled(cache, "one.cubin")
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("cache")
class TestReductions:
    def test_the_command_has_plain_ones(self) -> None:
        with card_ready("gpu"):
            assert os.environ["CUPY_ACCELERATORS"] == ""

    def test_what_the_user_says_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUPY_ACCELERATORS", "cub")
        with card_ready("gpu"):
            assert os.environ["CUPY_ACCELERATORS"] == "cub"

    def test_a_run_on_the_cpu_changes_nothing(self) -> None:
        with card_ready("cpu"):
            assert "CUPY_ACCELERATORS" not in os.environ


@pytest.mark.parametrize("name", ["inspect", "invert"])
def test_a_card_that_is_none_is_one_line_and_nothing_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, count=CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"))
    dump, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    write_good_dump(dump)
    arguments = (dump, "-o", out) if name == "invert" else (dump,)
    with forgotten():
        run = command(capsys)(name, *arguments, "--device", "gpu")
    assert run.status == 2
    assert run.out == ""
    assert run.err.count("\n") == 1
    assert "CUDA shows no card: `nvidia-smi` must list one" in run.err
    assert not out.exists()
