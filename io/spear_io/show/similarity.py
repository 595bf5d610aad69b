"""How alike two inputs look: structural similarity of images, right categories of table rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..files.storage import Floats


def structural_similarity(
    image: Floats, truth: Floats, shape: tuple[int, ...], channel_axis: int, data_range: float
) -> float | None:
    """Return the mean SSIM of two images (n,), 1 if they are equal; None without scikit-image.

    Wang, Bovik, Sheikh, Simoncelli (2004), "Image quality assessment: from error visibility to structural similarity".
    """
    try:
        from skimage import metrics
    except ImportError:
        return None
    similarity: Any = metrics.structural_similarity(
        image.reshape(shape), truth.reshape(shape), data_range=data_range, channel_axis=channel_axis
    )
    return float(similarity)


def discrete_columns(truth: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(n,) bool: the features of the true inputs (b, n) that are whole numbers throughout, and not all the same."""
    whole = np.all(truth == np.rint(truth), axis=0)
    columns: np.ndarray[Any, np.dtype[np.bool_]] = whole & np.any(truth != truth[:1], axis=0)
    return columns
