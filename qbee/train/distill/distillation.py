"""The objective of a training from labels and a teacher together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field, SerializeAsAny, field_validator

from qbee.errors import ParameterError
from qbee.keras import keras, tf
from qbee.records import Record
from qbee.train.distill import maps, methods
from qbee.train.distill.methods import Method, Seen
from qbee.train.objective import weighted_cross_entropy


class DistillSettings(Record):
    """Loss: ``label_weight`` times the cross-entropy with labels, plus weighted ``terms``.

    ``label_weight`` 0 uses no labels. A method that trains in two stages is two trainings: first
    a ``Trainer.run`` with ``label_weight`` 0 and that term alone, then ``fit`` with another
    objective.
    """

    label_weight: float = Field(1.0, ge=0)
    terms: tuple[SerializeAsAny[Method], ...] = Field(min_length=1)

    @field_validator("terms", mode="before")
    @classmethod
    def _by_name(cls, terms: Any) -> Any:
        """Terms from JSON become the records that are registered under their names."""
        if not isinstance(terms, list | tuple):
            return terms
        return tuple(
            methods.get(term.get("method", "")).model_validate(term)
            if isinstance(term, dict)
            else term
            for term in terms
        )


def _gives_probabilities(model) -> bool:
    """Whether a functional model ends with a softmax or sigmoid."""
    last = model.layers[-1]
    activation = getattr(last, "activation", None)
    ends = (keras.activations.softmax, keras.activations.sigmoid)
    return isinstance(last, keras.layers.Softmax) or activation in ends


def _check(student, teacher) -> None:
    """Raise ParameterError unless the teacher can teach the student."""
    for what in ("input_shape", "output_shape"):
        found, wanted = getattr(student, what), getattr(teacher, what)
        if found != wanted:
            raise ParameterError(f"{what}={found} of the student must be the teacher's {wanted}")
    for model in (student, teacher):
        if _gives_probabilities(model):
            raise ParameterError(f"model={model.name!r} must give logits, not probabilities")
    if {id(v) for v in student.variables} & {id(v) for v in teacher.variables}:
        raise ParameterError(f"teacher={teacher.name!r} must not share weights with the student")


class Distillation:
    """Objective of ``Trainer`` and ``fit``; the teacher sees the student's batches as they are.

    Parameters
    ----------
    student : Keras model from inputs to logits, float or quantized
        maps can be taken from functional models only.
    teacher : Keras model of the same inputs and classes
        run in inference mode and never changed.
    seed : int
        of the connectors' first weights.

    Raises
    ------
    ParameterError
        if inputs or classes differ, outputs are no logits, weights are shared, or layers have no
        maps to compare.
    """

    def __init__(self, student, teacher, settings: DistillSettings, *, seed: int):
        _check(student, teacher)
        self.settings, rng = settings, np.random.default_rng(seed)
        self.pairs = [term.pairs(student, teacher) for term in settings.terms]
        self.connectors = []
        for term, pairs in zip(settings.terms, self.pairs, strict=True):
            sizes = [(maps.channels(student, s), maps.channels(teacher, t)) for s, t in pairs]
            self.connectors.append(term.connectors(sizes, rng))
        named = [pair for pairs in self.pairs for pair in pairs]
        self._model, self._student = student, maps.tapped(student, [s for s, _ in named])
        self._teacher = maps.tapped(teacher, [t for _, t in named])

    @property
    def variables(self) -> list[Any]:
        """Of the connectors."""
        return [v for group in self.connectors for one in group for v in one.variables]

    def _seen(self, outputs: list) -> Iterator[Seen]:
        """What each term is given of the outputs of a tapped model."""
        logits, rest = outputs[0], [maps.as_map(x) for x in outputs[1:]]
        for pairs in self.pairs:
            yield Seen(logits, tuple(rest[: len(pairs)]))
            rest = rest[len(pairs) :]

    def loss(self, model, inputs, labels, class_weights):
        """Weighted sum of all terms and the cross-entropy; class weights are the latter's only.

        Raises
        ------
        ParameterError
            if it is made for another model.
        """
        if model is not self._model:
            raise ParameterError(f"model={model.name!r} must be the student of this distillation")
        own = tf.nest.flatten(self._student(inputs, training=True))
        wanted = tf.nest.flatten(self._teacher(inputs, training=False))
        total = tf.constant(0.0)
        if self.settings.label_weight:
            cross_entropy = weighted_cross_entropy(labels, own[0], class_weights)
            total = self.settings.label_weight * cross_entropy
        seen = zip(self._seen(own), self._seen([tf.stop_gradient(x) for x in wanted]), strict=True)
        for term, connectors, (s, t) in zip(
            self.settings.terms, self.connectors, seen, strict=True
        ):
            total += term.weight * term.loss(s, t, connectors)
        return total
