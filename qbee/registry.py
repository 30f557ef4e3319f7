"""Things by name: registered with a decorator, got with a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from qbee.errors import ParameterError

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name.

    Parameters
    ----------
    kind : what they are called in messages
    others : names that are valid elsewhere, which messages list too
    """

    def __init__(self, kind: str, *, others: tuple[str, ...] = ()):
        self.kind, self.others = kind, others
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that makes a thing known by a name."""

        def remember(thing: T) -> T:
            self._things[name] = thing
            return thing

        return remember

    def names(self) -> list[str]:
        """Names of all, in the order of their registration."""
        return list(self._things)

    def get(self, name: str) -> T:
        """Thing of this name.

        Raises
        ------
        ParameterError
            listing the known names.
        """
        if name not in self._things:
            known = ", ".join([*self._things, *self.others])
            raise ParameterError(f"{self.kind}={name!r} must be one of {known}")
        return self._things[name]
