"""`benchmarks.gpu` on the CPU: every part runs, and one that fails does not cost the others."""

from __future__ import annotations

import cProfile
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import environment, gpu, gpu_steps
from spear_np.backend.algebra import orthogonal_complement
from spear_np.backend.devices import CPU
from tests.fake_cupy import CUDARuntimeError, forgotten, install
from tests.kernels_on_host import MISSING, HostKernels, build


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(environment, "RESULTS", tmp_path)
    return tmp_path


def test_a_dry_run_has_every_part(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--save", "dry"]) == 0
    figures, text = json.loads((results / "dry.json").read_text()), (results / "dry.md").read_text()
    assert capsys.readouterr().out.endswith(text + "\n")
    assert text.startswith("# A dry run on the CPU: no figure means anything\n")
    for part in gpu.PARTS:
        assert "failed" not in figures[part], figures[part]
        assert f"## {part.capitalize()}\n" in text
    assert [row["status"] for row in figures["first run"]["rows"]] == [0, 0, 0]
    assert {row["search"] for row in figures["steps"]["rows"]} == {
        "descent",
        "reflect",
        "levenberg",
        "columns",
    }
    assert all(row["milliseconds"] > 0 for row in figures["steps"]["rows"])
    assert [row["status"] for row in figures["whole inversions"]["rows"]] == ["exact"] * 3
    assert figures["whole inversions"]["missing"] == []
    federations = figures["federations"]["rows"]
    assert [(row["title"], row["records"], row["finished"], row["exact"]) for row in federations] == [
        ("60/6", 4, 4, 4),
        ("60/6", 2, 2, 2),
        ("60/8, chain relu", 3, 3, 3),
        ("60/8, chain relu", 2, 2, 2),
    ]
    assert not any(row["wrong"] for row in federations)
    longest = figures["where the time goes"]["rows"]
    assert longest
    assert all(re.fullmatch(r"[\w/]+\.py:[\w<>]+", row["function"]) for row in longest)
    assert [row["seconds"] for row in longest] == sorted((row["seconds"] for row in longest), reverse=True)
    assert re.search(r"\d+ (passed|skipped)", figures["tests"]["summary"])


def test_a_part_that_fails_or_comes_too_late_is_named() -> None:
    run = gpu.Run(CPU, gpu.DRY, 0.0, budget=float("inf"))

    def broken(_: gpu.Run) -> gpu.Row:
        msg = "two\nlines"
        raise ValueError(msg)

    assert gpu.attempted(run, broken) == {"failed": "ValueError: two lines"}
    assert gpu.attempted(replace(run, budget=-1.0), broken) == {"failed": "no time left"}
    figures = {
        "environment": environment.describe(),
        "card": {"device": "cpu"},
        "dry_run": True,
        "seconds": 1.0,
        **{part: {"failed": "no time left"} for part in gpu.PARTS},
    }
    assert gpu.page(figures, gpu.DRY).count("Failed: no time left\n") == len(gpu.PARTS)


def test_inversions_that_no_time_is_left_for_are_named() -> None:
    part = gpu.wholes(gpu.Run(CPU, gpu.DRY, 0.0, budget=0.0))
    assert part == {"rows": [], "missing": [f"{one.title} on cpu" for one in gpu.DRY.wholes]}
    assert "No time left for: 60/6 on cpu, 60/6, sampling on cpu" in gpu.TABLES["whole inversions"](part)


def test_without_a_card_it_is_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, count=CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"))
    with forgotten():
        assert gpu.main([]) == 2
    assert gpu.main(["--device", "cpu"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "CUDA shows no card" in errors[0]
    assert "--dry-run" in errors[1]
    assert list(results.iterdir()) == []


def test_time_in_libraries_counts_for_the_function_that_calls_them() -> None:
    rng = np.random.default_rng(0)
    profile = cProfile.Profile()
    profile.enable()
    orthogonal_complement(np, rng.standard_normal((300, 20)))
    profile.disable()
    longest = gpu.by_function(profile)[0]
    assert longest["function"] == "backend/algebra.py:orthogonal_complement"
    assert longest["seconds"] > 0


@pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
def test_steps_run_with_kernels_too(tmp_path: Path) -> None:
    kernels = HostKernels(build(tmp_path, 1), 1)
    device = kernels.device
    assert gpu_steps.descent_step(device, 60, 6, None, 16, 1)["milliseconds"] > 0
    assert gpu_steps.chain_step(device, "reflect", 60, 6, 1)["milliseconds"] > 0
    assert gpu_steps.columns_step(device, 60, 8, 1)["milliseconds"] > 0
    assert gpu_steps.sampling_rates(device, 60, 6, 1)["rate"] > 0
    assert set(kernels.launches) == {
        "sample",
        "descent_pull",
        "descent_pattern",
        "descent_weights",
        "descent_move",
        "reflect_graph",
        "reflect_move",
        "reflect_sides",
    }
