"""Microcontrollers that detectors are built with, and which of them a model fits."""

from __future__ import annotations

from dataclasses import dataclass

from qbee.errors import ParameterError

# Left for stack, front end, drivers and the program around the detector.
RAM_SHARE, FLASH_SHARE = 0.75, 0.75
_KIB = 1024


@dataclass(frozen=True)
class Board:
    """A microcontroller.

    Attributes
    ----------
    ram_bytes : int
        of the largest stretch of RAM without a gap, as the arena is one piece
    flash_bytes : int
        on the chip, or, where it has none, on its usual board
    source : str
        document that gives both
    """

    name: str
    ram_bytes: int
    flash_bytes: int
    source: str

    @property
    def max_arena_bytes(self) -> int:
        """Largest arena that leaves a quarter of the RAM to everything else."""
        return int(RAM_SHARE * self.ram_bytes)

    @property
    def max_tflite_bytes(self) -> int:
        """Largest file that leaves a quarter of the flash to everything else."""
        return int(FLASH_SHARE * self.flash_bytes)

    def fits(self, *, arena_bytes: int, tflite_bytes: int) -> bool:
        """Whether a model leaves a quarter of RAM and flash to everything else."""
        return arena_bytes <= self.max_arena_bytes and tflite_bytes <= self.max_tflite_bytes


BOARDS = (
    Board("nRF52833", 128 * _KIB, 512 * _KIB, "Nordic nRF52833 Product Specification"),
    Board("nRF52840", 256 * _KIB, 1024 * _KIB, "Nordic nRF52840 Product Specification"),
    Board("RP2040", 264 * _KIB, 2048 * _KIB, "RP2040 Datasheet; Raspberry Pi Pico Datasheet"),
    Board("STM32F746", 320 * _KIB, 1024 * _KIB, "ST DS10916"),
    Board("ESP32-S3", 512 * _KIB, 8192 * _KIB, "ESP32-S3 Series and WROOM-1 Datasheets"),
    Board("STM32H743", 512 * _KIB, 2048 * _KIB, "ST DS12110 (AXI SRAM)"),
    Board("STM32L4R5", 640 * _KIB, 2048 * _KIB, "ST DS12023"),
    Board("Apollo4", 1843 * _KIB, 2048 * _KIB, "Ambiq Apollo4 SoC Datasheet"),
)


def get(name: str) -> Board:
    """Board of this name, in capitals or not.

    Raises
    ------
    ParameterError
        listing the known names.
    """
    by_name = {board.name.casefold(): board for board in BOARDS}
    if name.casefold() not in by_name:
        known = ", ".join(board.name for board in BOARDS)
        raise ParameterError(f"board={name!r} must be one of {known}")
    return by_name[name.casefold()]


def fitting(*, arena_bytes: int, tflite_bytes: int) -> list[str]:
    """Names of the boards that a model fits, those with little RAM first."""
    return [
        board.name
        for board in BOARDS
        if board.fits(arena_bytes=arena_bytes, tflite_bytes=tflite_bytes)
    ]
