"""Static number formats of feature maps from the float network's activations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qbee.errors import ParameterError
from qbee.keras import tf
from qbee.quantize import ops, ranges
from qbee.quantize.fixed_point import SIGMOID_MAP, MapType
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT
from qbee.quantize.quantizers import Alpha

MENU = (4, 8, 16)
# Values kept per batch and map: enough for a mean squared error, small enough for any network.
SAMPLES_PER_BATCH = 50_000
BATCH_IMAGES = 32

# Number format by name of the node that writes the map (or "input") and by bits.
Maps = dict[str, dict[int, MapType]]


def _sample(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most ``SAMPLES_PER_BATCH`` of the values, always with the lowest and the highest."""
    flat = values.ravel()
    if flat.size <= SAMPLES_PER_BATCH:
        return flat
    chosen = rng.choice(flat, SAMPLES_PER_BATCH - 2)
    return np.append(chosen, (flat.min(), flat.max()))


def observe(net: FoldedNet, images: np.ndarray, *, seed: int) -> dict[str, list[np.ndarray]]:
    """Sampled float values, by batch, of the input and of every map, by name.

    Parameters
    ----------
    images : np.ndarray [shape=(n, *input_shape)]
        inputs of training windows, as the network takes them.
    """
    if not len(images):
        raise ParameterError("images must hold at least one input to calibrate with")
    rng = np.random.default_rng(seed)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in (INPUT, *net.maps)}

    def keep(name, y):
        kept[name].append(_sample(y.numpy(), rng))
        return y

    for start in range(0, len(images), BATCH_IMAGES):
        ops.run(net, tf.constant(images[start : start + BATCH_IMAGES]), on_map=keep)
    return kept


def signs(net: FoldedNet, *, input_is_signed: bool) -> dict[str, bool]:
    """Whether the result of the input and of each node can be negative."""
    found = {INPUT: input_is_signed}
    for node in net.nodes:
        if node.activation != "linear" or node.op == "sigmoid":
            found[node.name] = False
        else:
            found[node.name] = node.is_weighted or any(found[name] for name in node.inputs)
    return found


def calibrate(
    net: FoldedNet,
    images: np.ndarray,
    *,
    seed: int,
    method: str = "mse",
    alpha: Alpha = "auto_po2",
    is_affine: bool = False,
) -> Maps:
    """Number formats for every map at every width of the menu.

    Parameters
    ----------
    images : np.ndarray [shape=(n, *input_shape)]
        inputs of training windows; about 100 are enough. Without a negative value among them
        the input map is unsigned.
    method : str
        name of a method in ``ranges``, such as mse, minmax, kl or octav
    alpha : 'auto_po2' or 'auto'
        power-of-two or free steps
    is_affine : bool
        asymmetric formats for maps of at most 8 bits that can be negative; needs alpha='auto'.
    """
    seen = observe(net, images, seed=seed)
    is_signed = signs(net, input_is_signed=bool(np.min(images) < 0))
    found: Maps = {}
    for name, batches in seen.items():
        found[name] = {
            bits: ranges.map_type(
                batches,
                bits=bits,
                is_signed=is_signed[name],
                method=method,
                alpha=alpha,
                is_affine=is_affine and is_signed[name] and bits <= 8,
            )
            for bits in MENU
        }
    return found


def formats(net: FoldedNet, maps: Maps, bits: Mapping[str, int]) -> dict[str, MapType]:
    """Number format of the input and of every node when maps have these widths."""
    found = {INPUT: maps[INPUT][bits[INPUT]]}
    for node in net.nodes:
        if node.has_own_map:
            found[node.name] = maps[node.name][bits[node.name]]
        else:
            found[node.name] = SIGMOID_MAP if node.op == "sigmoid" else found[node.inputs[0]]
    return found
