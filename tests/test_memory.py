"""What the system says of memory, and what factorising a layer takes of it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from spear_np import LayerGradients
from spear_np.backend.devices import CPU
from spear_np.backend.memory import _memory_of_groups
from spear_np.factors.decay import without_decay
from spear_np.factors.memory import working_memory


def test_limits_of_all_control_groups_count(tmp_path: Path) -> None:
    (tmp_path / "work/inner").mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/elsewhere\n0::/work/inner\n")
    for folder, limit in ((".", "9000\n"), ("work", "4000\n"), ("work/inner", "max\n")):
        (tmp_path / folder / "memory.max").write_text(limit)
    assert sorted(_memory_of_groups(tmp_path, own)) == [4000, 9000]
    assert _memory_of_groups(tmp_path, tmp_path / "missing") == []


@pytest.mark.parametrize("shape", [(500, 40), (400, 150), (300, 300)])
def test_fitting_a_decay_takes_no_more_than_is_said(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spear_np.factors.gradients.BLOCK_BYTES", 2**16)
    rng = np.random.default_rng(71)
    weight = rng.standard_normal(shape)
    gradient = rng.standard_normal((shape[0], 8)) @ rng.standard_normal((8, shape[1]))
    held = gradient + 0.01 * weight + 1e-4 * rng.standard_normal(shape)
    tracemalloc.start()
    found = without_decay(LayerGradients(held, weight=weight), CPU)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.gradients.decay.present
    assert 0.5 < taken / working_memory(shape, with_weight=True) < 1.1
