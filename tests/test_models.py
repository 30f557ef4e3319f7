"""Networks: the parameters and shapes of the papers."""

import numpy as np
import pytest

from qbee.errors import ParameterError
from qbee.keras import keras, tf
from qbee.models import beenet, blocks, registry
from qbee.quantize import fold

# Trainable parameters, bee paper, table 2.
PARAMETERS = {"beenet1": 50_210, "beenet2": 17_570, "beenet3": 6_370}
LAST_MAPS = {"beenet1": (2, 2, 256), "beenet2": (4, 4, 128), "beenet3": (4, 4, 64)}


@pytest.fixture(scope="module", params=sorted(PARAMETERS))
def model(request):
    return registry.build(request.param)


def test_trainable_parameters_are_those_of_the_paper(model):
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == PARAMETERS[model.name]


def test_mel_images_of_128_bands_and_frames_become_two_logits(model):
    assert model.input_shape == (None, 128, 128, 1)
    assert model.output_shape == (None, 2)
    head = model.get_layer("head")
    assert head.activation is keras.activations.linear
    assert model.get_layer("flatten").input_shape == (None, *LAST_MAPS[model.name])


def test_convolutions_have_no_bias_and_a_batch_norm_like_pytorchs(model):
    found = [a for a in model.layers if isinstance(a, keras.layers.BatchNormalization)]
    convolutions = [a for a in model.layers if isinstance(a, keras.layers.Conv2D)]
    convolutions += [a for a in model.layers if isinstance(a, keras.layers.DepthwiseConv2D)]
    assert len(found) == len(convolutions) == 1 + 2 * len(beenet.ROWS[model.name])
    # PyTorch's momentum 0.1 is the weight of the new value, Keras' that of the old.
    assert {(a.momentum, a.epsilon) for a in found} == {(0.9, 1e-5)}
    assert not any(a.use_bias for a in convolutions)


def test_every_layer_has_a_name_of_its_own_that_does_not_change(model):
    again = registry.build(model.name)
    assert [a.name for a in again.layers] == [a.name for a in model.layers]


def test_another_image_size_is_built_on_request():
    model = registry.build("beenet3", n_mels=32, n_frames=64)
    assert model.input_shape == (None, 32, 64, 1)
    assert model(tf.zeros((3, 32, 64, 1))).shape == (3, 2)


# Trainable parameters, bee paper, table 1, with one input channel and two classes.
LARGE = {"mobilenet_v2": 2_225_858, "resnet9": 6_585_474}


@pytest.mark.parametrize("name", sorted(LARGE))
def test_larger_networks_have_the_parameters_of_the_paper_and_can_be_folded(name):
    model = registry.build(name)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == LARGE[name]
    assert model.output_shape == (None, 2)
    net = fold.fold(model)
    norms = [a for a in model.layers if isinstance(a, keras.layers.BatchNormalization)]
    # One weighted layer for each batch norm, and the head.
    assert len(net.weighted) == len(norms) + 1
    kernels = sum(k.size for k in net.kernels.values())
    biases = sum(b.size for b in net.biases.values())
    scales = sum(2 * int(a.gamma.shape[0]) for a in norms)
    own_biases = sum(
        int(a.bias.shape[0])
        for a in model.layers
        if isinstance(a, keras.layers.Conv2D) and a.use_bias
    )
    folded_biases = biases - net.biases["head"].size
    assert kernels + biases == LARGE[name] - scales + folded_biases - own_biases


def test_the_registry_lists_its_names_in_order():
    assert set(PARAMETERS) <= set(registry.names())
    assert registry.names() == sorted(registry.names())
    assert registry.check("beenet2") == "beenet2"


@pytest.mark.parametrize("call", [registry.build, registry.check])
def test_an_unknown_name_is_answered_with_the_known_ones(call):
    with pytest.raises(ParameterError, match="model='BeeNet9'.*beenet1.*beenet2.*beenet3"):
        call("BeeNet9")


def test_a_registered_builder_is_called_with_the_image_size(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    @registry.register("tiny")
    def tiny(*, n_mels, n_frames, width):
        return (n_mels, n_frames, width)

    assert "tiny" in registry.names()
    assert registry.build("tiny", n_mels=4, n_frames=8, width=50) == (4, 8, 50)
    assert registry.build("tiny") == (128, 128, 100)
    assert tiny(n_mels=1, n_frames=2, width=3) == (1, 2, 3)


NAMES = ("beenet1", "beenet2", "beenet3", "mobilenet_v2", "resnet9")


def sizes_of(name, **settings):
    """Shapes of all kernels by layer, on images that leave one element before the head."""
    model = registry.build(name, n_mels=64, n_frames=64, **settings)
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
    return {a.name: tuple(a.get_weights()[0].shape) for a in model.layers if isinstance(a, kinds)}


@pytest.mark.parametrize("name", NAMES)
def test_a_width_of_100_percent_is_the_network_itself(name):
    assert sizes_of(name, width=100) == sizes_of(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [25, 50])
def test_a_width_scales_the_channels_of_every_layer_but_the_input_and_the_output(name, width):
    whole, part = sizes_of(name), sizes_of(name, width=width)
    assert list(whole) == list(part)
    for layer, shape in whole.items():
        if layer == "head":
            assert part[layer] == (shape[0] * width // 100, 2)
            continue
        inputs, outputs = part[layer][-2:]
        is_first = shape[-2] == 1
        assert inputs == (1 if is_first else shape[-2] * width // 100)
        # A depthwise kernel has its channels in front of a multiplier of 1.
        assert outputs == (1 if shape[-1] == 1 else shape[-1] * width // 100)
        assert part[layer][:-2] == shape[:-2]


@pytest.mark.parametrize("name", NAMES)
def test_half_the_channels_have_a_quarter_of_the_pointwise_weights(name):
    def pointwise(sizes):
        found = [s for s in sizes.values() if len(s) == 4 and min(s[-2:]) > 1]
        return sum(int(np.prod(shape)) for shape in found)

    assert 4 * pointwise(sizes_of(name, width=50)) == pointwise(sizes_of(name))


def test_a_layer_keeps_at_least_one_channel_and_counts_are_rounded():
    assert [blocks.scaled(3, width) for width in (10, 50, 60, 100, 200)] == [1, 2, 2, 3, 6]
