"""Small networks with all constructs that are exported, and random bit widths for them."""

import numpy as np

from qbee.keras import keras
from qbee.quantize import calibrate, convert, fold
from qbee.quantize.scheme import LayerBits, Scheme

L = keras.layers


def convolved(x, filters, size=3, strides=1, *, activation="relu", padding="same", name=None):
    """Convolution, batch norm and activation."""
    x = L.Conv2D(filters, size, strides, padding, use_bias=False, name=name)(x)
    x = L.BatchNormalization()(x)
    return {"relu": L.ReLU(), "relu6": L.ReLU(6.0), "linear": L.Activation("linear")}[activation](x)


def depthwise(x, strides=1, *, activation="relu", padding="same", name=None):
    x = L.DepthwiseConv2D(3, strides, padding, use_bias=False, name=name)(x)
    x = L.BatchNormalization()(x)
    return L.ReLU(6.0 if activation == "relu6" else None)(x)


def logits(x, outputs=3):
    return L.Dense(outputs, name="head")(L.Flatten()(x))


def separable(x):
    """The constructs of the BeeNets, with odd sizes and an incomplete pool."""
    x = L.MaxPooling2D(2)(convolved(x, 6, name="stem"))
    x = depthwise(x, name="dw")
    return logits(L.MaxPooling2D(3)(convolved(x, 8, 1, name="pw")))


def strided(x):
    x = convolved(x, 6, strides=2, name="stem")
    return logits(convolved(depthwise(x, 2, name="dw"), 8, 1, name="pw"))


def signed(x):
    """Layers without ReLU, whose maps are signed, and a pool before the ReLU."""
    x = L.MaxPooling2D(2)(L.Conv2D(6, 3, 1, "same", name="stem")(x))
    x = L.DepthwiseConv2D(3, 1, "same", name="dw")(x)
    return logits(L.ReLU()(L.MaxPooling2D(2)(L.Conv2D(8, 1, 1, "same", name="pw")(x))))


def mobilenet(x):
    """Inverted residuals with ReLU6, the strided one padded by hand as in Keras' MobileNets."""
    x = convolved(x, 8, strides=2, activation="relu6")
    y = depthwise(convolved(x, 16, 1, activation="relu6"), activation="relu6")
    x = L.Add()([x, convolved(y, 8, 1, activation="linear")])
    y = L.ZeroPadding2D(((0, 1), (1, 1)))(convolved(x, 16, 1, activation="relu6"))
    y = depthwise(y, 2, activation="relu6", padding="valid", name="strided")
    x = L.GlobalAveragePooling2D()(convolved(y, 8, 1, activation="linear"))
    return L.Dense(3, activation="softmax", name="head")(x)


def resnet(x):
    """Residual blocks, one of them with a strided shortcut, and pools that overlap."""
    x = convolved(x, 8)
    x = L.ReLU()(L.Add()([x, convolved(convolved(x, 8), 8, activation="linear")]))
    y = convolved(convolved(x, 12, strides=2), 12, activation="linear")
    shortcut = convolved(x, 12, 1, 2, activation="linear")
    x = L.Activation("relu")(L.Add()([y, shortcut]))
    x = L.MaxPooling2D(2, 1)(L.AveragePooling2D(3, 2, "same")(x))
    return logits(x, 4)


def squeeze_excite(x):
    """Gates of two ranks, batch norm and ReLU after a product, and a sum of three."""
    x = convolved(x, 8)
    gate = L.Dense(4, activation="relu")(L.GlobalAveragePooling2D()(x))
    gate = L.Reshape((1, 1, 8))(L.Dense(8, activation="sigmoid")(gate))
    y = L.BatchNormalization()(L.Multiply()([x, gate]))
    x = L.Add(name="sum")([y, L.ReLU()(y), x])
    gate = L.Dense(8, activation="sigmoid")(L.GlobalAveragePooling2D()(x))
    x = L.MaxPooling2D(3)(L.ReLU(6.0)(L.Multiply()([gate, x])))
    x = L.Flatten()(L.AveragePooling2D((5, 5))(x))
    return L.Dense(3, activation="sigmoid", name="head")(x)


def autoencoder(x):
    """Dense layers only; the codes in the middle and the output are signed."""
    x = L.ReLU()(L.BatchNormalization()(L.Dense(24, use_bias=False)(x)))
    x = L.Dense(24, activation="relu")(L.Dense(4)(x))
    return L.Dense(40, name="head")(x)


def padded(x):
    """Padding that is not TensorFlow's, strides of two lengths, and a mean that is a map again."""
    x = L.Conv2D(6, (3, 2), (1, 2), activation="relu", name="stem")(
        L.ZeroPadding2D(((2, 0), (0, 1)))(x)
    )
    x = L.DepthwiseConv2D(3, 2, name="dw")(L.ZeroPadding2D(((0, 1), (2, 0)))(x))
    x = L.ReLU(6.0)(L.Conv2D(8, 3, (2, 1), "valid", name="pw")(x))
    x = L.AveragePooling2D((2, 3), (1, 2))(x)
    x = L.Reshape((2, 2, 2))(L.GlobalAveragePooling2D()(x))
    return logits(L.Conv2D(4, 2, 1, "same", name="last")(x))


NETS = {
    separable: (16, 15, 1),
    strided: (16, 13, 2),
    signed: (16, 16, 1),
    mobilenet: (16, 15, 3),
    resnet: (16, 15, 3),
    squeeze_excite: (16, 15, 3),
    autoencoder: (40,),
    padded: (12, 17, 2),
}
GRAPHS = (mobilenet, resnet, squeeze_excite)


def with_random_weights(model, seed):
    """Random batch norms and biases, so that no channel is like another."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0, 0.5, layer.bias.shape))
    return model


class Case:
    """A folded float net, its calibrations, and inputs of which one saturates the input map."""

    def __init__(self, model, *, windows, seed=0):
        rng = np.random.default_rng(seed + 1)
        x = rng.normal(0, 1, (windows, *model.input_shape[1:])).astype(np.float32)
        self.net = fold.fold(with_random_weights(model, seed))
        self.images, self._maps = x, {}
        self.inputs = x.copy()
        self.inputs[-1] *= 40

    def maps(self, alpha, is_affine):
        if (alpha, is_affine) not in self._maps:
            self._maps[alpha, is_affine] = calibrate.calibrate(
                self.net, self.images, seed=0, alpha=alpha, is_affine=is_affine
            )
        return self._maps[alpha, is_affine]

    def quantized(self, scheme, *, map_alpha="auto_po2", is_affine=False, maps=None, **kernels):
        """Quantized Keras model up to its logits, and its integers."""
        maps = self.maps(map_alpha, is_affine) if maps is None else maps
        model = convert.quantized_model(self.net, scheme, maps, **kernels)
        model = convert.logits_model(model)
        return model, convert.to_fixed_point(model)


def built(make, *, windows=4):
    """Case of one of the networks."""
    inputs = keras.Input(NETS[make])
    return Case(keras.Model(inputs, make(inputs), name=make.__name__), windows=windows)


def read_by_a_sigmoid(net):
    """Maps that a sigmoid reads, directly or through nodes that keep their number format."""
    found = set()
    for node in net.nodes:
        source = node.inputs[0]
        while node.op == "sigmoid" and source != "input" and not net.node(source).has_own_map:
            source = net.node(source).inputs[0]
        found |= {source} if node.op == "sigmoid" else set()
    return found


def random_scheme(net, seed, **fixed):
    """Random widths; ``fixed`` replaces some of every layer.

    Input and output have at least 8 bits, and what a sigmoid reads at most 8.
    """
    rng = np.random.default_rng(seed)
    widths = {}
    for name in net.maps:
        kernel, map_ = (int(bits) for bits in rng.choice([4, 8, 16], 2))
        drawn = {"kernel": kernel, "bias": int(rng.choice([16, 31])), "map": map_} | fixed
        if name in read_by_a_sigmoid(net):
            drawn["map"] = min(drawn["map"], 8)
        widths[name] = drawn if name in net.weighted else {"map": drawn["map"]}
    widths[net.maps[-1]]["map"] = max(widths[net.maps[-1]]["map"], 8)
    layers = {name: LayerBits(**bits) for name, bits in widths.items()}
    return Scheme(layers=layers, input_bits=int(rng.choice([8, 16])))
