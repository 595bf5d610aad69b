"""The sweep of defences: what each does to an update, where it begins to protect, and an audit that is cut short."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import spear_np
from spear_io import DumpWriter, FileError, LayerArrays, RecordInfo, open_dump, open_inversion, write_dump
from spear_io.audit import defences, sweep
from spear_io.audit.defences import Defence
from spear_io.audit.document import document_of
from spear_io.audit.page import page_of
from spear_io.audit.privacy import Training, epsilon, multiplier_for
from spear_io.audit.replay import PerExample
from spear_io.audit.result import NAMES, Asked, Audit
from spear_io.audit.run import audit
from spear_io.audit.sweep import Budget, Curve, Target, psnr_of
from spear_io.audit.update import Shared, read_update
from spear_io.audit.words import headline_of, privacy_of, verdict_of
from spear_io.files.inversion_writer import InversionWriter
from spear_io.problems import Place
from spear_io.show.evaluate import evaluate
from tests.backends import values_of
from tests.io_files import (
    Command,
    command,
    fake_inversion,
    layer_arrays,
    layer_data,
    leftovers,
    write_good_dump,
)
from tests.pages import HOSTILE
from tests.test_report import read

QUICK = Budget(time_limit=2.0)
PLACE = Place(Path("dump.h5"))


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    write_good_dump(tmp_path / "dump.h5", layer_data(b=4), loss_reduction="mean", input_shape=(1, 8, 8))
    return tmp_path / "dump.h5"


@pytest.fixture
def update(dump: Path) -> Shared:
    with open_dump(dump) as opened:
        return read_update(opened.records[0], opened.records[0].layers[0])


RNG = np.random.default_rng(0)


def test_noise_has_the_size_that_it_is_said_to_have(update: Shared) -> None:
    noised = defences.noise(update, 0.5, RNG).first
    for name in ("weight_grad", "bias_grad"):
        difference = getattr(noised, name).astype(float) - getattr(update.first, name)
        assert np.sqrt(np.mean(difference**2)) == pytest.approx(0.5 * update.size, rel=0.25)
    assert noised.weight_grad.dtype == update.first.weight_grad.dtype


def test_noise_beyond_the_range_of_a_type_is_infinite(update: Shared) -> None:
    half = replace(
        update.first,
        weight_grad=values_of(update.first.weight_grad).astype(np.float16),
        bias_grad=values_of(update.first.bias_grad).astype(np.float16),
        precision=None,
    )
    noised = defences.noise(replace(update, layers=(half,)), 1e12, RNG).first
    assert values_of(noised.weight_grad).dtype == np.float16
    assert np.any(np.isinf(values_of(noised.weight_grad)))


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_top_k_keeps_the_largest(update: Shared, share: float) -> None:
    kept = values_of(defences.top_k(update, share, RNG).first.weight_grad)
    there = values_of(update.first.weight_grad)
    assert np.mean(kept != 0) <= share + 0.01
    assert np.abs(kept[kept != 0]).min() >= np.abs(there[kept == 0]).max()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_few_bits_have_few_levels(update: Shared, bits: int) -> None:
    rounded = values_of(defences.quantise(update, bits, RNG).first.weight_grad)
    assert len(np.unique(rounded)) <= 2**bits - 1
    step = np.abs(values_of(update.first.weight_grad)).max() / (2 ** (bits - 1) - 1)
    assert np.abs(rounded - values_of(update.first.weight_grad)).max() <= 0.51 * step


def test_one_bit_is_the_sign(update: Shared) -> None:
    rounded = values_of(defences.quantise(update, 1, RNG).first.weight_grad)
    np.testing.assert_array_equal(np.sign(rounded), np.sign(values_of(update.first.weight_grad)))
    assert len(np.unique(np.abs(rounded[rounded != 0]))) == 1


def test_clipping_cuts_off_or_scales(update: Shared) -> None:
    clipped = values_of(defences.clip_values(update, 1.0, RNG).first.weight_grad)
    assert np.abs(clipped).max() == pytest.approx(update.size, rel=1e-5)
    scaled = values_of(defences.clip_norm(update, 0.1, RNG).first.weight_grad)
    np.testing.assert_allclose(scaled, 0.1 * values_of(update.first.weight_grad), rtol=1e-6)


def test_each_input_is_clipped_by_its_own_norm(update: Shared) -> None:
    result = update.invert(time_limit=20)
    assert result.status == "exact"
    examples = PerExample.of(result)
    norm = float(np.median(examples.norms))
    clipped = PerExample.of(examples.clipped(update, norm).invert(time_limit=20))
    np.testing.assert_allclose(np.sort(clipped.norms), np.sort(np.minimum(examples.norms, norm)), rtol=1e-4)
    unclipped = examples.clipped(update, float("inf")).first
    np.testing.assert_allclose(
        values_of(unclipped.weight_grad),
        values_of(update.first.weight_grad),
        atol=1e-6 * update.size,
    )


def test_sums_and_missing_parts(update: Shared) -> None:
    twice = defences.summed([update])(update, 2, RNG).first
    np.testing.assert_allclose(
        values_of(twice.weight_grad), 2 * values_of(update.first.weight_grad), rtol=1e-6
    )
    assert defences.without_bias(update, 1.0, RNG).first.bias_grad is None
    assert defences.without_bias(update, 0.0, RNG) is update


def test_psnr_is_that_of_the_true_inputs() -> None:
    truth = np.random.default_rng(1).uniform(size=(3, 50))
    truth[0, 0], truth[0, 1] = 0.0, 1.0
    target = Target(truth, true=True, place=PLACE)
    psnr = psnr_of(truth[[2, 0]] + 0.01, target)
    np.testing.assert_allclose(psnr, [40.0, 0.0, 40.0], atol=1e-6)
    np.testing.assert_allclose(psnr_of(-3 * truth, target, fit_scale=True), sweep.LARGEST_PSNR)
    assert psnr_of(np.zeros((0, 50)), target).tolist() == [0.0] * 3


def test_psnr_is_that_of_evaluate(tmp_path: Path) -> None:
    """In the units of the data, whose channels were normalised each by itself."""
    path, out = tmp_path / "dump.h5", tmp_path / "out.h5"
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.1, 0.5, 1.0, 2.0)
    data = write_good_dump(path, layer_data(b=4), input_shape=(4, 4, 4), input_mean=mean, input_std=std)
    rows = data.inputs + 0.1 * RNG.standard_normal(data.inputs.shape)
    with open_dump(path) as dump:
        record, layer = dump.records[0], dump.records[0].layers[0]
        answer = fake_inversion(layer.gradients, rows)
        with InversionWriter(out, source=path) as writer:
            writer.add(record.name, layer.name, answer, display=record.info, seen=layer.seen)
        with open_inversion(out) as inversion:
            told = [row.psnr for row in evaluate(inversion, dump)[0].rows]
        target = sweep.target_of(data.inputs, answer, record, layer)
        assert target is not None
    np.testing.assert_allclose(np.sort(psnr_of(rows, target)), np.sort(np.asarray(told, float)), rtol=1e-9)


def test_psnr_of_what_is_no_number_or_huge() -> None:
    truth = np.random.default_rng(1).uniform(size=(2, 50))
    broken = truth.copy()
    broken[0, 0] = np.nan
    psnr = psnr_of(broken, Target(truth, true=True, place=PLACE))
    assert psnr[0] == 0
    assert psnr[1] == sweep.LARGEST_PSNR
    huge = Target(1e200 * truth, true=True, place=PLACE)
    np.testing.assert_allclose(psnr_of(1e200 * truth, huge), sweep.LARGEST_PSNR)
    for fit_scale in (False, True):
        near = psnr_of(1e200 * (truth + 0.01 * huge.data_range / 1e200), huge, fit_scale=fit_scale)
        assert np.all(near >= 40 - 1e-6)


def test_noise_is_weighed_by_the_accountant() -> None:
    pytest.importorskip("opacus", reason="Opacus is not installed")
    training = Training(60_000, 16, 1000)
    weak, strong = epsilon(0.5, training), epsilon(2.0, training)
    assert weak is not None
    assert strong is not None
    assert 0 < strong < weak
    assert epsilon(0.0, training) == float("inf")
    assert epsilon(1e4, Training(batch_size=16, delta=0.9)) == 0  # the bound is -2.3


def point(strength: float, recovered: int) -> sweep.Point:
    return sweep.Point(strength, "exact", "exact", 4, recovered, recovered / 4, 30, 30, 0.1, 0.1, "")


@pytest.mark.parametrize(
    ("recovered", "wanted"),
    [((4, 4, 0, 0), (2.0, 3.0)), ((4, 0, 1, 0), (3.0, 4.0)), ((0, 0), (None, 1.0)), ((4, 4), (2.0, None))],
)
def test_the_break_even_is_behind_the_last_leak(recovered: tuple[int, ...], wanted: Any) -> None:
    points = tuple(point(float(number), count) for number, count in enumerate(recovered, 1))
    some = Defence("noise", "Noise", "", "more", (1.0,), defences.noise, "")
    assert Curve(some, points, complete=True, batch=4).break_even == wanted


def test_an_audit_of_a_dump(spear: Command, dump: Path, tmp_path: Path) -> None:
    output = tmp_path / "audit.html"
    options = ("--time-limit", "1", "--defence", "noise", "--defence", "clip-norm", "--defence", "no_bias")
    done = spear("audit", dump, "-o", output, *options, "--json", "--dataset-size", "1000")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert (found["batch"], found["truth"], found["baseline"]["share"]) == (4, True, 1.0)
    by_name = {one["name"]: one for one in found["defences"]}
    assert set(by_name) == {"noise", "clip_norm", "no_bias"}
    noise = by_name["noise"]
    assert noise["still_leaks"] < noise["enough"] <= 1.0
    assert by_name["clip_norm"]["enough"] is None  # a factor changes no input
    assert by_name["no_bias"]["enough"] is None
    worst = [one["worst_psnr"] for one in noise["points"]]
    assert worst[0] > worst[2] > 20
    assert noise["points"][0]["multiplier"] < noise["points"][1]["multiplier"]
    page = read(output)
    assert "What would have stopped the inversion of this update" in page.text
    assert "Clipping the whole update" in page.text
    assert "stops this method" in page.text
    for word in ("Noise multiplier", "Clipping norm", "Peak signal-to-noise ratio"):
        assert word in page.text


def test_the_same_seed_gives_the_same_curve(dump: Path) -> None:
    asked = Asked(defences=("noise",), refine=False)
    first, second = (audit(dump, None, asked, QUICK).curves[0].points for _ in range(2))
    assert [(p.strength, p.recovered, p.worst_psnr) for p in first] == [
        (p.strength, p.recovered, p.worst_psnr) for p in second
    ]


def test_without_truth_what_leaks_stands_for_it(tmp_path: Path) -> None:
    write_dump(tmp_path / "dump.h5", {"fc": layer_arrays(layer_data(b=4), inputs=None)})
    found = audit(tmp_path / "dump.h5", None, Asked(defences=("clip_norm",)), QUICK)
    assert (found.truth, found.batch) == (False, 4)
    assert [one.share for one in found.curves[0].points] == [1.0] * 3


def test_records_of_one_model_are_summed(tmp_path: Path) -> None:
    with DumpWriter(tmp_path / "dump.h5") as out:
        for number in range(3):
            data = layer_data(b=4, seed=11)
            arrays = layer_arrays(data, weight_grad=data.weight_grad * (1 + number))
            out.add_record(f"client-{number}", {"fc": arrays})
    found = audit(tmp_path / "dump.h5", None, Asked(defences=("records",)), QUICK)
    assert [one.strength for one in found.curves[0].points] == [1.0, 2.0]


@dataclass
class Stop:
    """Asks an audit to stop once it has begun more than `after` inversions."""

    after: int
    begun: int = 0

    def say(self, title: str) -> None:
        self.begun += 1

    def __call__(self) -> bool:
        return self.begun > self.after


@pytest.mark.parametrize("after", [1, 4, 9])
def test_what_is_finished_is_kept_when_it_is_stopped(dump: Path, tmp_path: Path, after: int) -> None:
    stop = Stop(after)
    budget = Budget(time_limit=2.0, stop=stop, say=stop.say)
    output = tmp_path / "audit.html"
    found = audit(dump, output, Asked(defences=("noise", "bits", "top_k")), budget)
    assert not found.complete
    measured = sum(len(curve.points) for curve in found.curves)
    assert measured == max(0, after - 1)
    assert "The audit was stopped before its end" in read(output).text
    assert leftovers(tmp_path) == []


def test_nothing_to_protect_is_one_line(spear: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    full = LayerArrays(rng.normal(size=(8, 8)).astype(np.float32), rng.normal(size=8).astype(np.float32))
    write_dump(tmp_path / "dump.h5", {"fc": full})
    done = spear("audit", tmp_path / "dump.h5", "-o", tmp_path / "audit.html")
    assert "gives nothing away without a defence" in done.error
    assert not (tmp_path / "audit.html").exists()


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ((), "say where the page goes"),
        (("-o", "x.html", "--defence", "magic"), "'magic' is not one of noise"),
        (("-o", "x.html", "--clip-norm", "0"), "is not a positive number"),
        (("-o", "x.html", "--delta", "2"), "is not between 0 and 1"),
        (("-o", "x.html", "--record", "nobody"), "there is no record 'nobody'"),
        (("-o", "x.html", "--layer", "none"), "there is no layer 'none'"),
        (
            (
                "-o",
                "/no/where/x.html",
            ),
            "does not exist",
        ),
    ],
)
def test_bad_options_are_one_line(
    spear: Command, dump: Path, options: tuple[str, ...], fragment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dump.parent)
    done = spear("audit", dump, *options)
    assert done.status == 2
    assert fragment in done.error


@pytest.mark.parametrize("name", [name for name in HOSTILE[:6] if "/" not in name])
def test_hostile_names_stay_text(tmp_path: Path, name: str) -> None:
    write_dump(tmp_path / "dump.h5", {name: layer_arrays(layer_data(b=3))}, record=name, info=RecordInfo())
    audit(tmp_path / "dump.h5", tmp_path / "audit.html", Asked(defences=("clip_norm",)), QUICK)
    assert name in read(tmp_path / "audit.html").text


def test_every_defence_says_what_it_does_not_protect(update: Shared) -> None:
    for one in defences.usual_defences(update):
        assert one.limits.endswith(".")
        assert one.name in NAMES


def test_fewer_layers_are_shared(tmp_path: Path) -> None:
    with open_dump("examples/fashion_mnist_gelu_b24.h5") as opened:
        chain = read_update(opened.records[0], opened.records[0].layers[0])
    assert chain.names == ("0", "2", "4")
    less = defences.fewer_layers(chain, 2.0, RNG)
    assert less.names == ("0", "2")
    with pytest.raises(spear_np.InputError):
        defences.fewer_layers(chain, 1.0, RNG).invert(time_limit=1)


def curve_of(defence: Defence, recovered: tuple[int, ...], **changes: Any) -> Curve:
    points = tuple(
        replace(point(strength, count), **changes)
        for strength, count in zip(defence.strengths, recovered, strict=False)
    )
    return Curve(defence, points, complete=True, batch=4)


def test_every_verdict_names_unit_and_direction(update: Shared) -> None:
    by_name = {one.name: one for one in defences.usual_defences(update)}
    for name, said in (
        ("noise", "at 0.001 times the root mean square of the gradient or more; inputs come back at 0.0001"),
        ("bits", "at 8 bits for each entry or fewer; inputs come back at 12"),
        ("top_k", "at 0.75 of all entries or fewer; inputs come back at 0.9"),
        ("clip_values", "at 5 times the root mean square of its array or less; inputs come back at 10"),
    ):
        assert verdict_of(curve_of(by_name[name], (4, 4, 0, 0))) == (f"nothing recovered {said}", True)
        assert by_name[name].scale.endswith(f"; {by_name[name].stronger} is stronger.")
    assert (
        "even at the weakest that was tried, 16 bits for each entry, and weaker was not tried"
        in verdict_of(curve_of(by_name["bits"], (0, 0)))[0]
    )
    told = replace(by_name["bits"], at_weakest="that says nothing of bits")
    assert verdict_of(curve_of(told, (0, 0)))[0].endswith("; that says nothing of bits")
    assert verdict_of(curve_of(by_name["clip_norm"], (4, 4, 4))) == (
        "not enough: 100% recovered at the strongest that was tried, 0.01 times its norm",
        False,
    )


def test_where_nothing_leaks_no_defence_is_said_to_stop_it(update: Shared) -> None:
    curve = curve_of(defences.usual_defences(update)[0], (0, 0))
    assert verdict_of(curve, leaky=False) == ("nothing recovered, with the defence or without", False)
    found = found_of(curve, baseline=point(0.0, 0))
    (one,) = document_of(found)["defences"]
    assert one["verdict"] == "nothing recovered, with the defence or without"
    assert 'class="stops"' not in page_of(found)
    assert headline_of(found) == "Nothing is recovered from this update, even without a defence."
    assert 'class="stops"' in page_of(found_of(curve))


def found_of(curve: Curve, **changes: Any) -> Audit:
    none = point(0.0, 4)
    found = Audit(
        "d.h5",
        "r",
        ("a",),
        4,
        True,
        none,
        (curve,),
        {},
        True,
        2.0,
        Training(batch_size=4),
        multiplier_needed=0.5,
    )
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("changes", "clip_norm", "fragments"),
    [
        (
            {"multiplier": 1e-3, "epsilon": 5e5},
            2.0,
            (
                "multiplier of 0.001 at a clipping norm of 2",
                "ε = 5·10⁵ for one step on all",
                "noise 5·10² times larger",
            ),
        ),
        ({"multiplier": 1e-3, "epsilon": float("inf")}, 2.0, ("no bound on ε", "promises next to nothing")),
        ({"multiplier": 1.0, "epsilon": 4.7}, 2.0, ("ε = 4.7", "if every step has this noise")),
        ({"multiplier": 1e-3}, 2.0, ("not told, as Opacus is not installed",)),
        ({}, None, ("takes the gradients of the single inputs", "--clip-norm")),
    ],
)
def test_the_break_even_says_what_it_is_worth(
    update: Shared, changes: dict[str, Any], clip_norm: float | None, fragments: tuple[str, ...]
) -> None:
    noise = defences.usual_defences(update)[0]
    audited = found_of(curve_of(noise, (4, 4, 0, 0), **changes), clip_norm=clip_norm)
    assert headline_of(audited).startswith(
        "Noise of 0.001 times the root mean square of the gradient stops this"
    )
    said = " ".join(privacy_of(audited))
    assert "not where privacy begins" in said
    for fragment in fragments:
        assert fragment in said


@pytest.mark.parametrize("told", [True, False])
def test_an_epsilon_of_noise_says_that_inputs_are_clipped_too(update: Shared, told: bool) -> None:
    noise = defences.usual_defences(update)[0]
    changes: dict[str, Any] = {"multiplier": 1.0, "epsilon": 4.7 if told else None}
    said = " ".join(privacy_of(found_of(curve_of(noise, (4, 4, 0, 0), **changes))))
    assert ("Noise by itself has no ε" in said) is told
    assert "only where the gradient of each input is clipped too" in noise.limits
    dp_sgd = replace(noise, name="dp_sgd")
    assert "by itself" not in " ".join(privacy_of(found_of(curve_of(dp_sgd, (4, 4, 0, 0), **changes))))


@pytest.mark.parametrize(
    ("training", "warned"),
    [
        (Training(50_000, 16, 100, 1e-5), False),
        (Training(100_000, 16, 100, 1e-5), True),
        (Training(0, 4, 1, 1e-5), False),
        (Training(0, 4, 1, 0.5), True),
    ],
)
def test_a_delta_that_lets_a_record_be_published_is_said_to(
    update: Shared, training: Training, warned: bool
) -> None:
    curve = curve_of(defences.usual_defences(update)[0], (4, 4, 0, 0), multiplier=1.0, epsilon=4.7)
    said = " ".join(privacy_of(found_of(curve, training=training)))
    assert ("publishing one record whole" in said) is warned


@pytest.mark.parametrize("stated", [None, 40])
def test_batches_are_as_large_as_the_record_says_or_the_truth_has(tmp_path: Path, stated: int | None) -> None:
    data = layer_data(b=4)
    twice = np.concatenate([data.inputs, data.inputs[:2]])
    arrays = layer_arrays(data, inputs=twice)
    write_dump(tmp_path / "dump.h5", {"fc": arrays}, info=RecordInfo(batch_size=stated))
    asked = Asked(defences=("noise",), clip_norm=1.0, training=Training(1000), refine=False)
    found = audit(tmp_path / "dump.h5", None, asked, QUICK)
    assert found.training.batch_size == (stated or 6)
    first = found.curves[0].points[0]
    size = float(np.sqrt(np.mean(data.weight_grad.astype(float) ** 2)))
    assert first.multiplier == pytest.approx(first.strength * size * (stated or 6), rel=1e-6)


def test_another_record_that_cannot_be_read_is_no_reason_to_stop(tmp_path: Path) -> None:
    data = layer_data(b=4)
    with DumpWriter(tmp_path / "dump.h5") as out:
        for name in ("good", "bad"):
            out.add_record(name, {"fc": layer_arrays(data)})
    with h5py.File(tmp_path / "dump.h5", "r+") as file:
        file["records/bad/layers/fc/weight_grad"][0, 0] = np.nan
    asked = Asked(record="good", defences=("records", "clip_norm"), refine=False)
    found = audit(tmp_path / "dump.h5", None, asked, QUICK)
    assert [curve.defence.name for curve in found.curves] == ["clip_norm"]
    assert "that can be read" in found.not_tried["records"]


def test_without_the_accountant_it_says_so(
    spear: Command, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    done = spear("audit", dump, "-o", tmp_path / "a.html", "--defence", "noise", "--time-limit", "1")
    assert done.status == 0
    assert "its ε is not told, as Opacus is not installed" in done.out
    assert "its ε is not told, as Opacus is not installed" in read(tmp_path / "a.html").text


def test_the_multiplier_of_an_epsilon() -> None:
    pytest.importorskip("opacus", reason="Opacus is not installed")
    training = Training(60_000, 16, 1000)
    found = multiplier_for(10.0, training)
    assert found is not None
    near, weaker = epsilon(found, training), epsilon(found / 1.02, training)
    assert near is not None
    assert weaker is not None
    assert near <= 10 < weaker
    assert Training(batch_size=16).sample_rate == 1.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_a_signal_ends_it_with_what_is_finished(
    spear: Command, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    begun: list[float] = []

    def inverted(update: Shared, target: Target, defence: Defence, strength: float, *more: Any) -> Any:
        begun.append(strength)
        if len(begun) == 3:
            signal.raise_signal(number)
        return undisturbed(update, target, defence, strength, *more)

    undisturbed = sweep.inverted
    monkeypatch.setattr(sweep, "inverted", inverted)
    done = spear("audit", dump, "-o", tmp_path / "audit.html", "--defence", "noise", "--defence", "bits")
    assert done.status == 3
    assert "stopped before its end: what was finished is above and on the page" in done.out
    assert "bits: not tried: stopped before it began" in done.out
    text = read(tmp_path / "audit.html").text
    assert "The audit was stopped before its end" in text
    assert "Every strength, with its figures" in text


def test_stopped_before_anything_is_known_is_one_line(tmp_path: Path) -> None:
    write_dump(tmp_path / "dump.h5", {"fc": layer_arrays(layer_data(b=4), inputs=None)})
    with pytest.raises(FileError, match="was stopped before it was known what there is to protect"):
        audit(tmp_path / "dump.h5", tmp_path / "a.html", Asked(), Budget(stop=lambda: True))
    assert [path.name for path in tmp_path.iterdir()] == ["dump.h5"]


@pytest.mark.parametrize("where", ["weight_grad", "truth"])
def test_nan_is_one_line_that_says_where(spear: Command, dump: Path, tmp_path: Path, where: str) -> None:
    with h5py.File(dump, "a") as file:
        record = file["records/client-0"]
        array = record["truth/fc1/inputs"] if where == "truth" else record["layers/fc1/weight_grad"]
        array[2, 5] = np.nan
    done = spear("audit", dump, "-o", tmp_path / "audit.html", "--defence", "clip_norm")
    assert done.status == 2
    assert "holds NaN at row 2, column 5" in done.error
    assert not (tmp_path / "audit.html").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit there")
def test_a_disk_that_is_full_is_one_line_below_what_was_found(
    spear: Command, dump: Path, tmp_path: Path
) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        done = spear("audit", dump, "-o", tmp_path / "audit.html", "--defence", "clip_norm")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.status == 2
    assert "cannot be written (File too large); nothing was written" in done.error
    assert "not enough: 100% recovered at the strongest that was tried, 0.01 times its norm" in done.out
    assert "written to" not in done.out
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "audit.html").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_refused_before_anything_is_tried(
    spear: Command, dump: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    done = spear("audit", dump, "-o", folder / "audit.html")
    assert done.status == 2
    assert "choose a folder you may write to" in done.error
