"""Losses between a student's and a teacher's tensors; maps are [n, height, width, channels].

Sums of the papers over the values of a map are means here, so that a weight means the same for
maps of all sizes.
"""

from __future__ import annotations

from qbee.keras import tf

# The root of the mean squared error has no gradient at 0.
LEAST_SQUARED_ERROR = 1e-30


def rmse(logits, wanted):
    """Root of the mean squared error of logits (FAT, eq. 25)."""
    return tf.sqrt(tf.maximum(tf.reduce_mean((logits - wanted) ** 2), LEAST_SQUARED_ERROR))


def soft_labels(logits, wanted, temperature: float):
    """KL divergence of softened class probabilities times T^2 (Hinton et al., 2015)."""
    wanted, logits = (
        tf.nn.log_softmax(wanted / temperature),
        tf.nn.log_softmax(logits / temperature),
    )
    divergence = tf.reduce_sum(tf.exp(wanted) * (wanted - logits), axis=-1)
    return temperature**2 * tf.reduce_mean(divergence)


def hints(maps, wanted):
    """Half the mean squared error (FitNets)."""
    return tf.reduce_mean((maps - wanted) ** 2) / 2


def attention_map(maps):
    """Sum of squares over the channels, of length 1 for each input: [n, height * width]."""
    energy = tf.reduce_sum(maps**2, axis=-1)
    return tf.math.l2_normalize(tf.reshape(energy, [tf.shape(maps)[0], -1]), axis=-1)


def attention(maps, wanted):
    """Half the mean squared error of attention maps (Zagoruyko and Komodakis, 2017)."""
    return tf.reduce_mean((attention_map(maps) - attention_map(wanted)) ** 2) / 2


def _patterns(maps):
    """What each channel selects, of length 1: [n, height * width, channels]."""
    shape = tf.shape(maps)
    return tf.math.l2_normalize(tf.reshape(maps, [shape[0], -1, shape[3]]), axis=1)


def _mean_kernel(one, other):
    """Mean over pairs of channels, and inputs, of the polynomial kernel ``(x . y)^2``."""
    return tf.reduce_mean(tf.einsum("npc,npd->ncd", one, other) ** 2)


def neuron_selectivity(maps, wanted):
    """Half the squared maximum mean discrepancy of channels (Huang and Wang, 2017).

    The channels of an input are samples of a distribution; the numbers of channels may differ.
    """
    one, other = _patterns(maps), _patterns(wanted)
    within = _mean_kernel(one, one) + _mean_kernel(other, other)
    return within / 2 - _mean_kernel(one, other)


def activation_boundary(maps, wanted, margin: float):
    """Mean squared distance to the teacher's side of 0, by a margin (Heo et al., 2019).

    Only the signs of the teacher's map count: before or after a ReLU is the same.
    """
    is_active = tf.cast(wanted > 0, maps.dtype)
    too_low, too_high = tf.nn.relu(margin - maps), tf.nn.relu(margin + maps)
    return tf.reduce_mean(is_active * too_low**2 + (1 - is_active) * too_high**2)


def flow(first, last):
    """Flow matrices [n, channels of first, channels of last] (Yim et al., 2017).

    Products of channels of two maps of one height and width, averaged over positions.
    """
    positions = tf.cast(tf.shape(first)[1] * tf.shape(first)[2], first.dtype)
    return tf.einsum("nhwc,nhwd->ncd", first, last) / positions


def embedding(maps):
    """Average over positions: [n, channels]."""
    return tf.reduce_mean(maps, axis=(1, 2))


def _huber(difference):
    size = tf.abs(difference)
    return tf.where(size <= 1, size**2 / 2, size - 0.5)


def _length(vectors):
    """Euclidean length over the last axis; its gradient at 0 is 0."""
    squared = tf.reduce_sum(vectors**2, axis=-1)
    is_zero = squared <= 0
    return tf.where(is_zero, 0.0, tf.sqrt(tf.where(is_zero, 1.0, squared)))


def _relative_distances(points):
    """Distances [n, n] of points [n, d], divided by their mean over pairs."""
    distances = _length(points[:, None] - points[None])
    count = tf.cast(tf.shape(points)[0], points.dtype)
    mean = tf.reduce_sum(distances) / tf.maximum(count * (count - 1), 1)
    return tf.math.divide_no_nan(distances, mean)


def relational_distance(points, wanted):
    """Huber loss of relative distances, mean over pairs of inputs (Park et al., 2019)."""
    error = _huber(_relative_distances(points) - _relative_distances(wanted))
    count = tf.cast(tf.shape(points)[0], points.dtype)
    return tf.reduce_sum(error) / tf.maximum(count * (count - 1), 1)


def _cosines(points):
    """Cosines [j, i, k] of the angles at points j to points i and k, of points [n, d]."""
    edges = points[:, None] - points[None]
    units = tf.math.divide_no_nan(edges, _length(edges)[..., None])
    return tf.einsum("ijd,kjd->jik", units, units)


def relational_angle(points, wanted):
    """Huber loss of cosines, mean over triples of inputs (Park et al., 2019)."""
    error = _huber(_cosines(points) - _cosines(wanted))
    count = tf.cast(tf.shape(points)[0], points.dtype)
    return tf.reduce_sum(error) / tf.maximum(count * (count - 1) * (count - 2), 1)
