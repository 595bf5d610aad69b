"""The page about an inversion: what is on it, whatever is in the files, and nothing that runs."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import spear_np
from spear_io import Display, InversionWriter, LayerArrays, RecordInfo, write_dump
from spear_io.files.sight import Seen, Sight
from spear_io.show.report import gather as gathering
from spear_io.show.report import plots
from spear_io.show.report.check_words import CHECKS
from spear_io.show.report.content import Report
from spear_io.show.report.inputs import CARDS
from spear_io.show.report.page import LARGEST_PAGE, write_report
from spear_io.show.report.words import known_text
from tests.io_files import Command, command, leftovers
from tests.pages import HOSTILE, SCRIPT, answer, change, pictures, write_inversion

LAYER = "records/a/layers/fc"
AT_LEAST_ONE = {"relation": ">=", "threshold": 1.0, "meaning": "1 if it looks like rounding"}
RUNNING = {"script", "iframe", "object", "embed", "form", "input", "button", "audio", "video", "base"}


@pytest.fixture
def spear(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


class Page(HTMLParser):
    """What a browser would make of a page: its text, its tags, its attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def check_harmless(self) -> None:
        """Nothing runs, and nothing is loaded from anywhere."""
        for tag, attributes in self.tags:
            assert tag not in RUNNING, (tag, attributes)
            for name, value in attributes.items():
                assert not name.startswith("on"), (tag, name)
                if name in ("src", "href", "xlink:href", "action", "data"):
                    assert (value or "").startswith(("data:image/png;base64,", "data:,", "#")), (tag, value)
                if name == "style":
                    assert "url(" not in (value or "").replace("url(#", ""), value
        identity = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(identity) == len(set(identity))


def read(path: Path) -> Page:
    page = Page(path.read_text())
    page.check_harmless()
    assert path.stat().st_size <= LARGEST_PAGE
    assert "{{" not in path.read_text().replace(html.escape("{{ 7 * 7 }}"), "")
    return page


def test_pictures_stand_beside_their_originals_the_worst_first(spear: Command, tmp_path: Path) -> None:
    truth = pictures(5)
    rows = truth[[3, 0, 4, 1, 2]]
    rows[2] += 0.01
    path = write_inversion(
        tmp_path / "out.h5",
        [("a", "fc", answer(rows, labels=[7, 1, 2, -1, 4]))],
        display=Display((1, 8, 8), client="kitchen", round=7),
    )
    np.save(tmp_path / "truth.npy", truth)
    done = spear("report", path, tmp_path / "truth.npy", "-o", tmp_path / "out.html")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("All 5 private inputs could be read out of what was shared, with proof.\n")
    page = read(tmp_path / "out.html")
    assert re.findall(r"Input (\d)\n", page.text)[0] == "2"
    images = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert images[:2] == ["Recovered input 2", "Original of input 2"]
    assert len(images) == 10
    for words in ("kitchen", "Proven, on the premises below", "40.0 dB", "every check holds"):
        assert words in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert leftovers(tmp_path) == []


def test_pictures_are_denormalised(tmp_path: Path) -> None:
    from PIL import Image

    data = np.zeros((1, 64))
    data[0, :32] = 1.0
    path = write_inversion(
        tmp_path / "out.h5",
        [("a", "fc", answer((data - 0.25) / 0.5))],
        display=Display((1, 8, 8), (0.25,), (0.5,)),
    )
    report = write_report(path, tmp_path / "out.html")
    (card,) = report.sections[0].cards
    assert card.picture is not None
    import base64
    import io

    image = Image.open(io.BytesIO(base64.b64decode(card.picture.uri.partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(image).reshape(-1), np.rint(255 * data[0]))
    assert card.bound == "5·10⁻⁷"  # 1e-6 as the layer sees it


def test_the_page_says_on_which_range_pictures_are_drawn(spear: Command, tmp_path: Path) -> None:
    rows = np.rint(16 * pictures(60))
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(rows))], display=Display((1, 8, 8)))
    assert spear("report", path, "-o", tmp_path / "out.html").status == 0
    assert (
        "In the pictures, 0 is black and 16 is white: the lowest and the highest value"
        in read(tmp_path / "out.html").text
    )


def test_bounds_say_in_which_units_they_are(spear: Command, tmp_path: Path) -> None:
    rows = np.array([[-1.0, 0.0], [1.0, 1.0]])
    display = Display((2,), (10.0, 0.0), (4.0, 1000.0), feature_names=("age", "income"))
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(rows))], display=display)
    assert spear("report", path, "-o", tmp_path / "out.html").status == 0
    text = " ".join(read(tmp_path / "out.html").text.split())
    assert "Worst bound, share of the range" in text
    assert "2 of 2 5·10⁻⁵ %" in text  # 1e-6 of a range of 2
    assert (
        "All values, bounds and errors are in the units of the data, with the normalisation undone." in text
    )
    assert "Bound (units of the data)" in text
    assert "Largest bound of any input4·10⁻⁶0.001" in text  # of each column by itself
    assert "up to 0.001, in the units of the data" in text
    assert "beside it" in dict(write_report(path, tmp_path / "again.html").glossary)["Bound"]


def test_what_tells_inputs_apart_is_shown_by_what_the_layer_has(tmp_path: Path) -> None:
    def page(activation: str, chain: tuple[str, ...]) -> tuple[Report, str]:
        made = replace(answer(pictures(3), labels=[1, 2, 3]), chain=chain)
        path = write_inversion(tmp_path / "out.h5", [("a", "fc", made)], display=Display((1, 8, 8)))
        change(path, LAYER, attribute("activation", activation))
        report = write_report(path, tmp_path / "out.html")
        return report, read(tmp_path / "out.html").text

    relu, of_relu = page("relu", ())
    smooth, of_smooth = page("leaky_relu(negative_slope=0.2)", ("fc", "out"))
    assert {"Zeros", "Zeros to spare"} <= set(relu.sections[0].figure_names)
    assert "Equations to spare" not in relu.sections[0].figure_names
    assert not {"Zeros", "Zeros to spare"} & set(smooth.sections[0].figure_names)
    assert {"Equations to spare", "Probability of chance"} <= set(smooth.sections[0].figure_names)
    assert "Units that each input leaves off" in of_relu
    assert "Units that each input leaves off" not in of_smooth
    assert "meets all equations of the layers as each of these does" in of_smooth
    assert ("Zeros" in dict(relu.glossary), "Zeros" in dict(smooth.glossary)) == (True, False)
    assert "Equations to spare" in dict(smooth.glossary)


def test_the_number_of_inputs_that_show_is_not_called_the_batch(spear: Command, tmp_path: Path) -> None:
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(pictures(3)))])
    assert spear("report", path, "-o", tmp_path / "out.html").status == 0
    text = " ".join(read(tmp_path / "out.html").text.split())
    assert "the batch has" not in text
    assert (
        "the first 3 above the noise: so many inputs show in the gradient. The batch may have had more"
        in text
    )
    assert "The batch may have had more inputs all the same: identical ones show as one" in text


@pytest.mark.parametrize(
    ("rows", "display", "words"),
    [
        (pictures(2), Display((1, 8, 8)), "Here, each is one picture."),
        (pictures(2, (3,)), Display(feature_names=("a", "b", "c")), "Here, each is one row of the table."),
        (pictures(2, (100,)), Display(), "Here, each is one curve, its numbers from left to right."),
    ],
)
def test_the_glossary_speaks_of_what_is_on_the_page(
    tmp_path: Path, rows: Any, display: Display, words: str
) -> None:
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(rows))], display=display)
    explained = dict(write_report(path, tmp_path / "out.html").glossary)
    assert explained["Input"].endswith(words)
    assert "PSNR" not in explained


def test_a_page_without_truth_says_so(spear: Command, tmp_path: Path) -> None:
    truth = pictures(4).astype(np.float32)
    layer = LayerArrays(np.ones((12, 64), np.float32), np.ones(12, np.float32), activation="relu")
    write_dump(tmp_path / "dump.h5", {"fc": layer, "known": replace(layer, inputs=truth)}, record="a")
    both = [("a", name, answer(truth)) for name in ("fc", "known")]
    for layers, against, words in (
        (both[:1], (), "No originals were given, so nothing on this page was compared with the truth."),
        (both[:1], (tmp_path / "dump.h5",), "dump.h5 holds no originals of these layers, so nothing on this"),
        (
            both,
            (tmp_path / "dump.h5",),
            "The dump holds no originals of this layer: nothing here was compared",
        ),
    ):
        path = write_inversion(tmp_path / "out.h5", layers, display=Display((1, 8, 8)))
        assert spear("report", path, *against, "-o", tmp_path / "out.html").status == 0
        assert read(tmp_path / "out.html").text.count(words) == 1
    done = spear("report", tmp_path / "out.h5", tmp_path / "dump.h5", "-o", tmp_path / "out.html")
    assert "nothing on this page was compared" not in done.out
    path = write_inversion(tmp_path / "out.h5", both[:1])
    done = spear("report", path, tmp_path / "dump.h5", "-o", tmp_path / "out.html")
    assert "dump.h5 holds no originals of these layers, so nothing on this page was compared" in done.out


def test_every_test_of_the_solver_has_words_for_laymen(spear: Command, tmp_path: Path) -> None:
    sources = "".join(path.read_text() for path in Path(spear_np.__file__).parent.rglob("*.py"))
    names = set(re.findall(r'(?:Check|Specification)\(\s*"(\w+)"', sources))
    assert len(names) > 20
    assert names == set(CHECKS)
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(pictures(2)))])
    change(
        path, LAYER, attribute("checks", json.dumps([{"name": "noise_known", "value": 0, **AT_LEAST_ONE}]))
    )
    assert spear("report", path, "-o", tmp_path / "out.html").status == 0
    text = " ".join(read(tmp_path / "out.html").text.split())
    assert "The noise is of a kind that is understood" in text
    assert "two saved models (checkpoints)" in text
    assert "(noise_known) nonoyes" in text  # not passed: no, where yes is demanded


def test_labels_that_are_missing_are_explained(tmp_path: Path) -> None:
    def said(**changes: Any) -> str | None:
        made = replace(answer(pictures(3)), **changes)
        path = write_inversion(tmp_path / "out.h5", [("a", "fc", made)], display=Display((1, 8, 8)))
        return write_report(path, tmp_path / "out.html").sections[0].labels

    assert "the layers that were used end before it, with fc2." in str(said(chain=("fc", "fc2")))
    assert "this layer was inverted by itself" in str(said())
    assert "1 of 3 inputs have no label" in str(said(labels=np.array([1, -1, 2]), chain=("fc", "out")))
    assert said(labels=np.array([1, 0, 2]), chain=("fc", "out")) is None


@pytest.mark.parametrize("status", ["exact", "approximate", "partial"])
def test_the_status_line_names_its_premises(spear: Command, tmp_path: Path, status: str) -> None:
    made = answer(pictures(2), status=status, batch_size=3)
    rests = replace(made.certificate, rests_on=(spear_np.Premise("plain gradient", "it is plain"),))
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", replace(made, certificate=rests))])
    assert spear("report", path, "-o", tmp_path / "out.html").status == 0
    assert f"Status: {status} if plain gradient" in read(tmp_path / "out.html").text


@pytest.mark.parametrize(
    ("displays", "records", "said"),
    [
        ([Display()], ["record-0"], ["Layer fc"]),
        ([Display()], ["ward 7"], ["ward 7, layer fc"]),
        ([Display(), Display()], ["record-0", "record-1"], ["Record 0, layer fc", "Record 1, layer fc"]),
        ([Display(client="St. Mary", round=12)], ["record-0"], ["Client St. Mary, round 12, layer fc"]),
        (
            [Display(client=3, round=1), Display(client=3, round=1), Display(client=4)],
            ["x", "y", "z"],
            [
                "Client 3, round 1, layer fc (record x)",
                "Client 3, round 1, layer fc (record y)",
                "Client 4, layer fc",
            ],
        ),
    ],
)
def test_layers_are_called_by_client_and_round_where_these_are_known(
    tmp_path: Path, displays: list[Display], records: list[str], said: list[str]
) -> None:
    with InversionWriter(tmp_path / "out.h5", source="dump.h5") as out:
        for record, display in zip(records, displays, strict=True):
            out.add(record, "fc", answer(pictures(1)), display=display)
    report = write_report(tmp_path / "out.h5", tmp_path / "out.html")
    assert [section.title for section in report.sections] == said


@pytest.mark.parametrize("count", [5, 12])
def test_text_of_plots_is_large_enough_however_much_there_is(count: int) -> None:
    ticks = [f"{10.0**-number:.0e}" for number in range(count)]
    along = np.arange(count, dtype=np.float64)
    svg = plots.curves("a", "of the gradient", "share", [("share", along, along)], ticks=ticks)
    sizes = [float(size) for size in re.findall(r"font-size: ?([\d.]+)px", svg)]
    assert len(sizes) >= count
    assert min(sizes) >= 11
    assert ("rotate(-50" in svg) == (count > 8)


@pytest.mark.parametrize(("low", "high"), [(1.6e-3, 2.4e-3), (3e-6, 6e-6), (1e-9, 1e-2)])
def test_a_logarithmic_axis_has_ticks_that_differ(low: float, high: float) -> None:
    svg = plots.bounds("a", np.linspace(low, high, 20), None)
    (axis,) = re.findall(r'id="a-matplotlib.axis_2".*', svg, re.DOTALL)
    ticks = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]+)</text>", axis)]
    numbers = [tick for tick in ticks if tick[0].isdigit()]
    assert len(numbers) >= 2
    assert len(set(numbers)) == len(numbers)


def test_columns_that_are_left_out_are_counted(tmp_path: Path) -> None:
    names = tuple(f"column {number}" for number in range(450))
    path = write_inversion(
        tmp_path / "out.h5", [("a", "fc", answer(pictures(2, (450,))))], display=Display(feature_names=names)
    )
    (section,) = write_report(path, tmp_path / "out.html").sections
    assert section.omitted == "50 more columns are not on this page: spear-np export writes all of them."


def test_tables_have_their_columns(spear: Command, tmp_path: Path) -> None:
    names = ("age", "income", SCRIPT)
    rows = np.array([[41.0, 1234.5, 0.0], [19.0, 9.0, 1.0]])
    path = write_inversion(
        tmp_path / "out.h5", [("a", "fc", answer(rows))], display=Display(feature_names=names)
    )
    np.savetxt(tmp_path / "truth.csv", rows, delimiter=",", header="age,income,x", comments="")
    assert spear("report", path, tmp_path / "truth.csv", "-o", tmp_path / "out.html").status == 0
    page = read(tmp_path / "out.html")
    for name in (*names, "1234", "original"):
        assert name in page.text
    assert not any(tag == "img" for tag, _ in page.tags)


def test_features_are_called_features_and_drawn_as_curves(spear: Command, tmp_path: Path) -> None:
    path = write_inversion(
        tmp_path / "out.h5",
        [("a", "fc4", answer(pictures(3)))],
        display=Display((1, 8, 8)),
        seen=Seen(Sight.FEATURES, None, "conv2d"),
    )
    assert spear("report", path, "-o", tmp_path / "out.html").status == 0
    page = read(tmp_path / "out.html")
    assert "Layer 'fc4' sees the output of conv2d: these are features, not images or records." in page.text
    assert not any(tag == "img" for tag, _ in page.tags)
    assert sum(tag == "polyline" for tag, _ in page.tags) == 3


def test_what_is_missing_is_said_and_shown(spear: Command, tmp_path: Path) -> None:
    truth = pictures(5)
    path = write_inversion(
        tmp_path / "out.h5",
        [("a", "fc", answer(truth[:2], status="partial", batch_size=4))],
        display=Display((1, 8, 8)),
    )
    np.save(tmp_path / "truth.npy", truth)
    assert spear("report", path, tmp_path / "truth.npy", "-o", tmp_path / "out.html").status == 0
    page = read(tmp_path / "out.html")
    assert "2 of the 4 inputs that show in the gradient were not recovered." in page.text
    assert "1 true inputs do not show" in page.text
    assert "3 originals that were not recovered" in page.text
    assert "something is missing" in page.text


def test_the_dump_tells_what_was_shared(spear: Command, tmp_path: Path) -> None:
    dump = tmp_path / "dump.h5"
    truth = pictures(4).astype(np.float32)
    layer = LayerArrays(
        np.ones((12, 64), np.float32), np.ones(12, np.float32), activation="relu", inputs=truth
    )
    info = RecordInfo(loss="cross_entropy", batch_size=4, input_shape=(1, 8, 8))
    write_dump(dump, {"fc": layer}, record="a", info=info, labels=np.arange(4))
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(truth))], display=Display((1, 8, 8)))
    assert spear("report", path, dump, "-o", tmp_path / "out.html").status == 0
    page = read(tmp_path / "out.html")
    for words in ("fc (relu)", "cross_entropy", "float32", "weight_grad, bias_grad", "True label"):
        assert words in page.text
    other = tmp_path / "other.h5"
    write_dump(other, {"fc": layer}, record="b")
    assert "there is no record 'a'" in spear("report", path, other, "-o", tmp_path / "out.html").error


def test_thousands_of_inputs_fit(spear: Command, tmp_path: Path) -> None:
    rows = pictures(3000, (1, 8, 8))
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(rows))], display=Display((1, 8, 8)))
    assert spear("report", path, "-o", tmp_path / "out.html").status == 0
    page = read(tmp_path / "out.html")
    assert sum(tag == "img" for tag, _ in page.tags) == CARDS + 30
    assert "Inputs 2949 to 3000" in page.text


def test_large_pictures_are_made_small(spear: Command, tmp_path: Path) -> None:
    rows = pictures(300, (3, 64, 64))  # noise, which does not pack: 3.7 MB
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(rows))], display=Display((3, 64, 64)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spear_io.show.report.pictures.PIXEL_BYTES", 500_000)
        assert spear("report", path, "-o", tmp_path / "out.html").status == 0
    read(tmp_path / "out.html")
    assert (tmp_path / "out.html").stat().st_size < 1_500_000


def test_many_layers_are_listed(spear: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MOST_SECTIONS", 3)
    monkeypatch.setattr(gathering, "MOST_PLOTTED", 1)
    monkeypatch.setattr(gathering, "MOST_SUMMARISED", 5)
    layers = [(f"client-{number}", "fc", answer(pictures(2))) for number in range(7)]
    path = write_inversion(tmp_path / "out.h5", layers, display=Display((1, 8, 8)))
    assert spear("report", path, "-o", tmp_path / "out.html").status == 0
    page = read(tmp_path / "out.html")
    assert sum(tag == "section" for tag, _ in page.tags) == 3
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert "client-4" in page.text
    assert "2 more layers are in the file." in page.text


def attribute(name: str, value: Any) -> Callable[[h5py.Group], None]:
    return lambda group: group.attrs.__setitem__(name, value)


def dataset(name: str, value: Any) -> Callable[[h5py.Group], None]:
    def edit(group: h5py.Group) -> None:
        if name in group:
            del group[name]
        if value is not None:
            group[name] = value

    return edit


def of_check(name: str, value: Any) -> Callable[[h5py.Group], None]:
    def edit(group: h5py.Group) -> None:
        checks = json.loads(group.attrs["checks"])
        checks[0][name] = value
        group.attrs["checks"] = json.dumps(checks)

    return edit


@pytest.mark.parametrize("factor", [1.0, 16.0])
def test_a_truth_beyond_the_bounds_is_said_beside_the_verdict(
    spear: Command, tmp_path: Path, factor: float
) -> None:
    truth = pictures(5)
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(truth))], display=Display((1, 8, 8)))
    np.save(tmp_path / "truth.npy", factor * truth)
    assert spear("report", path, tmp_path / "truth.npy", "-o", tmp_path / "out.html").status == 0
    said = "5 of these inputs differ from the truth beside them by more than their bounds allow"
    assert (said in (tmp_path / "out.html").read_text()) == (factor != 1)


@pytest.mark.parametrize(("off", "holds"), [(0.0, True), (1e-8, True), (3e-5, False)])
def test_claims_are_held_against_the_bounds_themselves(
    spear: Command, tmp_path: Path, off: float, holds: bool
) -> None:
    """But for the rounding of the truth as it is stored: 1e-8 of the range passes, whatever the bound."""
    truth = pictures(5)
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(truth))], display=Display((1, 8, 8)))
    with h5py.File(path, "r+") as file:
        file["records/a/layers/fc/error_bound"][...] = 1e-12
    np.save(tmp_path / "truth.npy", truth.astype(np.float64) + off * np.ptp(truth))
    assert spear("report", path, tmp_path / "truth.npy", "-o", tmp_path / "out.html").status == 0
    page = (tmp_path / "out.html").read_text()
    assert page.count('<dt>As claimed</dt><dd class="yes">') == (5 if holds else 0)
    assert page.count('<dt>As claimed</dt><dd class="no">') == (0 if holds else 5)


HOLE = np.where(np.arange(4 * 64).reshape(4, 64) == 70, np.nan, 0.5)
ODD: dict[str, Callable[[h5py.Group], None]] = {
    **{f"client {name[:30]!r}": attribute("client", name) for name in HOSTILE},
    **{
        f"reason {name[:20]!r}": attribute("reason", name)
        for name in (SCRIPT, "", "x" * 60_000, "\x1b[31m", "a\nb")
    },
    "notes with tags": attribute("notes", f'["{SCRIPT}"]'),
    "caveats with tags": attribute("caveats", f'["{SCRIPT}"]'),
    "premise with tags": attribute("rests_on", f'[{{"name": "{SCRIPT}", "meaning": "{SCRIPT}"}}]'),
    "claim with tags": attribute("claim", f"exact {SCRIPT}"),
    "activation with tags": attribute("activation", SCRIPT),
    "check that means tags": of_check("meaning", SCRIPT),
    "caveats that are no JSON": attribute("caveats", "[["),
    "caveats nested without end": attribute("caveats", "[" * 30_000),
    "caveats that are numbers": attribute("caveats", "[1, 2]"),
    "premises of another kind": attribute("rests_on", '["plain"]'),
    "check without a threshold": of_check("relation", "=="),
    "threshold that is NaN": of_check("threshold", float("nan")),
    "figure that is NaN": of_check("value", float("nan")),
    "NaN among the inputs": dataset("inputs", HOLE),
    "infinity among the inputs": dataset("inputs", np.where(np.isnan(HOLE), np.inf, HOLE)),
    "huge inputs": dataset("inputs", np.full((4, 64), 1e300) * np.arange(1, 5)[:, None]),
    "no inputs": dataset("inputs", None),
    "nothing recovered": dataset("inputs", np.zeros((0, 64))),
    "inputs without features": dataset("inputs", np.zeros((4, 0))),
    "inputs that are texts": dataset("inputs", np.asarray([["a"]], dtype="S1")),
    "bounds of another number": dataset("error_bound", np.zeros(3)),
    "bounds that are NaN": dataset("error_bound", np.full(4, np.nan)),
    "bounds that are infinite": dataset("error_bound", np.full(4, np.inf)),
    "zeros that are negative": dataset("zero_count", np.full(4, -5)),
    "labels of another kind": dataset("labels", np.zeros(4)),
    "labels that are huge": dataset("labels", np.full(4, 2**62)),
    "spectrum of NaN": dataset("singular_values", np.full(9, np.nan)),
    "spectrum of zeros": dataset("singular_values", np.zeros(9)),
    "spectrum in two dimensions": dataset("singular_values", np.zeros((2, 2))),
    "shape of another size": attribute("input_shape", [3, 9, 9]),
    "shape without end": attribute("input_shape", [1] * 4000),
    "normalisation by zero": attribute("input_std", [0.0]),
    "normalisation that is NaN": attribute("input_mean", [float("nan")]),
    "batch that is negative": attribute("batch_size", -3),
    "batch that is huge": attribute("batch_size", 2**40),
    "seconds that are NaN": attribute("seconds", float("nan")),
    "status that is none": attribute("status", SCRIPT),
    "names of features with tags": attribute("feature_names", [SCRIPT] * 64),
    "no certificate": attribute("checks", "[]"),
    "checks that are no list": attribute("checks", "{}"),
    "checks that are texts": attribute("checks", '["a"]'),
    "thousands of checks": attribute("checks", json.dumps([{"name": "a"}] * 5000)),
    "check of huge threshold": of_check("threshold", 10**400),
    "evidence of another shape": dataset("evidence", np.zeros((3, 2))),
    "evidence without names": dataset("evidence", np.zeros((4, 6))),
    "history of another width": dataset("history", np.zeros((2, 9))),
    "history without end": dataset("history", np.zeros((5000, 4))),
    "history that is NaN": dataset("history", np.full((3, 4), np.nan)),
}


PLOTTED = ("spectrum", "history", "bounds", "zeros", "batch", "nothing", "premise")


@pytest.mark.parametrize("name", ODD)
def test_hostile_and_odd_inversions_make_a_page_or_a_line(
    spear: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if not name.startswith(PLOTTED):  # plots take most of the time, and nothing of these reaches them
        monkeypatch.setattr(gathering, "MOST_PLOTTED", 0)
    path = write_inversion(
        tmp_path / "out.h5",
        [("a", "fc", answer(pictures(4)))],
        display=Display((1, 8, 8), (0.5,), (0.25,)),
    )
    change(path, LAYER, ODD[name])
    output = tmp_path / "out.html"
    done = spear("report", path, "-o", output)
    if done.status == 0:
        assert done.err == ""
        assert SCRIPT not in output.read_text()
        read(output)
    else:
        assert done.status == 2
        assert "out.h5" in done.error
        assert not output.exists()
    assert leftovers(tmp_path) == []


def test_there_are_fifty_of_them() -> None:
    assert len(ODD) >= 50


@pytest.mark.parametrize("name", [name for name in HOSTILE if "/" not in name])
def test_hostile_names_stay_text(
    spear: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(gathering, "MOST_PLOTTED", 0)  # no plot holds a name
    path = write_inversion(
        tmp_path / "out.h5",
        [(name, name, answer(pictures(2)))],
        display=Display((1, 8, 8), client=name),
        notes=[name],
        source=name,
    )
    assert spear("report", path, "-o", tmp_path / "out.html", "--title", name).status == 0
    page = read(tmp_path / "out.html")
    if name.isprintable() and len(name) < 100:
        assert name in page.text


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + b"\0" * 100])
def test_what_is_no_inversion_is_one_line(spear: Command, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out.h5").write_bytes(content)
    assert "out.h5" in spear("report", tmp_path / "out.h5", "-o", tmp_path / "out.html").error
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize(
    "truth",
    [
        np.zeros((4, 63)),
        np.zeros((0, 64)),
        np.zeros(64),
        np.full((4, 64), np.nan),
        np.zeros((4, 64), complex),
    ],
    ids=["other features", "empty", "one row", "NaN", "complex"],
)
def test_a_truth_that_does_not_fit_is_one_line(spear: Command, tmp_path: Path, truth: Any) -> None:
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(pictures(4)))])
    np.save(tmp_path / "truth.npy", truth)
    assert "truth.npy" in spear("report", path, tmp_path / "truth.npy", "-o", tmp_path / "out.html").error
    assert not (tmp_path / "out.html").exists()


def test_other_files_are_not_replaced(spear: Command, tmp_path: Path) -> None:
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(pictures(2)))])
    output = tmp_path / "out.html"
    output.write_text("mine")
    assert "exists and is not a page that spear-np wrote" in spear("report", path, "-o", output).error
    assert output.read_text() == "mine"
    assert spear("report", path, "-o", output, "--force").status == 0
    assert spear("report", path, "-o", output).status == 0
    assert "is the file that is being read" in spear("report", path, "-o", path, "--force").error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(spear: Command, tmp_path: Path) -> None:
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(pictures(2)))])
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    assert "cannot be written" in spear("report", path, "-o", folder / "out.html").error


def test_every_premise_of_the_solver_has_its_words() -> None:
    from spear_io.show.report.words import premise_words
    from spear_np.checks import premises

    stated = {one.name for one in vars(premises).values() if isinstance(one, spear_np.Premise)}
    names = stated | {premises.PLAIN, premises.PLAIN_SINGLE, premises.NONE_HIDDEN}
    assert len(names) >= 8
    for name in (*names, "seen with 8 bits", "3 features zero"):
        short, long = premise_words(spear_np.Premise(name, "x"))
        assert short.endswith(".")
        assert long != "x", name


def test_an_older_file_makes_a_page(spear: Command, tmp_path: Path) -> None:
    old = replace(answer(pictures(2)), history=(), singular_values=())
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", old)], display=Display((1, 8, 8)))

    def forget(group: h5py.Group) -> None:
        for name in ("sees", "activation", "relative_noise", "rests_on", "claim"):
            group.attrs.pop(name, None)

    change(path, LAYER, forget)
    assert spear("report", path, "-o", tmp_path / "out.html").status == 0
    assert "written by an earlier version" in read(tmp_path / "out.html").text


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="there is no folder that takes no files from anybody"
)
def test_where_nobody_may_write_is_one_line(spear: Command, tmp_path: Path) -> None:
    path = write_inversion(tmp_path / "out.h5", [("a", "fc", answer(pictures(2)))])
    assert "cannot be written" in spear("report", path, "-o", "/proc/report").error


@pytest.mark.parametrize(
    ("value", "bound", "shown"),
    [
        (514.31, 0.15, "514"),
        (514.31, 0.05, "514.3"),
        (0.00512345, 1e-9, "0.00512345"),
        (107.99999, 1e-4, "108"),
        (-1.5, 1e-7, "-1.5"),
        (0.0, 1e-3, "0"),
        (12345678.0, 1.0, "1.23457·10⁷"),
        (3.14159, float("inf"), "3.14"),
        (float("nan"), 0.1, "–"),
        (77.0, 300.0, "77"),
    ],
)
def test_cells_of_tables_have_the_digits_that_are_known(value: float, bound: float, shown: str) -> None:
    assert known_text(value, bound) == shown
