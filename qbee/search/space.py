"""The search space: menus of widths, groups of layers that share them, budget of a trial."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from qbee.errors import ParameterError
from qbee.quantize.scheme import BiasBits, KernelBits, MapBits
from qbee.records import Record
from qbee.search.score import Bomp, ForgivingFactor
from qbee.search.trial import Fidelity

Role = Literal["kernel", "bias", "map"]
ROLES: tuple[Role, ...] = ("kernel", "bias", "map")
# Widths there are for each role.
CHOICES = {"kernel": get_args(KernelBits), "bias": get_args(BiasBits), "map": get_args(MapBits)}
Grouping = Literal["layer", "block", "network"]
OUTPUT_BITS = 8
WIDEST_BEFORE_A_SIGMOID = 8


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
    """Schemes to search and how a trial is scored, as stored in search_spaces/*.json.

    Attributes
    ----------
    kernel_bits, map_bits, bias_bits : menus
    groups : layers that share their widths: 'layer' (none do), 'block' (those whose names are
        equal up to the last "_"), 'network' (all), or names or patterns of layers by group; a
        group of which a network has no layer is passed over, so that one space serves a family
    fixed : widths of some layers, by layer and role, which then do not follow their group
    bounds : lowest and highest width of a hyperparameter such as "stem.kernel"
    widths : channels of every layer, in percent; each but 100 is a float network of its own
    seeds : schemes that strategies begin with
    metric : metric that is scored, as ``train.metrics`` registers it
    score : how metric and cost become one number
    trial_epochs, trial_windows, trial_max_rate : training of a trial
    max_f1_drop : how far below the float model's F1 the winner may be
    """

    kernel_bits: tuple[KernelBits, ...] = Field(min_length=1)
    map_bits: tuple[MapBits, ...] = Field(min_length=1)
    bias_bits: tuple[BiasBits, ...] = Field(min_length=1)
    groups: Grouping | dict[str, tuple[str, ...]]
    fixed: dict[str, dict[Role, int]] = {}
    bounds: dict[str, tuple[int, int]] = {}
    widths: tuple[Annotated[int, Field(ge=10, le=200)], ...] = Field((100,), min_length=1)
    seeds: tuple[Seed, ...]
    metric: str = "f1"
    score: Annotated[ForgivingFactor | Bomp, Field(discriminator="kind")]
    trial_epochs: int = Field(ge=0)
    trial_windows: int = Field(ge=64)
    trial_max_rate: float = Field(gt=0)
    max_f1_drop: float = Field(ge=0, le=1)

    @field_validator("groups")
    @classmethod
    def _layers_have_one_group(cls, groups):
        if isinstance(groups, str):
            return groups
        if not groups:
            raise ValueError("must name at least one group, or be layer, block or network")
        names = [name for layers in groups.values() for name in layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"layer {twice[0]!r} is in two groups")
        return groups

    @field_validator("fixed")
    @classmethod
    def _fixed_widths_exist(cls, fixed):
        for layer, widths in fixed.items():
            for role, bits in widths.items():
                if bits not in CHOICES[role]:
                    known = ", ".join(map(str, CHOICES[role]))
                    raise ValueError(f"{layer}.{role}={bits} must be one of {known}")
        return fixed

    @model_validator(mode="after")
    def _bounds_are_ranges_of_hyperparameters(self):
        for name, (lowest, highest) in self.bounds.items():
            if name.rpartition(".")[2] not in ROLES:
                raise ValueError(f"bounds.{name}: must end in .kernel, .bias or .map")
            if lowest > highest:
                raise ValueError(f"bounds.{name}: {lowest} must not be above {highest}")
        return self

    @property
    def fidelity(self) -> Fidelity:
        """Training of a whole trial."""
        return Fidelity(epochs=self.trial_epochs, windows=self.trial_windows)

    def menu(self, role: Role) -> tuple[int, ...]:
        """Sorted widths of a role."""
        menus = {"kernel": self.kernel_bits, "bias": self.bias_bits, "map": self.map_bits}
        return tuple(sorted(set(menus[role])))

    def group_of(self, layer: str) -> str:
        """Group of a layer.

        Raises
        ------
        ParameterError
            if no group has it, or patterns of several do.
        """
        if isinstance(self.groups, str):
            block = layer.rpartition("_")[0] or layer
            return {"layer": layer, "block": block, "network": "network"}[self.groups]
        found = [
            group
            for group, patterns in self.groups.items()
            if any(fnmatchcase(layer, pattern) for pattern in patterns)
        ]
        if len(found) != 1:
            which = f"the groups {found} of the search space have" if found else "no group has"
            raise ParameterError(f"{which} the layer {layer!r}; exactly one must have it")
        return found[0]
