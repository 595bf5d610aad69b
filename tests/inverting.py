"""From a dump to what it gives away, by the command, and how near that is to the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spear_io import open_inversion
from spear_io.cli.main import main
from tests.networks import Floats


def inverted(dump: Path | str, layer: str | None = None) -> dict[str, tuple[str, Floats]]:
    """Run `spear-np invert` and return (status, recovered inputs (k, n)) by record."""
    out = Path(dump).with_suffix(".inverted.h5")
    chosen = [] if layer is None else ["--layer", layer]
    assert main(["invert", str(dump), "-o", str(out), "--time-limit", "60", *chosen]) in (0, 3)
    with open_inversion(out) as inversion:
        return {layer.record: (layer.status, layer.inputs[:]) for layer in inversion.layers}


def decibels(recovered: Floats, inputs: Floats) -> float:
    """PSNR of the worst row of `recovered` (b, n), each against the true input next to it; all must be there."""
    errors = ((recovered[:, None, :] - inputs[None]) ** 2).mean(axis=2)
    assert sorted(errors.argmin(axis=1)) == list(range(len(inputs)))
    worst = errors.min(axis=1).max()
    return float(10 * np.log10(np.ptp(inputs) ** 2 / max(worst, 1e-30)))
