"""The picture of the arena and the table of a .tflite: readable for few and many operators."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_export import METADATA, integer_net, map_net

from qbee.export import strips, tflite
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT
from qbee.report import arena_plot, inspection_table
from qbee.report.arena_plot import LABEL_SHARE, _spread
from qbee.runtime.inspection import inspect

NUMBER = MapType(8, -128, 2.0**-5)


def inspected(net, **options):
    return inspect(tflite.write(net, metadata=METADATA, **options).content, "a [folder]/m$1.tflite")


def nets():
    yield map_net(("sum", "add", (INPUT, INPUT), (4, 6, 2), NUMBER, {}))
    yield integer_net(kernel_bits=4)
    yield strips.cut(integer_net(side=64), (strips.Segment("layer2", 16),))


@pytest.fixture(scope="module")
def found():
    return inspected(strips.cut(integer_net(side=64), (strips.Segment("layer2", 16),)))


@pytest.mark.parametrize("number", range(3))
def test_the_picture_shows_one_operator_or_many(number, tmp_path):
    found = inspected(list(nets())[number])
    arena_plot.arena(found, tmp_path / "arena.png")
    with Image.open(tmp_path / "arena.png") as image:
        assert image.format == "PNG"
        assert max(image.size) <= 2000
        # Several colours of tensors, lines and text.
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert [p.name for p in tmp_path.iterdir()] == ["arena.png"]


def test_the_title_adds_head_and_tail(found):
    arena = found.arena
    title = arena_plot._title(found)
    assert title.startswith("m$1.tflite: ")
    for size in (arena.head_bytes, arena.tail_bytes, arena.total_bytes):
        assert f"{size:,}" in title


def test_labels_keep_their_order_and_their_distance():
    for places in ([0.1] * 8, [0.98, 0.985, 0.99], [0.05, 0.5, 0.51, 0.95], [0.3]):
        found = _spread(places, LABEL_SHARE)
        gaps = np.diff(found)
        # Sums of a few shares, in float64.
        assert np.all(gaps >= LABEL_SHARE - 1e-9)
        assert max(found) <= 1


def printed(table):
    console = Console(width=100, record=True)
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize("number", range(3))
def test_the_table_fits_100_columns_and_cuts_nothing(number):
    found = inspected(list(nets())[number])
    text = printed(inspection_table.table(found))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for op in found.operators:
        assert op.op in text
        assert f"{op.live_bytes:,}" in text
        if op.macs:
            assert f"{op.macs:,}" in text


def test_powers_of_two_are_written_as_such():
    text = printed(inspection_table.table(inspected(integer_net(kernel_bits=4))))
    assert "int8 1×16×16×32" in text
    assert "2^-5" in text
    assert "32, 2^-3..-2" in text
    assert "144+128" in text


def test_sentences_tell_sizes_ends_and_metadata(found):
    said = inspection_table.sentences(found)
    text = " ".join(said)
    assert f"{found.file_bytes:,} bytes" in text
    assert f"{found.macs:,} multiplications" in text
    assert f"= {found.arena.total_bytes:,} bytes" in text
    assert "Input 'mel': int8 1×64×64×1, scale 2^-5, zero point 0." in said
    assert "other (2 bytes)" in text
    assert "graphs" not in text
    several = found.model_copy(update={"graphs": 3})
    assert "The file has 3 graphs; this is the first one only." in inspection_table.sentences(
        several
    )


def test_a_plan_in_the_file_is_told():
    net = strips.cut(integer_net(side=32), (strips.Segment("layer1", 4),))
    found = inspected(net, plan_memory=True)
    assert found.arena.is_planned
    assert "planned in the file" in arena_plot._title(found)
    assert "with the plan that the file brings" in " ".join(inspection_table.sentences(found))
