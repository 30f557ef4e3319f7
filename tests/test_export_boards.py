"""Boards that a model fits."""

from qbee.export.boards import BOARDS, fitting
from qbee.report import fidelity_table


def test_a_board_fits_up_to_three_quarters_of_its_ram_and_flash():
    for board in BOARDS:
        ram, flash = 3 * board.ram_bytes // 4, 3 * board.flash_bytes // 4
        assert board.fits(arena_bytes=ram, tflite_bytes=flash)
        assert not board.fits(arena_bytes=ram + 1, tflite_bytes=flash)
        assert not board.fits(arena_bytes=ram, tflite_bytes=flash + 1)


def test_what_fits_a_board_fits_those_with_more_of_both():
    assert fitting(arena_bytes=1, tflite_bytes=1) == [board.name for board in BOARDS]
    assert fitting(arena_bytes=660_000, tflite_bytes=60_000) == ["Apollo4"]
    assert fitting(arena_bytes=2**22, tflite_bytes=1) == []


def test_the_export_says_which():
    assert "Apollo4" in fidelity_table.fits(arena_bytes=660_000, tflite_bytes=60_000)
    assert "no known board" in fidelity_table.fits(arena_bytes=2**22, tflite_bytes=1)
