"""The search space: menus of widths, groups of layers that share them, budget of a trial."""

from __future__ import annotations

from pydantic import Field, field_validator

from qbee.errors import ParameterError
from qbee.quantize.scheme import BiasBits, KernelBits, LayerBits, MapBits, Scheme
from qbee.records import Record
from qbee.search.score import ForgivingFactor

# Value of every hyperparameter ("<group>.kernel", "<group>.bias", "<group>.map") by name.
Point = dict[str, int]


class Seed(Record):
    """A scheme of one kernel width and one map width, with the widest biases of the menu.

    With ``largest_groups``, only the so many groups of most kernel elements have this kernel
    width; the other kernels have 8 bits.
    """

    kernel: KernelBits
    map: MapBits
    largest_groups: int | None = Field(None, ge=1)

    def __str__(self) -> str:
        if self.largest_groups is not None:
            return f"largest kernels {self.kernel}, maps {self.map}"
        uniform = f"uniform {self.kernel}"
        return uniform if self.kernel == self.map else f"kernels {self.kernel}, maps {self.map}"


class SearchSpace(Record):
    """Schemes to search, as stored in search_spaces/*.json.

    ``max_f1_drop`` is how far below the float model's F1 the winner may be (see ``choose``).

    Layers of one group share their widths; a group of which the network has no layer is passed
    over, so that one space serves a family. The output map always has 8 bits. The search begins
    with the ``seeds``: the same kernel and map bits for all layers.
    """

    kernel_bits: tuple[KernelBits, ...] = Field(min_length=1)
    map_bits: tuple[MapBits, ...] = Field(min_length=1)
    bias_bits: tuple[BiasBits, ...] = Field(min_length=1)
    groups: dict[str, tuple[str, ...]] = Field(min_length=1)
    seeds: tuple[Seed, ...]
    forgiving_factor: ForgivingFactor
    trial_epochs: int = Field(ge=0)
    trial_windows: int = Field(ge=64)
    trial_max_rate: float = Field(gt=0)
    max_f1_drop: float = Field(ge=0, le=1)

    @field_validator("groups")
    @classmethod
    def _layers_have_one_group(cls, groups):
        names = [name for layers in groups.values() for name in layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"layer {twice[0]!r} is in two groups")
        return groups

    def groups_of(self, layer_names: list[str]) -> dict[str, str]:
        """Group of each layer of a network, in its order.

        Raises
        ------
        ParameterError
            naming the layers that no group has.
        """
        owner = {name: group for group, names in self.groups.items() for name in names}
        missing = [name for name in layer_names if name not in owner]
        if missing:
            raise ParameterError(f"no group of the search space has the layers {missing}")
        return {name: owner[name] for name in layer_names}

    def menus(self, layer_names: list[str]) -> dict[str, tuple[int, ...]]:
        """Sorted choices of every hyperparameter; the output map has none."""
        owner = self.groups_of(layer_names)
        # A group that holds nothing but the output layer has no map of its own.
        inner = {owner[name] for name in layer_names[:-1]}
        found: dict[str, tuple[int, ...]] = {}
        for group in dict.fromkeys(owner.values()):
            found[f"{group}.kernel"] = tuple(sorted(self.kernel_bits))
            found[f"{group}.bias"] = tuple(sorted(self.bias_bits))
            if group in inner:
                found[f"{group}.map"] = tuple(sorted(self.map_bits))
        return found

    def scheme(self, point: Point, layer_names: list[str]) -> Scheme:
        """Scheme of a point."""
        layers = {}
        for name, group in self.groups_of(layer_names).items():
            widths = {
                "kernel": point[f"{group}.kernel"],
                "bias": point[f"{group}.bias"],
                "map": 8 if name == layer_names[-1] else point[f"{group}.map"],
            }
            layers[name] = LayerBits.model_validate(widths)
        return Scheme(layers=layers)

    def seed_points(self, kernel_elements: dict[str, int]) -> dict[str, Point]:
        """Points of the seeds that the menus allow, by what they are called.

        Parameters
        ----------
        kernel_elements : number of kernel elements by layer, in the order of the network
        """
        layer_names = list(kernel_elements)
        sizes: dict[str, int] = {}
        for name, group in self.groups_of(layer_names).items():
            sizes[group] = sizes.get(group, 0) + kernel_elements[name]
        by_size = sorted(sizes, key=lambda group: -sizes[group])
        menus = self.menus(layer_names)
        points = {}
        for seed in self.seeds:
            widths = {"kernel": seed.kernel, "map": seed.map, "bias": max(self.bias_bits)}
            point = {slot: int(widths[slot.rpartition(".")[2]]) for slot in menus}
            if seed.largest_groups is not None:
                point |= {f"{group}.kernel": 8 for group in by_size[seed.largest_groups :]}
            if all(point[slot] in menu for slot, menu in menus.items()):
                points[str(seed)] = point
        return points

    def size(self, layer_names: list[str]) -> int:
        """Number of schemes."""
        product = 1
        for menu in self.menus(layer_names).values():
            product *= len(menu)
        return product
