"""Names of one model that wrappers have changed on one side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spear_io.adapters.prefixes import AmbiguousNamesError, counterparts

OWN = ("enc.0.weight", "enc.0.bias", "head.weight")


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "_module.", "_fsdp_wrapped_module.", "_forward_module.module."),
        *("_orig_mod.module.", "module._orig_mod.", "model.", "backbone.", "state_dict/net.", "0/"),
    ],
)
def test_a_beginning_on_one_side_is_taken_off(prefix: str) -> None:
    longer = [prefix + name for name in OWN]
    assert counterparts(OWN, longer) == dict(zip(OWN, longer, strict=True))
    assert counterparts(longer, OWN) == dict(zip(longer, OWN, strict=True))


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module", "module"])
def test_a_part_of_the_model_may_be_wrapped(wrapper: str) -> None:
    wrapped = [f"enc.{wrapper}.0.weight", f"enc.{wrapper}.0.bias", "head.weight"]
    assert counterparts(OWN, wrapped) == dict(zip(OWN, wrapped, strict=True))


def test_one_side_may_hold_more() -> None:
    others = [*(f"model.{name}" for name in OWN), "ema.decay", "model.extra.weight"]
    assert counterparts(OWN, others) == {name: f"model.{name}" for name in OWN}
    assert counterparts(OWN[:1], others) == {OWN[0]: f"model.{OWN[0]}"}


def test_two_models_on_one_side_are_not_guessed_between() -> None:
    others = [prefix + name for prefix in ("student.", "teacher.") for name in OWN]
    with pytest.raises(AmbiguousNamesError) as caught:
        counterparts(OWN, others)
    assert caught.value.choices == ["student.", "teacher."]


@pytest.mark.parametrize(
    "others",
    [
        ["a.enc.0.weight", "b.enc.0.bias", "b.head.weight"],
        ["xenc.0.weight", "xenc.0.bias", "xhead.weight"],
        ["decoder.weight"],
        [],
    ],
)
def test_names_of_something_else_mean_nothing(others: list[str]) -> None:
    assert counterparts(OWN, others) == {}


def test_names_that_only_a_wrapper_tells_apart_stay_apart() -> None:
    names = ["fc.weight", "module.fc.weight"]
    assert counterparts(names, names[::-1]) == {name: name for name in names}


words = st.text("abm01", min_size=1, max_size=3)
paths = st.lists(words, min_size=1, max_size=3).map(".".join)


@given(st.sets(paths, min_size=1, max_size=6), st.sets(paths, min_size=1, max_size=6))
def test_what_is_meant_is_there_and_meant_once(names: set[str], others: set[str]) -> None:
    try:
        meant = counterparts(sorted(names), sorted(others))
    except AmbiguousNamesError:
        return
    assert set(meant) <= names
    assert set(meant.values()) <= others
    assert len(set(meant.values())) == len(meant)
    assert all(meant[name] == name for name in names & others)
    for name, other in meant.items():
        assert name.endswith(other) or other.endswith(name)
