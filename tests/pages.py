"""Inversions to make pages of: pictures, tables, curves, hostile names, thousands of inputs, files that are broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import spear_np
from spear_io import Display, InversionWriter
from spear_io.files.sight import Seen
from tests.io_files import fake_inversion

SCRIPT = "<script>alert(1)</script>"
HOSTILE = (
    SCRIPT,
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</style><script>alert(1)</script>",
    "--><svg onload=alert(1)>",
    "\u202egnp.exe\u2066",
    "$\\frac{1}{0}$ \\input{/etc/passwd}",
    "a" * 500,
    "naïve ☃ 客户端",
    "&lt;b&gt;&#x27;",
    "=cmd|' /C calc'!A0",
)
"""Names that strangers might give."""


def gradients_of(features: int, units: int = 12) -> spear_np.LayerGradients:
    rng = np.random.default_rng(features)
    return spear_np.LayerGradients(rng.normal(size=(units, features)), rng.normal(size=units))


def answer(rows: Any, *, rounds: int = 3, **options: Any) -> spear_np.Inversion:
    """Return what the solver would say of recovered `rows` (k, n), with a spectrum and a history."""
    rows = np.asarray(rows, dtype=np.float64)
    made = fake_inversion(gradients_of(rows.shape[1]), rows, **options)
    history = tuple(
        spear_np.Round("descent", 10 * number, min(len(rows), number), None, 0.1 * number)
        for number in range(1, rounds + 1)
    )
    values = tuple(np.r_[np.full(len(rows), 1e6), np.full(5, 2.0)])
    return replace(made, history=history, singular_values=values, relative_noise=1e-7)


def write_inversion(
    path: Path,
    answers: Sequence[tuple[str, str, spear_np.Inversion]],
    *,
    display: Display | None = None,
    seen: Seen | None = None,
    notes: Sequence[str] = (),
    source: str = "dump.h5",
) -> Path:
    """Write several (record, layer, answer) to one file."""
    with InversionWriter(path, source=source) as out:
        for record, layer, result in answers:
            out.add(record, layer, result, notes, display=display, seen=seen)
    return path


def pictures(count: int, shape: tuple[int, ...] = (1, 8, 8), seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(size=(count, int(np.prod(shape))))


def change(path: Path, layer: str, edit: Any) -> Path:
    """Let `edit` change the group of a layer in a file."""
    with h5py.File(path, "r+") as file:
        edit(file[layer])
    return path
