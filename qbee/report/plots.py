"""Plots of a model as PNG files: examples, training and errors; whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve

from qbee.records import FrontEnd
from qbee.report import mel_axis
from qbee.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    drawing,
    mark_choice,
    values_of,
    write_note,
)
from qbee.train.metrics import Scores

# Vermilion is too close to the colours of a mel image.
FRAME = "#E0002B"
MAX_EXAMPLES = 8


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
    with drawing(path, max(5.5, 2.75 * columns + 1), 2.9 * rows + 0.6) as figure:
        figure.suptitle(f"examples: {n}, of which {wrong} wrong at threshold {threshold:.2f}")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for ax in axes.flat[n:]:
            ax.set_axis_off()
        for ax, *case in zip(axes.flat, truth, found, probabilities, captions, strict=False):
            _label_example(ax, *case)
        if n == 0:
            return write_note(axes[0, 0], "no windows")
        image = _draw_images(axes, np.asarray(images_db[:n]), front_end)
        figure.colorbar(image, ax=axes, label="power in dB re full scale", aspect=30, pad=0.02)
    return None


def _draw_images(axes: np.ndarray, images_db: np.ndarray, front_end: FrontEnd) -> AxesImage:
    """Images on one common colour scale; returns the last."""
    low, high = mel_axis.limits_db(images_db)
    extent = (0, front_end.window_s, -0.5, front_end.n_mels - 0.5)
    style = {"origin": "lower", "aspect": "auto", "vmin": low, "vmax": high}
    for ax, image_db in zip(axes.flat, images_db, strict=False):
        image = ax.imshow(
            image_db, extent=extent, interpolation="nearest", cmap=mel_axis.COLOURS, **style
        )
        ax.grid(False)
    for ax in axes[:, 0]:
        mel_axis.name_bands(ax, front_end)
    for column in axes.T:
        lowest = [ax for ax in column if ax.images][-1]
        lowest.set_xlabel("time in s")
        lowest.tick_params(labelbottom=True)
    return image


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
    with drawing(path, 9.5, 2.9 * max(1, len(drawn)) + 0.5) as figure:
        figure.suptitle(title)
        axes = figure.subplots(max(1, len(drawn)), 2, squeeze=False)
        if not drawn:
            write_note(axes[0, 0], "no epoch was trained")
            axes[0, 1].set_axis_off()
        for (loss_ax, f1_ax), (name, history) in zip(axes, drawn.items(), strict=False):
            _draw_loss(loss_ax, name, history)
            _draw_f1(f1_ax, name, history)


def _draw_loss(ax: Axes, name: str, history: list[dict]) -> None:
    epochs = values_of(history, "epoch")
    ax.plot(epochs, values_of(history, "train_loss"), ".-", color=BLUE, label="training")
    ax.plot(
        epochs, values_of(history, "validation_loss"), "s--", ms=3.5, color=RED, label="validation"
    )
    ax.set(title=f"{name}: loss", xlabel="epoch", ylabel="cross-entropy in nats")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()


def _draw_f1(ax: Axes, name: str, history: list[dict]) -> None:
    epochs, f1 = values_of(history, "epoch"), values_of(history, "validation_f1")
    ax.plot(epochs, f1, ".-", color=GREEN)
    ax.set(title=f"{name}: F1", xlabel="epoch", ylabel="F1, validation windows", ylim=(0, 1.03))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if np.isfinite(f1).any():
        # As qbee.train.fit.best_epoch: among equal F1 the lowest validation loss.
        best = np.lexsort((values_of(history, "validation_loss"), -f1))[0]
        ax.set_title(f"{name}: best F1 {f1[best]:.3f} in epoch {epochs[best]:.0f}")
        ax.plot(epochs[best], f1[best], "*", ms=15, color=ORANGE, mec=INK, mew=0.7)


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
    with drawing(path, 9.5, 4.6) as figure:
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
        return write_note(ax, "no curve: no window has buzz")
    precision, recall, _ = precision_recall_curve(labels, probability)
    ax.step(recall, precision, where="post", color=BLUE, lw=1.8, label="precision and recall")
    rate = labels.mean()
    ax.axhline(rate, color=GREY, ls=":", lw=1.6, label=f"base rate {rate:.3f}")
    if scores.precision is not None and scores.recall is not None:
        label = f"threshold: precision {scores.precision:.3f}, recall {scores.recall:.3f}"
        mark_choice(ax, scores.recall, scores.precision, label)
    return ax.legend(loc="lower left")
