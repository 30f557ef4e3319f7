"""The points of a search space for one network."""

from __future__ import annotations

import math
import operator

import numpy as np

from qbee.errors import ParameterError
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT
from qbee.quantize.scheme import Scheme
from qbee.search import cost
from qbee.search.space import OUTPUT_BITS, WIDEST_BEFORE_A_SIGMOID, Role, SearchSpace, Seed
from qbee.search.trial import WIDTH, Point


class Domain:
    """The points of a space for one network.

    Attributes
    ----------
    menus : sorted choices of every hyperparameter that has a choice, in the order of the network
    settled : value of every hyperparameter that has none
    elements : weights that follow each hyperparameter in all, and elements of the largest map
        that does, as it is before its max-pool

    Parameters
    ----------
    widest_map : wider maps are taken from the menus, as their RAM is not there

    Raises
    ------
    ParameterError
        naming what of the space does not fit the network.
    """

    def __init__(self, space: SearchSpace, net: FoldedNet, *, widest_map: int = 16):
        self.space, self.widest_map = space, widest_map
        self.slots = [slot for slot in cost.elements(net) if slot != INPUT]
        self.layers = net.maps
        self.narrow = {net.map_of(n.inputs[0]) for n in net.nodes if n.op == "sigmoid"}
        self._check_fixed()
        self._owners = {slot: owner for slot in self.slots if (owner := self._owner(slot))}
        self.elements = self._elements(net)
        menus = {owner: self._menu(owner) for owner in self.elements}
        self.menus = {owner: menu for owner, menu in menus.items() if len(menu) > 1}
        self.settled = {owner: menu[0] for owner, menu in menus.items() if len(menu) == 1}
        if len(space.widths) > 1:
            self.menus[WIDTH] = tuple(sorted(space.widths))
        else:
            self.settled[WIDTH] = space.widths[0]
        self._check_bounds()

    def _elements(self, net: FoldedNet) -> dict[str, int]:
        slots = cost.elements(net)
        slots |= {
            f"{n.name}.map": math.prod(n.shape) * n.pool**2 for n in net.nodes if n.has_own_map
        }
        found: dict[str, int] = {}
        for slot, owner in self._owners.items():
            together = max if owner.endswith(".map") else operator.add
            found[owner] = together(found.get(owner, 0), slots[slot])
        return found

    def _owner(self, slot: str) -> str | None:
        """Hyperparameter that a slot follows; None if its width is fixed."""
        layer, _, role = slot.rpartition(".")
        if role in self.space.fixed.get(layer, {}) or slot == f"{self.layers[-1]}.map":
            return None
        return f"{self.space.group_of(layer)}.{role}"

    def _menu(self, owner: str) -> tuple[int, ...]:
        lowest, highest = self.space.bounds.get(owner, (0, math.inf))
        role: Role = owner.rpartition(".")[2]  # type: ignore[assignment]
        if role == "map":
            followers = {s.rpartition(".")[0] for s, name in self._owners.items() if name == owner}
            is_narrow = not followers.isdisjoint(self.narrow)
            highest = min(highest, WIDEST_BEFORE_A_SIGMOID if is_narrow else self.widest_map)
        menu = tuple(bits for bits in self.space.menu(role) if lowest <= bits <= highest)
        if not menu:
            raise ParameterError(
                f"{owner}: no width of the menu {self.space.menu(role)} "
                f"lies between {lowest} and {highest}"
            )
        return menu

    def _check_fixed(self) -> None:
        for layer, widths in self.space.fixed.items():
            for role in widths:
                if f"{layer}.{role}" not in self.slots:
                    raise ParameterError(
                        f"fixed: the network has no {layer}.{role}; it has {', '.join(self.slots)}"
                    )
            bits = widths.get("map", OUTPUT_BITS)
            if layer in self.narrow and bits > WIDEST_BEFORE_A_SIGMOID:
                raise ParameterError(
                    f"fixed.{layer}.map={bits} must be at most 8: a sigmoid reads it"
                )
            if layer == self.layers[-1] and bits < OUTPUT_BITS:
                raise ParameterError(f"fixed.{layer}.map={bits} must be 8 or 16: it is the output")

    def _check_bounds(self) -> None:
        unknown = [name for name in self.space.bounds if name not in self.elements]
        if unknown:
            known = ", ".join(self.elements)
            raise ParameterError(f"bounds: no hyperparameter {unknown[0]!r}; there are {known}")

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(len(menu) for menu in self.menus.values())

    def scheme(self, point: Point) -> Scheme:
        """Scheme of a point."""
        values = {**self.settled, **point}
        layers: dict[str, dict[str, int]] = {layer: {} for layer in self.layers}
        for slot in self.slots:
            layer, _, role = slot.rpartition(".")
            owner = self._owners.get(slot)
            fixed = self.space.fixed.get(layer, {}).get(role, OUTPUT_BITS)  # type: ignore[call-overload]
            layers[layer][role] = fixed if owner is None else values[owner]
        return Scheme.model_validate({"layers": layers})

    def width(self, point: Point) -> int:
        """Channels of a point's network, in percent."""
        return point.get(WIDTH, self.settled.get(WIDTH, 100))

    def seed_points(self) -> dict[str, Point]:
        """Points of the seeds that the menus allow, by what they are called."""
        found = {str(seed): self._seed_point(seed) for seed in self.space.seeds}
        return {name: point for name, point in found.items() if self.has(point)}

    def _seed_point(self, seed: Seed) -> Point:
        widths = {"kernel": seed.kernel, "map": seed.map, "bias": max(self.space.bias_bits)}
        point = {name: widths.get(name.rpartition(".")[2], 0) for name in self.menus}
        if WIDTH in self.menus:
            point[WIDTH] = max(self.menus[WIDTH])
        if seed.largest_groups is not None:
            kernels = [name for name in self.menus if name.endswith(".kernel")]
            by_size = sorted(kernels, key=lambda name: -self.elements[name])
            point |= dict.fromkeys(by_size[seed.largest_groups :], 8)
        return {name: int(value) for name, value in point.items()}

    def has(self, point: Point) -> bool:
        """Whether the menus allow a point."""
        return point.keys() == self.menus.keys() and all(
            point[name] in menu for name, menu in self.menus.items()
        )

    def random(self, rng: np.random.Generator) -> Point:
        """A point, all of which are equally likely."""
        return {name: menu[int(rng.integers(len(menu)))] for name, menu in self.menus.items()}

    def neighbour(self, point: Point, rng: np.random.Generator) -> Point:
        """A point that differs in one hyperparameter by one step of its menu, if there is any."""
        if not self.menus:
            return dict(point)
        name = str(rng.choice(list(self.menus)))
        menu = self.menus[name]
        at = menu.index(point[name])
        steps = [i for i in (at - 1, at + 1) if 0 <= i < len(menu)]
        return {**point, name: menu[int(rng.choice(steps))]}
