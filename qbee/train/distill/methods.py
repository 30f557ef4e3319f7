"""What can be learned from a teacher, by name; parameters are records with the papers' defaults.

The papers' weights are for hundreds of epochs of SGD. In short trainings with Adam the large ones
drown the labels out: on a test network with 12 epochs, hints, attention, neuron selectivity and
relations needed a tenth to a hundredth of them not to be worse than the labels alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from qbee.errors import ParameterError
from qbee.records import Record
from qbee.registry import Registry
from qbee.train.distill import losses, maps
from qbee.train.distill.connector import Connector, NoConnector
from qbee.train.distill.maps import Pairs


@dataclass(frozen=True)
class Seen:
    """What a network makes of a batch: logits [n, classes], and maps [n, height, width, c]."""

    logits: Any
    maps: tuple[Any, ...]


class Method(Record):
    """A loss between student and teacher, and its weight."""

    method: str
    weight: float = Field(gt=0)

    def pairs(self, student, teacher) -> Pairs:
        """Layers of (student, teacher) whose maps the loss is given; none here."""
        return ()

    def connectors(
        self, channels: Sequence[tuple[int, int]], rng: np.random.Generator
    ) -> list[Connector | NoConnector]:
        """What is trained beside the student for pairs of these channels; none here."""
        return []

    @abstractmethod
    def loss(self, student: Seen, teacher: Seen, connectors: Sequence) -> Any:
        """Loss of a batch, a scalar, without the weight."""


_METHODS: Registry[type[Method]] = Registry("method")
register, names, get = _METHODS.register, _METHODS.names, _METHODS.get


class MapMethod(Method):
    """A method that compares maps.

    ``layers`` are pairs of names (student's, teacher's); None takes the last map of each spatial
    size, paired by ``maps.pairs``.
    """

    layers: Pairs | None = Field(None, min_length=1)

    def pairs(self, student, teacher) -> Pairs:
        """Layers of (student, teacher) whose maps the loss is given."""
        return self.layers or self._chosen(student, maps.pairs(student, teacher))

    def _chosen(self, student, found: Pairs) -> Pairs:
        """Those of the automatic pairs that the method takes: all."""
        return found


@register("soft_labels")
class SoftLabels(Method):
    """Softened class probabilities (Hinton et al., 2015).

    With the temperature and the weight, beside the labels, of their speech recogniser.
    """

    method: Literal["soft_labels"] = "soft_labels"
    weight: float = Field(2.0, gt=0)
    temperature: float = Field(2.0, gt=0)

    def loss(self, student: Seen, teacher: Seen, connectors: Sequence) -> Any:
        """KL divergence times T^2."""
        return losses.soft_labels(student.logits, teacher.logits, self.temperature)


@register("label_free")
class LabelFree(Method):
    """Root mean squared error of logits (FAT, eq. 24-25, with ``label_weight`` 0)."""

    method: Literal["label_free"] = "label_free"
    weight: float = Field(1.0, gt=0)

    def loss(self, student: Seen, teacher: Seen, connectors: Sequence) -> Any:
        """RMSE of the logits."""
        return losses.rmse(student.logits, teacher.logits)


@register("hints")
class Hints(MapMethod):
    """The teacher's middle map from the student's through a regressor (Romero et al., 2015).

    They train on hints before, alone; Huang and Wang (2017) jointly, with this weight.
    """

    method: Literal["hints"] = "hints"
    weight: float = Field(100.0, gt=0)

    def _chosen(self, student, found: Pairs) -> Pairs:
        return (found[len(found) // 2],)

    def connectors(
        self, channels: Sequence[tuple[int, int]], rng: np.random.Generator
    ) -> list[Connector | NoConnector]:
        """A regressor for each pair."""
        return [Connector(*pair, rng=rng) for pair in channels]

    def loss(self, student: Seen, teacher: Seen, connectors: Sequence) -> Any:
        """Sum over pairs of half the mean squared error."""
        found = zip(connectors, student.maps, teacher.maps, strict=True)
        return sum(losses.hints(*maps.alike(regressor(s), t)) for regressor, s, t in found)


@register("attention")
class Attention(MapMethod):
    """Where the maps are strong (Zagoruyko and Komodakis, 2017)."""

    method: Literal["attention"] = "attention"
    weight: float = Field(1000.0, gt=0)

    def loss(self, student: Seen, teacher: Seen, connectors: Sequence) -> Any:
        """Sum over pairs of half the mean squared error of attention maps."""
        found = zip(student.maps, teacher.maps, strict=True)
        return sum(losses.attention(*maps.alike(s, t)) for s, t in found)


@register("neuron_selectivity")
class NeuronSelectivity(MapMethod):
    """Where single channels are strong, as a distribution (Huang and Wang, 2017).

    Kernel ``(x . y)^2`` and weight are theirs.
    """

    method: Literal["neuron_selectivity"] = "neuron_selectivity"
    weight: float = Field(50.0, gt=0)

    def loss(self, student: Seen, teacher: Seen, connectors: Sequence) -> Any:
        """Sum over pairs of half the squared maximum mean discrepancy."""
        found = zip(student.maps, teacher.maps, strict=True)
        return sum(losses.neuron_selectivity(*maps.alike(s, t)) for s, t in found)


@register("activation_boundary")
class ActivationBoundary(MapMethod):
    """Which neurons are active, by a margin (Heo et al., 2019).

    They train on it before, alone, where the weight has no effect. The student's map is that
    before its activation if that is a layer of its own, which it is not in quantized networks.
    """

    method: Literal["activation_boundary"] = "activation_boundary"
    weight: float = Field(1.0, gt=0)
    margin: float = Field(1.0, gt=0)

    def _chosen(self, student, found: Pairs) -> Pairs:
        return tuple((maps.before_activation(student, s), t) for s, t in found)

    def connectors(
        self, channels: Sequence[tuple[int, int]], rng: np.random.Generator
    ) -> list[Connector | NoConnector]:
        """A connector for each pair."""
        return [Connector(*pair, rng=rng) for pair in channels]

    def loss(self, student: Seen, teacher: Seen, connectors: Sequence) -> Any:
        """Sum over pairs of the mean squared distance to the teacher's side."""
        found = zip(connectors, student.maps, teacher.maps, strict=True)
        pairs = [maps.alike(connector(s), t) for connector, s, t in found]
        return sum(losses.activation_boundary(s, t, self.margin) for s, t in pairs)


@register("fsp")
class Flow(MapMethod):
    """How each map becomes the next (Yim et al., 2017: flow of solution procedure).

    They train on it before, alone, where the weight has no effect, and with equal channels;
    where these differ, connectors of the student's map are trained.
    """

    method: Literal["fsp"] = "fsp"
    weight: float = Field(1.0, gt=0)
    layers: Pairs | None = Field(None, min_length=2)

    def _chosen(self, student, found: Pairs) -> Pairs:
        if len(found) < 2:
            raise ParameterError(f"layers=None: fsp needs two pairs of maps, found only {found}")
        return found

    def connectors(
        self, channels: Sequence[tuple[int, int]], rng: np.random.Generator
    ) -> list[Connector | NoConnector]:
        """A connector for each pair of different channels."""
        return [NoConnector() if s == t else Connector(s, t, rng=rng) for s, t in channels]

    def loss(self, student: Seen, teacher: Seen, connectors: Sequence) -> Any:
        """Sum over neighbouring maps of the mean squared error of flow matrices."""
        connected = [c(x) for c, x in zip(connectors, student.maps, strict=True)]
        flows = zip(self._flows(connected), self._flows(teacher.maps), strict=True)
        return sum(2 * losses.hints(s, t) for s, t in flows)

    def _flows(self, found: Sequence) -> list:
        return [
            losses.flow(*maps.alike(one, other))
            for one, other in zip(found[:-1], found[1:], strict=True)
        ]


@register("relational")
class Relational(MapMethod):
    """Distances and angles between the inputs of a batch (Park et al., 2019).

    The embedding is the last map, averaged over positions. The weights are those of Tian et al.
    (2020); Park et al. have the same ratio.
    """

    method: Literal["relational"] = "relational"
    weight: float = Field(1.0, gt=0)
    distance_weight: float = Field(25.0, ge=0)
    angle_weight: float = Field(50.0, ge=0)

    def _chosen(self, student, found: Pairs) -> Pairs:
        return found[-1:]

    def loss(self, student: Seen, teacher: Seen, connectors: Sequence) -> Any:
        """Sum over pairs of both losses with their weights."""
        found = zip(student.maps, teacher.maps, strict=True)
        return sum(self._between(losses.embedding(s), losses.embedding(t)) for s, t in found)

    def _between(self, points, wanted) -> Any:
        distance = self.distance_weight * losses.relational_distance(points, wanted)
        return distance + self.angle_weight * losses.relational_angle(points, wanted)
