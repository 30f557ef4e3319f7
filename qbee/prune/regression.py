"""Regression: channels that predict best what the next layers made of all of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path_gram

from qbee.keras import keras, tf
from qbee.prune.kept import Kept
from qbee.prune.method import Pruned, Task, cut, register
from qbee.prune.network import Network, network_of
from qbee.prune.selection import evenly
from qbee.prune.surgery import pruned
from qbee.records import Record

# Pull of reconstructed weights towards the old ones, as a share of the mean square of what they
# read; without it, kernels of more weights than samples have no unique solution.
RIDGE = 1e-3
# Windows that go through the network at once.
BATCH_WINDOWS = 16


@dataclass(frozen=True)
class _Reading:
    """What a layer reads from the channels of a group, and what it should make of it.

    Attributes
    ----------
    patches : np.ndarray [shape=(samples, taps, channels)], float64
    kernel : np.ndarray [shape=(taps, channels, outputs)]
    wanted : np.ndarray [shape=(samples, outputs)], what the unpruned network made, without bias
    """

    layer: str
    patches: np.ndarray
    kernel: np.ndarray
    wanted: np.ndarray

    def normal_equations(self) -> tuple[np.ndarray, np.ndarray]:
        """Gram matrix of the contributions of channels, and their products with ``wanted``.

        The contribution of a channel is what the layer's kernel makes of it. Both are relative
        to the sum of squares of ``wanted``, so that several layers count alike.
        """
        taps, channels, outputs = self.kernel.shape
        patches = self.patches.reshape(len(self.patches), -1)
        kernel = self.kernel.reshape(-1, outputs)
        grams = (patches.T @ patches) * (kernel @ kernel.T)
        gram = grams.reshape(taps, channels, taps, channels).sum(axis=(0, 2))
        products = (patches * (self.wanted @ kernel.T)).sum(axis=0)
        energy = np.sum(self.wanted**2) or 1.0
        return gram / energy, products.reshape(taps, channels).sum(axis=0) / energy

    def reconstructed(self, kept: tuple[int, ...]) -> np.ndarray:
        """Kernel [taps, kept channels, outputs] of least squared error on the kept channels."""
        old = self.kernel[:, list(kept)]
        kernel = old.reshape(-1, old.shape[-1])
        patches = self.patches[:, :, list(kept)].reshape(len(self.patches), -1)
        gram = patches.T @ patches
        ridge = RIDGE * np.trace(gram) / len(gram) or 1.0
        missing = patches.T @ (self.wanted - patches @ kernel)
        change = np.linalg.solve(gram + ridge * np.eye(len(gram)), missing)
        return (kernel + change).reshape(old.shape)


def lasso_choice(gram: np.ndarray, products: np.ndarray, count: int) -> tuple[int, ...]:
    """The first ``count`` channels on the LASSO path, ascending.

    The penalty falls from where it leaves no channel until ``count`` have a coefficient. If the
    path ends before, as on channels that repeat others, those of largest contribution follow.
    """
    with warnings.catch_warnings():
        # It says that the path ends early; what is missing is filled in below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        _, _, path = lars_path_gram(
            products, gram, n_samples=1, method="lasso", max_iter=8 * len(gram)
        )
    sizes = np.count_nonzero(path, axis=0)
    coefficients = np.abs(path[:, np.argmax(sizes >= min(count, sizes.max()))])
    order = np.lexsort((-np.diag(gram), -coefficients))[:count]
    return tuple(sorted(int(i) for i in order))


def _taps(layer, maps: np.ndarray, channels: int) -> np.ndarray:
    """What a layer multiplies with its kernel: [positions, taps, channels] of one window."""
    if isinstance(layer, keras.layers.Conv2D):
        maps = tf.image.extract_patches(
            maps[None],
            sizes=(1, *layer.kernel_size, 1),
            strides=(1, *layer.strides, 1),
            rates=(1, *layer.dilation_rate, 1),
            padding=layer.padding.upper(),
        ).numpy()
    taps = layer.kernel.shape.num_elements() // (channels * layer.kernel.shape[-1])
    return maps.reshape(-1, taps, channels)


def _patches(model, layer, inputs: np.ndarray, channels: int, positions: int, seed) -> np.ndarray:
    """What a layer reads at some random positions of each window: [samples, taps, channels]."""
    rng = np.random.default_rng(seed)
    before = keras.Model(model.inputs, layer.input)
    samples = []
    for start in range(0, len(inputs), BATCH_WINDOWS):
        maps = before(inputs[start : start + BATCH_WINDOWS], training=False).numpy()
        # Window by window, as the patches of a large map are many times its size.
        for window in maps:
            found = _taps(layer, window, channels)
            samples.append(found[rng.integers(len(found), size=min(positions, len(found)))])
    return np.concatenate(samples).astype(np.float64)


def _kernel(layer, channels: int) -> np.ndarray:
    kernel = layer.kernel.numpy()
    return kernel.reshape(-1, channels, kernel.shape[-1])


@dataclass(frozen=True)
class _Reconstruction:
    """The unpruned model and the windows on which its maps are to be kept."""

    model: Any
    network: Network
    inputs: np.ndarray
    positions: int
    seed: int

    def reading(self, name: str, found: Pruned, number: int) -> _Reading:
        """What a layer reads in the network as far as it is pruned."""
        source, target = self.network.sources[name], self.network.targets[name]
        how = (self.inputs, source.channels, self.positions, [self.seed, number])
        whole, now = self.model.get_layer(name), found.model.get_layer(name)
        outputs = found.kept.channels.get(target.group, range(target.channels))
        kernel = _kernel(whole, source.channels)[..., list(outputs)]
        wanted = np.tensordot(_patches(self.model, whole, *how), kernel, 2)
        patches = _patches(found.model, now, *how)
        return _Reading(name, patches, _kernel(now, source.channels), wanted)

    def without(self, found: Pruned, group: str, count: int) -> Pruned:
        """The network with ``count`` channels of a group and new kernels after it."""
        names = self.network.consumers(group)
        readings = [self.reading(name, found, i) for i, name in enumerate(names)]
        equations = [reading.normal_equations() for reading in readings]
        grams, products = zip(*equations, strict=True)
        chosen = lasso_choice(np.sum(grams, axis=0), np.sum(products, axis=0), count)
        kept = Kept(channels={group: chosen})
        model = pruned(found.model, kept)
        for reading in readings:
            layer = model.get_layer(reading.layer)
            layer.kernel.assign(reading.reconstructed(chosen).reshape(layer.kernel.shape))
        return Pruned(model, found.kept.then(kept))


@register("regression")
class Regression(Record):
    """LASSO choice of channels and least squares on what reads them (He et al., 2017).

    Groups follow one another from the input on and lose the same share of channels each. The
    kernels that read a group, also several at once, are fitted on random positions of training
    windows to what they made in the unpruned network.
    """

    windows: int = Field(128, ge=1)
    positions: int = Field(10, ge=1)

    def prune(self, model, task: Task) -> Pruned:
        """Smaller model with reconstructed kernels."""
        inputs = task.required_data().some_inputs(self.windows, task.seed)
        network = network_of(model)
        work = _Reconstruction(model, network, inputs, self.positions, task.seed)
        found = cut(model, Kept())
        for group, count in evenly(network, task.ratio).items():
            found = work.without(found, group, count)
        return found
