"""Kernels whose weights are indices into a small codebook of shared values (k-means)."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from qbee.errors import ParameterError
from qbee.keras import known_to_qkeras, qkeras, tf

# A centroid or a scale that is no power of two is a float32.
FREE_SCALE_BITS = 32
# k-means++ draws its first centroids; the same weights must always have the same codebook.
SEED = 0


def codebook_of(weights: np.ndarray, *, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids of ``weights`` by k-means and the index of each weight's centroid.

    Weights with at most ``2**bits`` different values are their own codebook, exactly.

    Parameters
    ----------
    weights : np.ndarray [any shape], finite

    Returns
    -------
    centroids : np.ndarray [<= 2**bits], float32
    index : np.ndarray [shape of weights], int32
    """
    values, index, counts = np.unique(weights, return_inverse=True, return_counts=True)
    clusters = np.arange(len(values))
    if len(values) > 2**bits:
        # Without a tolerance it ends where every weight has its nearest centroid.
        kmeans = KMeans(2**bits, n_init=1, random_state=SEED, tol=0)
        points = values.astype(np.float64)[:, None]
        clusters = kmeans.fit_predict(points, sample_weight=counts)
        values = kmeans.cluster_centers_[:, 0]
    index = clusters[index].reshape(np.shape(weights))
    return values.astype(np.float32), index.astype(np.int32)


@known_to_qkeras
class quantized_codebook(qkeras.quantizers.BaseQuantizer):  # noqa: N801 - QKeras' naming
    """K-means codebook: a weight is an index of ``bits`` bits into ``2**bits`` float centroids.

    No .tflite can hold this form: TFLite Micro's kernels read no codebook. Export must refuse
    it or store the values as int8 or int16; it serves to compare accuracy per bit.

    Parameters
    ----------
    bits : int in [1, 8]

    Raises
    ------
    ParameterError
        if ``bits`` is out of range.

    Notes
    -----
    Every weight receives the sum of the gradients of all weights of its cluster, which is the
    gradient of their centroid (Han, Mao, Dally 2016, eq. 3). Once the kernel holds its
    quantized values (`share_kernels`), any element-wise optimizer therefore moves whole
    clusters: the kernel itself is codebook and indices, trained by ``model.fit`` and saved with
    the weights, and there is no other state. Some optimizers (RMSprop) round members of a
    cluster apart by an ulp; the next call's k-means joins them. Of a kernel that is not shared
    yet, every call makes a new codebook. Limits on the norm of gradients and penalties on
    weights count a centroid once per member.
    """

    def __init__(self, bits: int):
        super().__init__()
        if not 1 <= bits <= 8:
            raise ParameterError(f"bits={bits} must be in [1, 8]")
        self.bits = bits
        # QKeras rescales and clips the initial kernel unless alpha is a string.
        self.alpha = "auto"

    def max(self) -> float:
        """No limit: QKeras would clip kernels to [-1, 1] at every training step."""
        return tf.float32.max

    def _codebook(self, weights):
        return codebook_of(weights, bits=self.bits)

    def __call__(self, x):
        """Quantized float32 ``x``, same shape; the gradient is summed over each cluster."""

        @tf.custom_gradient
        def shared(x):
            centroids, index = tf.numpy_function(self._codebook, [x], [tf.float32, tf.int32])
            centroids, index = tf.ensure_shape(centroids, [None]), tf.ensure_shape(index, x.shape)

            def gradient(upstream):
                sums = tf.math.unsorted_segment_sum(upstream, index, 2**self.bits)
                return tf.gather(sums, index)

            return tf.gather(centroids, index), gradient

        return shared(tf.convert_to_tensor(x))

    def __str__(self) -> str:
        return f"quantized_codebook({self.bits})"

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {"bits": self.bits}

    @classmethod
    def from_config(cls, config: dict):
        """Quantizer with these arguments."""
        return cls(**config)


def share_kernels(model) -> None:
    """Set every kernel that has a codebook to its quantized values, before fine-tuning it."""
    for layer in model.layers:
        if not hasattr(layer, "get_quantizers"):
            continue
        # QKeras lists quantizers in the order of the weights, with one for an absent bias.
        for quantizer, weights in zip(layer.get_quantizers(), layer.weights, strict=False):
            if isinstance(quantizer, quantized_codebook):
                weights.assign(quantizer(weights))
