"""An audit as plain data, for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .result import Audit
from .sweep import RECOGNISED
from .words import headline_of, privacy_of, verdict_of


def document_of(audit: Audit) -> dict[str, Any]:
    """Return what an audit found as plain data."""
    return {
        "source": audit.source,
        "record": audit.record,
        "layer": audit.layers[0],
        "layers": audit.layers,
        "batch": audit.batch,
        "truth": audit.truth,
        "complete": audit.complete,
        "sentence": headline_of(audit),
        "privacy": privacy_of(audit),
        "recovered_from_db": RECOGNISED,
        "clip_norm": audit.clip_norm,
        "training": asdict(audit.training),
        "baseline": asdict(audit.baseline),
        "defences": [
            {
                "name": curve.defence.name,
                "title": curve.defence.title,
                "unit": curve.defence.unit,
                "stronger": curve.defence.stronger,
                "verdict": verdict_of(curve, leaky=audit.leaky)[0],
                "limits": curve.defence.limits,
                "still_leaks": curve.break_even[0],
                "enough": curve.break_even[1],
                "complete": curve.complete,
                "points": [asdict(point) for point in curve.points],
            }
            for curve in audit.curves
        ],
        "not_tried": audit.not_tried,
    }
