"""Blocks of several layers side by side: each goes down as it does for itself, whatever the others are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from spear_np.backend.devices import CPU, Device
from spear_np.backend.host import to_host
from spear_np.kernels.descent import pull
from spear_np.search.blocks import Block, Settings, Tempering, descend
from tests.backends import Backend
from tests.networks import Floats

PLAIN = Tempering(steps=6, first_step=0.3, kappa=(0.0, 10.0), tau=0.5, confined=0.3, thin_cosine=0.98)
OFTEN = Settings(thinning=False, sign_interval=2)
"""Signs are predicted twice in six steps, after which rounding to float32 does not yet decide where a start goes."""
CLOSE = 1e-3


@dataclass(frozen=True)
class Shape:
    """What a block is like."""

    l: int = 40
    b: int = 6
    k: int = 9
    known: int = 0
    rank: int = 7
    signs: bool = True
    tempering: Tempering = PLAIN


def block(shape: Shape, settings: Settings = OFTEN, backend: Backend = Backend.NUMPY, seed: int = 0) -> Block:
    """A block of random rows, with zeros among their products as those of a layer have."""
    rng = np.random.default_rng((seed, shape.l, shape.b, shape.k))
    hidden = np.where(rng.random((shape.l, shape.b)) < 0.5, 0.0, rng.standard_normal((shape.l, shape.b)))
    hidden[: shape.b] += np.eye(shape.b)
    rows = np.linalg.qr(hidden)[0]
    start = rows[rng.integers(0, shape.l, shape.k)] + 0.1 * rng.standard_normal((shape.k, shape.b))
    signs = (
        np.linalg.qr(rng.standard_normal((shape.l, min(shape.rank, shape.l))))[0],
        rng.random(min(shape.rank, shape.l)),
    )
    known = np.linalg.qr(rng.standard_normal((shape.b, shape.b)))[0][:, : shape.known]
    device = backend.device
    return Block.prepare(
        device,
        device.float32(rows),
        device.float32(start),
        shape.tempering,
        settings,
        signs=(device.float64(signs[0]), device.float64(signs[1])) if shape.signs else None,
        known=device.float64(known) if shape.known else None,
    )


def ends(device: Device, blocks: list[Block]) -> list[Floats]:
    return [to_host(found) for found in descend(device, blocks)]


def test_starts_go_in_parts_where_memory_does_not_do(
    monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    alone = block(Shape(k=40), backend=backend)
    expected, parts = ends(backend.device, [alone])[0], []

    def refused(device: Device, values: Any, *others: Any) -> Any:
        parts.append(values.shape[1])
        if values.shape[1] > 12:
            raise MemoryError
        return pull(device, values, *others)

    monkeypatch.setattr("spear_np.search.blocks.pull", refused)
    found = ends(backend.device, [alone])[0]
    assert set(parts) == {40, 20, 10}
    np.testing.assert_allclose(found, expected, atol=CLOSE)


@pytest.mark.filterwarnings("error")
def test_a_start_outside_what_it_keeps_to_goes_down_as_well(backend: Backend) -> None:
    alone = block(Shape(known=5, b=6, signs=False), backend=backend)
    assert alone.free is not None
    outside = np.eye(6) - to_host(alone.free) @ to_host(alone.free).T
    start = to_host(alone.start).copy()
    start[3] = 0  # what rounding leaves of a projection may be nothing
    start[4] = outside[0]
    found = ends(backend.device, [replace(alone, start=backend.device.float32(start))])[0]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


MIXES = {
    "alike": [Shape(), Shape(), Shape()],
    "rows": [Shape(l=40), Shape(l=23), Shape(l=61)],
    "coordinates": [Shape(b=6), Shape(b=2), Shape(b=11)],
    "starts": [Shape(k=1), Shape(k=9), Shape(k=2)],
    "confined": [Shape(known=2), Shape(), Shape(known=4, tempering=replace(PLAIN, confined=0.7))],
    "never released": [Shape(known=1, tempering=replace(PLAIN, confined=2.0)), Shape(b=9)],
    "prediction": [Shape(rank=2), Shape(rank=7), Shape(rank=19)],
    "no prediction": [Shape(signs=False), Shape(l=12, b=3, signs=False)],
    "tempering": [
        Shape(),
        Shape(tempering=replace(PLAIN, tau=0.8, kappa=(3.0, 30.0), first_step=0.15)),
        Shape(l=90, b=20, tempering=replace(PLAIN, tau=0.4, kappa=(0.0, 4.0))),
    ],
    "one for itself": [Shape(k=3)],
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("settings", [OFTEN, replace(OFTEN, concave=False)])
def test_each_goes_down_as_it_does_for_itself(backend: Backend, mix: str, settings: Settings) -> None:
    blocks = [block(shape, settings, backend, seed) for seed, shape in enumerate(MIXES[mix])]
    together = ends(backend.device, blocks)
    for one, found in zip(blocks, together, strict=True):
        alone = ends(backend.device, [one])[0]
        assert found.shape == alone.shape == one.start.shape
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, alone, atol=CLOSE)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_one_for_itself_is_as_it_would_be_without_any_stack() -> None:
    one = block(Shape(known=2))
    both = ends(CPU, [one, one])
    for found in both:
        np.testing.assert_array_equal(found, ends(CPU, [one])[0])


def test_starts_that_come_together_go_on_as_one_in_each_block() -> None:
    thinning = replace(OFTEN, thinning=True)
    shapes = [Shape(k=5), Shape(k=3, l=25, b=3, known=1), Shape(k=1)]
    blocks = [block(shape, thinning, seed=seed) for seed, shape in enumerate(shapes)]
    # Each start comes again, and with the other sign, which is the same direction.
    blocks[:2] = [
        replace(one, start=np.concatenate([one.start, -one.start, one.start])) for one in blocks[:2]
    ]
    for one, found, shape in zip(blocks, ends(CPU, blocks), shapes, strict=True):
        alone = ends(CPU, [one])[0]
        assert len(found) <= shape.k
        np.testing.assert_allclose(found, alone, atol=CLOSE)


def test_blocks_of_other_steps_or_without_signs_have_another_pace() -> None:
    usual = block(Shape())
    assert usual.pace == block(Shape(l=20, b=3, known=1, tempering=replace(PLAIN, tau=0.4))).pace
    others = [
        Shape(tempering=replace(PLAIN, steps=32)),
        Shape(signs=False),
    ]
    assert len({usual.pace, *(block(shape).pace for shape in others)}) == 3
    assert block(Shape(), replace(OFTEN, concave=False)).pace != usual.pace


shapes = st.builds(
    Shape,
    l=st.integers(12, 80),
    b=st.integers(2, 12),
    k=st.integers(1, 12),
    known=st.integers(0, 1),
    rank=st.integers(1, 9),
)


@given(st.lists(shapes, min_size=1, max_size=5))
@examples(max_examples=30, deadline=None)
def test_no_block_feels_the_others(mix: list[Shape]) -> None:
    blocks = [block(shape, seed=seed) for seed, shape in enumerate(mix)]
    order = np.random.default_rng(len(mix)).permutation(len(mix))
    one_way, other_way = ends(CPU, blocks), ends(CPU, [blocks[place] for place in order])
    for place, found in zip(order, other_way, strict=True):
        np.testing.assert_allclose(found, one_way[place], atol=CLOSE)
        np.testing.assert_allclose(found, ends(CPU, [blocks[place]])[0], atol=CLOSE)
