"""Plots are readable PNGs of any data, written whole, without pyplot."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qbee.records import FrontEnd
from qbee.report import mel_axis, plots, search_plots
from qbee.train.metrics import evaluate

FRONT_END = FrontEnd(n_mels=16, n_frames=32)


def epoch(number, f1=0.8):
    """Entry of a training history."""
    losses = {"train_loss": 1 / number, "validation_loss": 1.2 / number}
    return {"epoch": number, "validation_f1": f1, **losses}


def check_is_png(path):
    """Check that a picture can be decoded, has a sensible size and is not blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 100
        assert max(image.size) <= 2000
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


@pytest.fixture
def path(tmp_path):
    """Where a plot goes."""
    return tmp_path / "plot.png"


@pytest.mark.parametrize("n", [0, 6, 9])
def test_mel_examples_of_any_number_of_windows(path, n):
    images = np.random.default_rng(0).normal(-40, 10, (n, 16, 32)).astype(np.float32)
    labels, found = np.arange(n) % 2 == 0, np.linspace(0, 1, n)
    plots.mel_examples(
        images, FRONT_END, labels, found, 0.5, [f"${i}_{{.wav" for i in range(n)], path
    )
    check_is_png(path)


def test_wrong_examples_have_a_red_frame(path):
    images = np.zeros((2, 16, 32), np.float32)
    images[:, 0, 0] = -10
    frame = np.array([int(plots.FRAME[i : i + 2], 16) for i in (1, 3, 5)])
    counts = []
    for labels in ([True, False], [False, True]):
        plots.mel_examples(images, FRONT_END, labels, [0.9, 0.1], 0.5, ["a", "b"], path)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        counts.append(int((pixels == frame).all(axis=-1).sum()))
    assert counts[0] == 0
    assert counts[1] > 1000


def test_mel_ticks_stand_at_their_bands():
    front_end = FrontEnd()
    ticks_hz = mel_axis.ticks_hz(front_end)
    bands = mel_axis.band_of(ticks_hz, front_end)
    assert ticks_hz.tolist() == [50, 200, 400, 800, 1450]
    assert np.all(np.diff(bands) > 0)
    # Slaney's scale is linear below 1 kHz.
    assert (bands[3] - bands[2]) / (bands[2] - bands[1]) == pytest.approx(2)


@pytest.mark.parametrize(
    "histories",
    [
        {"float": [epoch(i) for i in range(1, 9)], "fine-tuning": [epoch(1), epoch(2)]},
        {"float": [epoch(1)], "fine-tuning": []},
        {"float": [epoch(1, None)]},
        {},
    ],
)
def test_training_curves_of_any_length(path, histories):
    plots.training_curves(histories, path, title="beenet3")
    check_is_png(path)


def test_bits_of_many_layers(path):
    bits = {"kernel": 16, "bias": 31, "map": 4}
    search_plots.bits_per_layer({f"a_long_layer_name_{i}": bits for i in range(30)}, path)
    check_is_png(path)


@pytest.mark.parametrize(
    ("labels", "probability"),
    [
        ([1, 0, 1, 0], [0.9, 0.2, 0.3, 0.6]),
        ([1, 0, 1, 0], [0.9, 0.2, 0.8, 0.1]),
        ([0, 0, 0], [0.1, 0.9, 0.2]),
        ([1, 1, 1], [0.1, 0.9, 0.2]),
        ([1, 0], [0.1, 0.2]),
        ([], []),
    ],
    ids=["usual", "no errors", "no buzz", "only buzz", "nothing found", "no windows"],
)
def test_confusion_of_any_windows(path, labels, probability):
    labels, probability = np.array(labels, bool), np.array(probability)
    scores = evaluate(labels, probability, threshold=0.5)
    plots.confusion_and_pr(labels, probability, 0.5, scores, path)
    check_is_png(path)


def test_failed_plot_leaves_the_old_file_and_no_other(path):
    search_plots.bits_per_layer({"stem": {"kernel": 4, "bias": 31, "map": 16}}, path)
    before = path.read_bytes()
    with pytest.raises(KeyError):
        search_plots.bits_per_layer({"stem": {"kernel": 8}}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_plots_need_neither_pyplot_nor_tensorflow_and_leave_the_style_alone(path):
    code = (
        "import sys, pathlib, matplotlib;"
        "from qbee.report import drawing, html, plots;"
        "from qbee.report import bits_plot, front_plot, search_plots, space_plot;"
        "before = {key: matplotlib.rcParams[key] for key in drawing.STYLE};"
        "search_plots.trial_scores([], pathlib.Path(sys.argv[1]), metric='f1');"
        "assert before == {key: matplotlib.rcParams[key] for key in drawing.STYLE};"
        "assert not {'tensorflow', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)
