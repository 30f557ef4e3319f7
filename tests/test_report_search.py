"""Plots of a search show every trial that ended, and nothing is cut off or covered by text."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from qbee.errors import ParameterError
from qbee.quantize.scheme import Scheme
from qbee.report import bits_plot, front_plot, search_plots, space_plot
from qbee.report.trial_rows import column, front_of, hypervolume_curve, trial_rows
from qbee.search.trial import Fidelity, Measured, Proposal, Trial

SCHEME = Scheme.model_validate(
    {"layers": {"stem": {"kernel": 4, "bias": 31, "map": 16}, "pool": {"map": 8}}}
)


def trial(number, f1=0.9, size_bytes=20000, *, origin="local", windows=640, **fields):
    """Trial with its F1 as score; without F1 it failed."""
    proposal = Proposal(point={}, fidelity=Fidelity(epochs=1, windows=windows), origin=origin)
    known = {"number": number, "proposal": proposal, "scheme": SCHEME, "seed": 0}
    if f1 is None:
        return Trial(**{"state": "failed", "failure": "no memory", **known, **fields})
    measured = Measured(
        metrics={"f1": f1, "loss": 2 - 2 * f1},
        interval=(f1 - 0.1, f1),
        costs={"tflite_bytes": size_bytes, "bits": 20 * size_bytes},
        score=f1,
        is_collapsed=fields.pop("is_collapsed", False),
        cpu_seconds=10.0,
    )
    return Trial(**{"state": "finished", "measured": measured, **known, **fields})


MANY = [
    trial(0, 0.8, 10_000, origin="uniform 4"),
    trial(1, 0.99, 9_000, windows=320),
    trial(2, None),
    trial(3, 0.95, 30_000),
    trial(4, 0.1, 5_000, is_collapsed=True),
    trial(5, 0.85, 35_000, origin="a third origin with a long name"),
    trial(6, None, state="running", failure=None),
    trial(7, 0.9, 18_000, scheme=Scheme.model_validate({"layers": {"stem": {"map": 8}}})),
]
CASES = {
    "many": MANY,
    "one": [trial(0)],
    "failed only": [trial(0, None)],
    "collapsed only": [trial(0, is_collapsed=True), trial(1, 0.3, is_collapsed=True)],
    "many origins": [trial(i, 0.5, 1000, origin=f"origin {i}") for i in range(12)],
    "far apart": [trial(i, 1 - 10.0**-i, 10 ** (i + 1)) for i in range(1, 7)],
    "none": [],
}
BESIDE = front_plot.Beside(
    references={"uniform 8": (0.92, 21_000), "uniform 16": (0.94, 39_000)},
    float_model=(0.96, 61_000),
    tuned={3: (0.97, 30_200), 7: (0.93, 18_100), 99: (0.9, 20_000)},
    score=lambda metric, size_bytes: metric * (1 + 0.05 * np.log2(60_000 / size_bytes)),
)


@pytest.fixture
def path(tmp_path):
    """Where a plot goes."""
    return tmp_path / "plot.png"


@pytest.fixture
def figures(monkeypatch):
    """All figures, as they are saved, with the extents of their texts in ``boxes``."""
    found, save = [], Figure.savefig

    def remember(self, *arguments, **settings):
        self.set_dpi(rcParams["savefig.dpi"])
        save(self, *arguments, **settings)
        self.boxes = boxes(self)
        found.append(self)

    monkeypatch.setattr(Figure, "savefig", remember)
    return found


def check_picture(path, figure):
    """Check that a picture has a sensible size and that all of its text is inside."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert max(image.size) <= 2000
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
    for box in figure.boxes:
        assert np.all(box[:2] >= -1), box
        assert np.all(box[2:] <= figure.bbox.max + 1), box


def boxes(figure):
    """Extents of the texts that are seen, in pixels [shape=(n, 4)]."""
    seen = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    ticks = {tick for ax in figure.axes for tick in _hidden_ticks(ax)}
    return np.array([t.get_window_extent().extents for t in seen if t not in ticks])


def _hidden_ticks(ax):
    """Labels of ticks outside an axis' limits, and of an axis that is off."""
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not ax.axison or not low <= tick.get_loc() <= high:
                yield from (tick.label1, tick.label2)


def overlaps(figure):
    """Pairs of texts of which one covers the other."""
    found = figure.boxes
    low, high = found[:, :2] + 0.5, found[:, 2:] - 0.5
    meets = np.all((low[:, None] < high[None]) & (low[None] < high[:, None]), axis=2)
    return int((meets.sum() - len(found)) // 2)


@pytest.mark.parametrize("trials", CASES.values(), ids=CASES)
@pytest.mark.parametrize("metric", ["f1", "loss"])
def test_pictures_of_any_trials(path, figures, trials, metric):
    search_plots.trial_scores(trials, path, metric=metric)
    check_picture(path, figures[-1])
    search_plots.trial_scores(trials, path, metric=metric, winner=3)
    check_picture(path, figures[-1])
    front_plot.accuracy_vs_size(trials, path, metric=metric)
    check_picture(path, figures[-1])
    bits_plot.bits_per_point(trials, path, metric=metric)
    check_picture(path, figures[-1])
    search_plots.hypervolume(
        {"$one_{search": trials, "another": trials[:3]},
        path,
        objectives=(metric, "tflite_bytes"),
        reference=(0.7, 61_000),
    )
    check_picture(path, figures[-1])


@pytest.mark.parametrize("trials", CASES.values(), ids=CASES)
def test_front_beside_other_models(path, figures, trials):
    front_plot.accuracy_vs_size(trials, path, metric="f1", winner=3, beside=BESIDE)
    check_picture(path, figures[-1])
    front_plot.accuracy_vs_size(trials, path, metric="f1", cost="bits", time="spent_cpu_seconds")
    check_picture(path, figures[-1])


def test_lines_of_equal_score_are_three_to_five(path, figures):
    front_plot.accuracy_vs_size(MANY, path, metric="f1", beside=BESIDE)
    (lines,) = [c for c in figures[-1].axes[0].collections if hasattr(c, "levels")]
    assert 3 <= len(lines.levels) <= 5


@pytest.mark.parametrize("score", [lambda metric, cost: 1.0, lambda metric, cost: np.nan])
def test_score_that_says_nothing_has_no_lines(path, figures, score):
    front_plot.accuracy_vs_size(MANY, path, metric="f1", beside=front_plot.Beside(score=score))
    assert not [c for c in figures[-1].axes[0].collections if hasattr(c, "levels")]


def test_finally_trained_models_are_joined_to_their_candidates(path, figures):
    front_plot.accuracy_vs_size(MANY, path, metric="f1", beside=BESIDE)
    red = [x for x in figures[-1].axes[0].lines if x.get_color() == front_plot.RED]
    joined = [line.get_xydata().tolist() for line in red]
    assert joined[0] == [[30, 0.95], [30.2, 0.97]]
    assert joined[1] == [[18, 0.9], [18.1, 0.93]]


def test_collapsed_trials_do_not_stretch_the_axes(path, figures):
    search_plots.trial_scores(MANY, path, metric="f1")
    front_plot.accuracy_vs_size(MANY, path, metric="f1")
    for ax in (*figures[0].axes, figures[1].axes[0]):
        assert ax.get_ylim()[0] > 0.7


@pytest.mark.parametrize("points", [1, 12, 40])
def test_bits_of_many_points_and_layers_do_not_overlap(path, figures, points):
    names = [f"block_{i}_depthwise" for i in range(60)]
    widths = {name: {"kernel": 16, "bias": 31, "map": 16} for name in names}
    scheme = Scheme.model_validate({"layers": widths})
    trials = [trial(i, 0.5 + i / 100, 100_000 + i, scheme=scheme) for i in range(points)]
    bits_plot.bits_per_point(trials, path, metric="f1")
    check_picture(path, figures[0])
    assert overlaps(figures[0]) == 0
    assert f"of {min(points, 16)}" in figures[0].get_suptitle()


def space_of(groups, menu):
    """Menus and elements of a space of so many groups."""
    names = [f"block_{i}_depthwise.{r}" for i in range(groups) for r in ("kernel", "bias", "map")]
    return {name: menu for name in names}, {name: 123_456 for name in names}


@pytest.mark.parametrize(
    ("groups", "menu"), [(1, (4, 8)), (6, (4, 8, 16)), (60, (2, 3, 4, 5, 6, 7, 8, 16))]
)
def test_spaces_of_any_extent_do_not_overlap(path, figures, groups, menu):
    menus, elements = space_of(groups, menu)
    settled = {"head.map": 8, "head.bias": 31, "width": 100}
    size = len(menu) ** len(menus)
    space_plot.space(menus, settled, elements, path, size=size, name="mobilenet_v2")
    check_picture(path, figures[0])
    assert overlaps(figures[0]) == 0


def test_space_without_hyperparameters_is_drawn(path, figures):
    space_plot.space({}, {"width": 50}, {}, path, size=1, name="beenet3")
    check_picture(path, figures[0])


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1 scheme"),
        (1944, "1,944 schemes"),
        (1_934_917_632, "1,934,917,632 schemes (1.9e9)"),
        (10**15 - 1, "999,999,999,999,999 schemes (1.0e15)"),
        (10**15, "1.0e15 schemes"),
        (3**1000, "1.3e477 schemes"),
    ],
)
def test_size_is_written_in_full_or_as_a_power(size, text):
    assert space_plot.size_text(size) == text


def test_rows_are_of_trials_that_ended_and_know_what_counts():
    rows = trial_rows(MANY[::-1])
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4, 5, 7]
    assert [row["number"] for row in rows if not row["is_whole"]] == [1]
    assert [row["number"] for row in rows if row["is_candidate"]] == [0, 3, 5, 7]
    assert [row["spent_cpu_seconds"] for row in rows] == [10, 20, 20, 30, 40, 50, 60]
    assert rows[2]["f1"] is None
    assert np.isnan(column(rows, "loss")[2])


def test_front_is_of_candidates_only():
    rows = trial_rows(MANY)
    for metric in ("f1", "loss"):
        found = [rows[i]["number"] for i in front_of(rows, (metric, "tflite_bytes"))]
        assert found == [0, 7, 3]


def test_losses_far_apart_have_a_logarithmic_axis_with_plain_numbers(path, figures):
    search_plots.trial_scores(CASES["far apart"], path, metric="loss")
    front_plot.accuracy_vs_size(CASES["far apart"], path, metric="loss")
    for ax in (figures[0].axes[1], figures[1].axes[0]):
        assert ax.get_yscale() == "log"
        texts = [label.get_text() for label in ax.get_yticklabels()]
        assert all(float(text.replace("\N{MINUS SIGN}", "-")) > 0 for text in texts)


def test_unknown_metric_is_refused_with_the_known_ones(path):
    with pytest.raises(ParameterError, match=r"no 'auc'; they have .*f1, loss, tflite_bytes"):
        search_plots.trial_scores(MANY, path, metric="auc")
    assert not path.exists()


def test_hypervolume_is_the_share_between_reference_and_ideal():
    trials = [trial(0, 0.75, 25_000), trial(1, None), trial(2, 1.0, 50_000), trial(3, 0.4, 1)]
    names = ("f1", "tflite_bytes")
    seconds, shares = hypervolume_curve(trials, objectives=names, reference=(0.5, 100_000))
    assert seconds.tolist() == [0, 10, 10, 20, 30]
    assert shares == pytest.approx([0, 0.375, 0.375, 0.625, 0.625])


def test_hypervolume_counts_losses_from_zero():
    names, trials = ("loss", "tflite_bytes"), [trial(0, 0.75, 50_000)]
    shares = hypervolume_curve(trials, objectives=names, reference=(1.0, 100_000))[1]
    assert shares.tolist() == [0, 0.25]


def test_trials_that_collapsed_or_trained_less_add_no_hypervolume():
    names, reference = ("f1", "tflite_bytes"), (0.0, 100_000)
    shares = hypervolume_curve(MANY, objectives=names, reference=reference)[1]
    assert shares[1] == shares[2] == shares[3] < shares[4] == shares[5]


@given(st.permutations(MANY))
def test_order_in_which_trials_are_given_does_not_matter(trials):
    assert trial_rows(trials) == trial_rows(MANY)


def test_reference_as_good_as_the_ideal_is_refused():
    with pytest.raises(ParameterError, match=r"reference=\(1.0, 100\) must be worse"):
        hypervolume_curve(MANY, objectives=("f1", "tflite_bytes"), reference=(1.0, 100))


def test_a_dozen_origins_look_different(path, figures):
    search_plots.trial_scores(CASES["many origins"], path, metric="f1")
    points = figures[0].legends[0].legend_handles
    looks = [(h.get_color(), h.get_marker()) for h in points if h.get_label()[:6] == "origin"]
    assert len(looks) == 12
    assert all(a != b for a, b in itertools.combinations(looks, 2))
