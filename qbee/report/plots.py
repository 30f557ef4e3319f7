"""Plots of a run as PNG files, drawn without pyplot; every file is written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import librosa
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_curve

from qbee.files import replacing
from qbee.records import FrontEnd
from qbee.search import pareto as fronts
from qbee.train.metrics import Scores

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
PURPLE, YELLOW, GREY, INK = "#CC79A7", "#F0E442", "#7a7a7a", "#222222"
# Vermilion is too close to the colours of a mel image.
FRAME = "#E0002B"
ORIGIN_STYLES = tuple(zip((BLUE, ORANGE, GREEN, PURPLE, SKY, GREY), "osD^vP", strict=True))
STYLE: dict[Any, Any] = {
    "savefig.dpi": 110,
    "font.size": 10.5,
    "text.color": INK,
    # Names of files and places may hold dollar signs.
    "text.parse_math": False,
    "figure.titlesize": 12.5,
    "figure.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.labelspacing": 0.7,
}
MAX_EXAMPLES = 8
OCTAVES_HZ = 200 * 2.0 ** np.arange(8)


@contextmanager
def _drawing(path: Path, width_in: float, height_in: float) -> Iterator[Figure]:
    """Figure that is saved as ``path`` when the block ends without an error."""
    with matplotlib.rc_context(STYLE), replacing(path) as partial:
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(partial, format="png")


def _column(records: Sequence[dict], key: str) -> np.ndarray:
    """Values of one key as floats; None becomes NaN."""
    return np.array([np.nan if r[key] is None else r[key] for r in records], float)


def _write_note(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY)


def mel_examples(
    images_db: np.ndarray,
    front_end: FrontEnd,
    labels: Sequence[bool],
    probabilities: Sequence[float],
    threshold: float,
    captions: Sequence[str],
    path: Path,
) -> None:
    """Mel images of the first eight windows, with truth and prediction; wrong ones framed red.

    Parameters
    ----------
    images_db : np.ndarray [shape=(n, n_mels, n_frames)], dB
    labels : n truths, True is buzz
    probabilities : n probabilities of buzz
    captions : n texts of where a window comes from
    """
    n = min(MAX_EXAMPLES, len(images_db))
    truth, found = np.asarray(labels[:n], bool), np.asarray(probabilities[:n]) >= threshold
    wrong = int(np.sum(found != truth))
    columns, rows = min(4, max(1, n)), max(1, -(-n // 4))
    with _drawing(path, max(5.5, 2.75 * columns + 1), 2.9 * rows + 0.6) as figure:
        figure.suptitle(f"examples: {n}, of which {wrong} wrong at threshold {threshold:.2f}")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for ax in axes.flat[n:]:
            ax.set_axis_off()
        for ax, *case in zip(axes.flat, truth, found, probabilities, captions, strict=False):
            _label_example(ax, *case)
        if n == 0:
            return _write_note(axes[0, 0], "no windows")
        image = _draw_images(axes, np.asarray(images_db[:n]), front_end)
        figure.colorbar(image, ax=axes, label="power in dB re full scale", aspect=30, pad=0.02)
    return None


def _draw_images(axes: np.ndarray, images_db: np.ndarray, front_end: FrontEnd) -> AxesImage:
    """Images on one common colour scale; returns the last."""
    low, high = np.percentile(images_db, [1, 99.5])
    extent = (0, front_end.window_s, -0.5, front_end.n_mels - 0.5)
    style = {"origin": "lower", "aspect": "auto", "vmin": low, "vmax": high, "cmap": "magma"}
    for ax, image_db in zip(axes.flat, images_db, strict=False):
        image = ax.imshow(image_db, extent=extent, interpolation="nearest", **style)
        ax.grid(False)
    ticks_hz = _mel_ticks_hz(front_end)
    axes[0, 0].set_yticks(_band_of(ticks_hz, front_end), [f"{f:.0f}" for f in ticks_hz])
    for ax in axes[:, 0]:
        ax.set_ylabel("frequency in Hz")
    for column in axes.T:
        lowest = [ax for ax in column if ax.images][-1]
        lowest.set_xlabel("time in s")
        lowest.tick_params(labelbottom=True)
    return image


def _mel_ticks_hz(front_end: FrontEnd) -> np.ndarray:
    """Ends of the mel range and the octaves well inside it."""
    low, high = front_end.fmin_hz, front_end.fmax_hz
    inside = OCTAVES_HZ[(low * 1.5 < OCTAVES_HZ) & (high / 1.5 > OCTAVES_HZ)]
    return np.array([low, *inside, high])


def _band_of(frequency_hz: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Fractional number of the mel band with this centre, held inside the image."""
    edges_hz = librosa.mel_frequencies(
        front_end.n_mels + 2, fmin=front_end.fmin_hz, fmax=front_end.fmax_hz
    )
    band = np.interp(frequency_hz, edges_hz, np.arange(-1, front_end.n_mels + 1))
    return np.clip(band, -0.5, front_end.n_mels - 0.5)


def _label_example(ax: Axes, truth: bool, found: bool, probability: float, caption: str) -> None:
    words = {
        (True, True): "buzz, found",
        (False, False): "no buzz, none found",
        (True, False): "WRONG: buzz missed",
        (False, True): "WRONG: false alarm",
    }
    is_wrong = truth != found
    short = caption if len(caption) <= 34 else f"{caption[:16]}…{caption[-17:]}"
    title = f"{words[bool(truth), bool(found)]} ({probability:.2f})\n{short}"
    ax.set_title(title, fontsize=9, color=FRAME if is_wrong else INK)
    for spine in ax.spines.values():
        spine.set(visible=is_wrong, color=FRAME, linewidth=4)


def training_curves(histories: dict[str, list[dict]], path: Path, *, title: str) -> None:
    """Loss and validation F1 per epoch of each named training, with its best epoch.

    Parameters
    ----------
    histories : lists of entries with the fields of `qbee.train.fit.Epoch`
    """
    drawn = {name: history for name, history in histories.items() if history}
    with _drawing(path, 9.5, 2.9 * max(1, len(drawn)) + 0.5) as figure:
        figure.suptitle(title)
        axes = figure.subplots(max(1, len(drawn)), 2, squeeze=False)
        if not drawn:
            _write_note(axes[0, 0], "no epoch was trained")
            axes[0, 1].set_axis_off()
        for (loss_ax, f1_ax), (name, history) in zip(axes, drawn.items(), strict=False):
            _draw_loss(loss_ax, name, history)
            _draw_f1(f1_ax, name, history)


def _draw_loss(ax: Axes, name: str, history: list[dict]) -> None:
    epochs = _column(history, "epoch")
    ax.plot(epochs, _column(history, "train_loss"), ".-", color=BLUE, label="training")
    ax.plot(
        epochs, _column(history, "validation_loss"), "s--", ms=3.5, color=RED, label="validation"
    )
    ax.set(title=f"{name}: loss", xlabel="epoch", ylabel="cross-entropy in nats")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()


def _draw_f1(ax: Axes, name: str, history: list[dict]) -> None:
    epochs, f1 = _column(history, "epoch"), _column(history, "validation_f1")
    ax.plot(epochs, f1, ".-", color=GREEN)
    ax.set(title=f"{name}: F1", xlabel="epoch", ylabel="F1, validation windows", ylim=(0, 1.03))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if np.isfinite(f1).any():
        # As qbee.train.fit.best_epoch: among equal F1 the lowest validation loss.
        best = np.lexsort((_column(history, "validation_loss"), -f1))[0]
        ax.set_title(f"{name}: best F1 {f1[best]:.3f} in epoch {epochs[best]:.0f}")
        ax.plot(epochs[best], f1[best], "*", ms=15, color=ORANGE, mec=INK, mew=0.7)


def _draw_origins(ax: Axes, trials: list[dict], x: np.ndarray, y: np.ndarray) -> None:
    """Points of the trials; colour and marker tell where a trial came from."""
    origins = list(dict.fromkeys(trial["origin"] for trial in trials))
    for i, origin in enumerate(origins):
        of_origin = np.array([trial["origin"] == origin for trial in trials])
        color, marker = ORIGIN_STYLES[i % len(ORIGIN_STYLES)]
        style = {"ms": 6, "mec": "white", "mew": 0.5, "color": color, "label": origin}
        ax.plot(x[of_origin], y[of_origin], marker, **style)


def _draw_winner(ax: Axes, x: ArrayLike, y: ArrayLike, label: str) -> None:
    ax.plot(x, y, "*", ms=18, color=YELLOW, mec=INK, mew=1.1, label=label, zorder=6)


def trial_scores(trials: list[dict], path: Path, winner: int) -> None:
    """Score (higher is better) of each trial, the best so far, and the winner.

    Parameters
    ----------
    trials : entries with number, score, f1, tflite_bytes and origin
    winner : number of the trial that was chosen
    """
    trials = sorted(trials, key=lambda trial: trial["number"])
    number, score = _column(trials, "number"), _column(trials, "score")
    with _drawing(path, 8, 4.6) as figure:
        ax = figure.subplots()
        ax.set(xlabel="trial number", ylabel="score (higher is better)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not np.isfinite(score).any():
            return _write_note(ax, "no trial has a score")
        best = np.nanargmax(score)
        title = f"best score {score[best]:.3f} in trial {number[best]:.0f} of {len(trials)}"
        ax.set_title(title)
        so_far = np.fmax.accumulate(score)
        ax.step(number, so_far, where="post", color=INK, lw=1.2, label="best so far")
        _draw_origins(ax, trials, number, score)
        chosen = number == winner
        _draw_winner(ax, number[chosen], score[chosen], f"winner: trial {winner}")
        figure.legend(loc="outside lower center", ncols=4)
    return None


def pareto(
    trials: list[dict], path: Path, winner: int, references: dict[str, tuple[float | None, int]]
) -> None:
    """Validation F1 and file length of all trials, their Pareto front, the winner, references.

    Parameters
    ----------
    trials, winner : as in `trial_scores`
    references : F1 on the validation windows and bytes of models to compare with, by name
    """
    trials = [trial for trial in trials if trial["f1"] is not None]
    f1, size_kb = _column(trials, "f1"), _column(trials, "tflite_bytes") / 1000
    sizes_bytes = [trial["tflite_bytes"] for trial in trials]
    front = np.array(fronts.front(f1.tolist(), sizes_bytes), np.intp)
    with _drawing(path, 8, 5.4) as figure:
        ax = figure.subplots()
        ax.set_title(f"{len(front)} of {len(trials)} trials on the Pareto front")
        ax.set(xlabel="model file in kB (1000 bytes)", ylabel="F1, validation windows")
        ax.step(
            size_kb[front], f1[front], "--", where="post", color=INK, lw=1.2, label="Pareto front"
        )
        _draw_origins(ax, trials, size_kb, f1)
        _draw_references(ax, references)
        for i in np.flatnonzero(_column(trials, "number") == winner):
            label = f"winner, trial {winner}: F1 {f1[i]:.3f}, {size_kb[i]:.1f} kB"
            _draw_winner(ax, size_kb[i], f1[i], label)
        _scale_sizes(ax)
        figure.legend(loc="outside lower center", ncols=2)


def _draw_references(ax: Axes, references: dict[str, tuple[float | None, int]]) -> None:
    style: dict[str, Any] = {"ms": 11, "mfc": "none", "mec": RED, "mew": 1.8, "ls": "none"}
    for i, (name, (f1, size_bytes)) in enumerate(references.items()):
        if f1 is not None:
            label = f"{name}: F1 {f1:.3f}, {size_bytes / 1000:.1f} kB"
            ax.plot(size_bytes / 1000, f1, "DsP^v"[i % 5], label=label, **style)


def _scale_sizes(ax: Axes) -> None:
    """Logarithmic axis if the sizes differ much; its labels are plain numbers."""
    sizes = [x for line in ax.lines for x in np.atleast_1d(line.get_xdata()) if x > 0]
    if sizes and max(sizes) > 3 * min(sizes):
        ax.set_xscale("log", subs=[])
        ticks = np.outer(10.0 ** np.arange(-3, 6), [1, 1.5, 2, 3, 4, 6, 8]).ravel()
        low, high = min(sizes) / 1.15, max(sizes) * 1.15
        ax.set_xticks(ticks[(ticks >= low) & (ticks <= high)])
        ax.set_xlim(low, high)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def bits_per_layer(layers: dict[str, dict[str, int]], path: Path) -> None:
    """Table of kernel and map bits per layer, shaded by width, with bias bits as text.

    Parameters
    ----------
    layers : widths under kernel, bias and map, by layer in the order of the network
    """
    bits = np.array([[b["kernel"], b["map"], b["bias"]] for b in layers.values()], float)
    with _drawing(path, 6, 0.36 * len(layers) + 1.3) as figure:
        ax = figure.subplots()
        shade = (np.log2(bits) - 1) / 4
        shade[:, 2] = 0
        ax.imshow(shade, cmap="Blues", vmin=0, vmax=1.0, aspect="auto")
        for (row, column), value in np.ndenumerate(bits):
            color = "white" if shade[row, column] > 0.7 else INK
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
        ax.set_xticks(range(3), ["kernel", "map", "bias"])
        ax.set_yticks(range(len(layers)), list(layers))
        ax.hlines(np.arange(len(layers) + 1) - 0.5, -0.5, 2.5, color="white", lw=2)
        ax.vlines([0.5, 1.5], -0.5, len(layers) - 0.5, color="white", lw=2)
        ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        ax.spines[:].set_visible(False)
        ax.grid(False)
        ax.set_title("bits per layer, in the order of the network", pad=10)


def confusion_and_pr(
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    scores: Scores,
    path: Path,
    *,
    part: str = "test",
) -> None:
    """Confusion matrix and precision-recall curve of the windows of one part of the data.

    Parameters
    ----------
    labels : n truths, True is buzz
    probabilities : n probabilities of buzz
    scores : of these windows at ``threshold``
    """
    with _drawing(path, 9.5, 4.6) as figure:
        figure.suptitle(f"{part} windows: {scores.windows}, {scores.positives} with buzz")
        left, right = figure.subplots(1, 2)
        _draw_confusion(left, scores)
        left.set_title(f"at threshold {threshold:.3f}: F1 {_text(scores.f1)}")
        _draw_precision_recall(right, np.asarray(labels, bool), np.asarray(probabilities), scores)


def _text(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"


def _draw_confusion(ax: Axes, scores: Scores) -> None:
    """Counts, and their share of the windows of the same truth."""
    counts = np.array(
        [
            [scores.true_negatives, scores.false_positives],
            [scores.false_negatives, scores.true_positives],
        ]
    )
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1.2)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 0.65 else INK
        style: dict[str, Any] = {"ha": "center", "color": color}
        ax.text(column, row - 0.03, f"{count}", fontsize=19, va="center", **style)
        if counts[row].any():
            ax.text(
                column, row + 0.2, f"{share[row, column]:.1%}", fontsize=9.5, va="center", **style
            )
    ax.set(xticks=[0, 1], yticks=[0, 1], xlabel="predicted", ylabel="true")
    ax.set_xticklabels(["no buzz", "buzz"])
    ax.set_yticklabels(["no buzz", "buzz"])
    ax.grid(False)


def _draw_precision_recall(ax: Axes, labels: np.ndarray, probability: np.ndarray, scores: Scores):
    """Curve with the operating point and the precision of guessing, where they are defined."""
    ax.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.03), ylim=(0, 1.05))
    ax.set_title(f"average precision {_text(scores.average_precision)}")
    if not labels.any():
        return _write_note(ax, "no curve: no window has buzz")
    precision, recall, _ = precision_recall_curve(labels, probability)
    ax.step(recall, precision, where="post", color=BLUE, lw=1.8, label="precision and recall")
    rate = labels.mean()
    ax.axhline(rate, color=GREY, ls=":", lw=1.6, label=f"base rate {rate:.3f}")
    if scores.precision is not None and scores.recall is not None:
        label = f"threshold: precision {scores.precision:.3f}, recall {scores.recall:.3f}"
        _draw_winner(ax, scores.recall, scores.precision, label)
    return ax.legend(loc="lower left")
