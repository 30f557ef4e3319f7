"""Label tables become segments, and what is wrong in them is named with its row."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qbee.data import labels
from qbee.errors import AudioError, LabelError, ParameterError

REPOSITORY = Path(__file__).resolve().parents[1]
HEADER = "file,start_s,end_s,label,location\n"
RAVEN_HEADER = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tAnnotation\n"


@pytest.fixture
def write(tmp_path):
    """Write a table of the given name and return its path."""

    def write_table(content, name="labels.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_table


@pytest.fixture
def recording(tmp_path):
    """Ten seconds of silence."""
    path = tmp_path / "hive.WAV"
    soundfile.write(path, np.zeros(80_000), 8000)
    return path


def spans(segments):
    """Reduce segments to times and labels."""
    return [(segment.start_s, segment.end_s, segment.label) for segment in segments]


def test_a_csv_row_becomes_a_segment_that_knows_its_row(write, tmp_path):
    table = write(HEADER + "a.wav,0,4.5,buzz,meadow\nsub/b.wav,1,2,uncertain,hive\n")
    first, second = labels.read_csv(table)
    assert first.path == (tmp_path / "a.wav").resolve()
    assert (first.start_s, first.end_s, first.label, first.location) == (0, 4.5, "buzz", "meadow")
    assert (first.recorded_at, first.table, first.row) == (None, table, 2)
    assert (second.path, second.row) == ((tmp_path / "sub/b.wav").resolve(), 3)


def test_a_duration_may_stand_for_the_end(write):
    table = write("file,start_s,duration_s,label,location\na.wav,1.5,4,no_buzz,x\n")
    assert spans(labels.read_csv(table)) == [(1.5, 5.5, "no_buzz")]


def test_the_end_is_used_when_the_duration_is_there_too(write):
    table = write("file,start_s,end_s,duration_s,label,location\na.wav,1,3,9,buzz,x\n")
    assert spans(labels.read_csv(table)) == [(1, 3, "buzz")]


def test_byte_order_mark_blank_lines_crlf_and_further_columns_do_not_matter(write):
    header = "note,recorded_at, file ,start_s,end_s,label,location\r\n"
    row = '"x, y",2024-05-01T06:00, a.wav ,0,4, buzz ,x\r\n'
    (segment,) = labels.read_csv(write(b"\xef\xbb\xbf" + f"{header}\r\n{row}".encode()))
    assert (segment.recorded_at, segment.label, segment.row) == ("2024-05-01T06:00", "buzz", 3)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("blank", ["", ",,,,", ",,,,,,,", ",", "  ", ' , ,"",\t,'])
def test_blank_rows_of_a_spreadsheet_are_skipped(write, newline, blank):
    rows = [HEADER.strip(), blank, "a.wav,0,4,buzz,x", blank, blank, "a.wav,4,8,no_buzz,x", blank]
    segments = labels.read_csv(write(b"\xef\xbb\xbf" + newline.join(rows).encode()))
    assert spans(segments) == [(0, 4, "buzz"), (4, 8, "no_buzz")]
    assert [segment.row for segment in segments] == [3, 6]


def test_a_table_of_blank_rows_is_an_error(write):
    with pytest.raises(LabelError, match="row 1: the table has a header but no segments"):
        labels.read_csv(write(HEADER + ",,,,\n,,,,\n"))


@pytest.mark.parametrize("name", ["label", " end_s ", "recorded_at"])
def test_a_column_that_appears_twice_is_an_error(write, name):
    header = f"file,start_s,end_s,label,location,recorded_at,{name}\n"
    with pytest.raises(LabelError, match=f"row 1: column {name.strip()} appears 2 times"):
        labels.read_csv(write(header + "a.wav,0,4,buzz,x,,9\n"))


def test_ignored_columns_may_appear_twice(write):
    table = write("file,start_s,end_s,label,location,note,note,,\na.wav,0,4,buzz,x,1,2,,\n")
    assert spans(labels.read_csv(table)) == [(0, 4, "buzz")]


def test_two_spellings_of_a_file_are_one_recording(write):
    first, second = labels.read_csv(write(HEADER + "a.wav,0,4,buzz,x\nsub/../a.wav,4,8,buzz,x\n"))
    assert first.path == second.path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.wav,0,4,bee,x", "row 2: label='bee' must be one of buzz, no_buzz, uncertain"),
        ("a.wav,zero,4,buzz,x", "row 2: start_s='zero' must be a number"),
        ("a.wav,0,,buzz,x", "row 2: end_s='' must be a number"),
        ("a.wav,-1,4,buzz,x", "row 2: the start -1.0 s must not be negative"),
        ("a.wav,4,4,buzz,x", "row 2: the end 4.0 s must be after the start 4.0 s"),
        ("a.wav,4,3,buzz,x", "row 2: the end 3.0 s must be after the start 4.0 s"),
        ("a.wav,nan,4,buzz,x", "row 2: start_s='nan' must be finite"),
        ("a.wav,0,inf,buzz,x", "row 2: end_s='inf' must be finite"),
        (",0,4,buzz,x", "row 2: file must not be empty"),
        ("a.wav,0,4,buzz, ", "row 2: location must not be empty"),
        ("a.wav,0,4", "row 2: 3 cells, but the header has 5"),
        ("a.wav,0,4,buzz,x,y", "row 2: 6 cells, but the header has 5"),
        ('a.wav,0,4,buzz,"x', "row 2: unexpected end of data"),
        ("/etc/a.wav,0,4,buzz,x", "row 2: file='/etc/a.wav' must be a relative path"),
        ("../a.wav,0,4,buzz,x", "row 2: file='../a.wav' must be a relative path that stays inside"),
        (".,0,4,buzz,x", "row 2: file='.' must be a relative path"),
        ("a\0.wav,0,4,buzz,x", "row 2: file=.* is not a usable path"),
    ],
)
def test_a_wrong_csv_row_is_named(write, row, message):
    with pytest.raises(LabelError, match=f"labels.csv: {message}") as caught:
        labels.read_csv(write(HEADER + row + "\n"))
    assert "\n" not in str(caught.value)


def test_the_row_is_the_line_in_the_file(write):
    with pytest.raises(LabelError, match="row 4: label=''"):
        labels.read_csv(write(HEADER + "a.wav,0,4,buzz,x\n\na.wav,4,8,,x\n"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,start_s,end_s,location", "row 1: missing column label; found: file, start_s, end_s"),
        ("file,start_s,label,location", "row 1: missing column end_s or duration_s; found: file"),
        ("", "row 1: missing column file; found: none"),
    ],
)
def test_a_missing_column_is_named_with_those_found(write, header, message):
    with pytest.raises(LabelError, match=message):
        labels.read_csv(write(header + "\n"))


def test_a_table_without_rows_is_an_error(write):
    with pytest.raises(LabelError, match="row 1: the table has a header but no segments"):
        labels.read_csv(write(HEADER))


def test_a_table_that_is_not_utf8_is_an_error_with_a_row(write):
    with pytest.raises(LabelError, match="row 2: byte 0xfc is not UTF-8"):
        labels.read_csv(write(HEADER.encode() + b"a.wav,0,4,buzz,M\xfcnster\n"))


def test_a_missing_table_is_an_error(tmp_path):
    with pytest.raises(LabelError, match="none.csv: No such file"):
        labels.read(tmp_path / "none.csv")


def test_a_link_out_of_the_folder_is_an_error(write, tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.wav").touch()
    (tmp_path / "inside/a.wav").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(LabelError, match="row 2: file='a.wav' must be a relative path"):
        labels.read_csv(write(HEADER + "a.wav,0,4,buzz,x\n", "inside/labels.csv"))


def test_a_link_to_itself_is_an_error(write, tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "a.wav")
    with pytest.raises(LabelError, match="row 2: file='a.wav' is not a usable path"):
        labels.read_csv(write(HEADER + "a.wav,0,4,buzz,x\n"))


def test_an_open_quote_is_named_with_the_row_it_begins_in(write):
    rows = 'a.wav,0,4,buzz,x\na.wav,4,8,buzz,"x\n' + "a.wav,8,12,buzz,x\n" * 5
    with pytest.raises(LabelError, match="row 3: unexpected end of data"):
        labels.read_csv(write(HEADER + rows))


def test_a_raven_selection_counts_once_however_many_views_list_it(write):
    rows = (
        "1\tWaveform 1\t1\t0.5\t1.5\tbuzz\n1\tSpectrogram 1\t1\t0.5\t1.5\tbuzz\n"
        "2\tWaveform 1\t1\t3\t4\tuncertain\n2\tSpectrogram 1\t1\t3\t4\tuncertain\n"
    )
    table = write(RAVEN_HEADER + rows, "r.txt")
    segments = labels.read_raven(table, recording="r.wav", location="x")
    assert spans(segments) == [(0.5, 1.5, "buzz"), (3, 4, "uncertain")]
    assert [segment.row for segment in segments] == [2, 4]


def test_raven_selections_without_annotations_are_buzzes(write):
    table = write("Begin Time (s)\tEnd Time (s)\n0\t1\n2\t3\n", "r.txt")
    segments = labels.read_raven(table, recording="r.wav", location="x")
    assert spans(segments) == [(0, 1, "buzz"), (2, 3, "buzz")]


@pytest.mark.parametrize("column", labels.RAVEN_LABEL_COLUMNS)
def test_raven_labels_come_from_the_first_known_column(write, column):
    table = write(f"Begin Time (s)\tEnd Time (s)\t{column}\n0\t1\tno_buzz\n", "r.txt")
    (segment,) = labels.read_raven(table, recording="r.wav", location="x")
    assert segment.label == "no_buzz"


def test_raven_labels_come_from_the_column_asked_for(write):
    header = "Begin Time (s)\tEnd Time (s)\tAnnotation\tKind\n"
    table = write(header + '0\t1\tBombus "t"\tbuzz\n', "r.txt")
    (segment,) = labels.read_raven(table, recording="r.wav", location="x", label_column="Kind")
    assert segment.label == "buzz"
    with pytest.raises(LabelError, match="missing column Sort; found: Begin Time"):
        labels.read_raven(table, recording="r.wav", location="x", label_column="Sort")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RAVEN_HEADER, "row 1: the table has no segments"),
        ("Selection\tView\n", r"row 1: missing column Begin Time \(s\); found: Selection, View"),
        (RAVEN_HEADER + "1\tv\t1\t0\t1\tbee\n", "row 2: label='bee' must be one of buzz"),
        (RAVEN_HEADER + "1\tv\t1\t0,5\t1\tbuzz\n", r"row 2: Begin Time \(s\)='0,5' must be a num"),
        (RAVEN_HEADER + "1\tv\t1\t0\n", "row 2: 4 cells, but the header has 6"),
        (
            "Begin Time (s)\tEnd Time (s)\tBegin File\n0\t1\ta.wav\n5\t6\tb.wav\n",
            "row 3: Begin File='b.wav' is a second recording",
        ),
    ],
)
def test_a_wrong_raven_row_is_named(write, content, message):
    with pytest.raises(LabelError, match=f"r.txt: {message}"):
        labels.read_raven(write(content, "r.txt"), recording="r.wav", location="x")


def test_audacity_frequency_lines_are_skipped(write):
    table = write("0.5\t1.5\tbuzz\n\\\t100.0\t900.0\n2\t3\tno_buzz\r\n\n", "a.txt")
    segments = labels.read_audacity(table, recording="a.wav", location="x")
    assert spans(segments) == [(0.5, 1.5, "buzz"), (2, 3, "no_buzz")]
    assert [segment.row for segment in segments] == [1, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "row 1: the table has no segments"),
        ("0\t1\tbuzz\n2\t3\tbee\n", "row 2: label='bee' must be one of buzz, no_buzz, uncertain"),
        ("0\t1\n", "row 1: .* must be start, end and label separated by tabs"),
        ("0\t0\tbuzz\n", "row 1: the end 0.0 s must be after the start"),
        ("x\t1\tbuzz\n", "row 1: start='x' must be a number"),
    ],
)
def test_a_wrong_audacity_row_is_named(write, content, message):
    with pytest.raises(LabelError, match=f"a.txt: {message}"):
        labels.read_audacity(write(content, "a.txt"), recording="a.wav", location="x")


def test_stretches_between_events_take_the_label_asked_for(write, recording):
    table = write("6\t7\tbuzz\n1\t3\tbuzz\n2\t4\tbuzz\n", "hive.txt")
    segments = labels.read_audacity(table, recording=recording, location="x", unannotated="no_buzz")
    assert spans(segments) == [
        (0, 1, "no_buzz"), (1, 3, "buzz"), (2, 4, "buzz"), (4, 6, "no_buzz"), (6, 7, "buzz"),
        (7, 10, "no_buzz"),
    ]  # fmt: skip


def test_a_recording_without_events_is_one_unannotated_stretch(write, recording):
    table = write(RAVEN_HEADER, "hive.txt")
    segments = labels.read_raven(table, recording=recording, location="x", unannotated="uncertain")
    assert spans(segments) == [(0, 10, "uncertain")]


def test_an_unknown_label_of_the_unannotated_is_an_error(write):
    table = write("0\t1\tbuzz\n", "a.txt")
    with pytest.raises(ParameterError, match="unannotated='buzz' must be one of no_buzz"):
        labels.read_audacity(table, recording="a.wav", location="x", unannotated="buzz")


def test_stretches_of_a_missing_recording_are_an_error(write):
    table = write("0\t1\tbuzz\n", "a.txt")
    with pytest.raises(AudioError, match="gone.wav"):
        labels.read_audacity(table, recording="gone.wav", location="x", unannotated="no_buzz")


@pytest.mark.parametrize("name", ["hive.txt", "hive.Table.1.selections.txt"])
def test_the_recording_of_a_raven_table_lies_beside_it(write, recording, name):
    (segment,) = labels.read(write(RAVEN_HEADER + "1\tv\t1\t0\t1\tbuzz\n", name))
    assert segment.path == recording.resolve()
    assert segment.location == recording.resolve().parent.name


def test_a_text_without_a_raven_header_is_read_as_audacity_labels(write, recording):
    (segment,) = labels.read(write("0\t1\tuncertain\n", "hive.txt"), location="meadow")
    assert (segment.path, segment.location) == (recording.resolve(), "meadow")


def test_a_csv_is_known_by_its_suffix(write):
    assert len(labels.read(write(HEADER + "a.wav,0,4,buzz,x\n", "labels.CSV"))) == 1


def test_a_csv_takes_no_answers_that_it_gives_itself(write):
    table = write(HEADER + "a.wav,0,4,buzz,x\n")
    with pytest.raises(ParameterError, match="must not be given with a CSV"):
        labels.read(table, unannotated="no_buzz")


@pytest.fixture
def hives(write, tmp_path):
    """Folder with a Raven table, an Audacity table and files that are neither."""
    for name in ("b.wav", "a.flac", "unlabelled.wav", "._a.wav"):
        soundfile.write(tmp_path / name, np.zeros(80_000), 8000, format="FLAC")
    write(RAVEN_HEADER + "1\tv\t1\t0\t1\tbuzz\n", "b.Table.1.selections.txt")
    write("2\t3\tuncertain\r\n", "a.TSV")
    write("Recorded in May.\n", "notes.txt")
    write(b"\0\5\xff", "._a.txt")
    (tmp_path / "unlabelled.txt").mkdir()
    return tmp_path


def test_a_folder_gives_all_its_tables_that_have_a_recording(hives):
    segments = labels.read(hives)
    assert [segment.path.name for segment in segments] == ["a.flac", "b.wav"]
    assert spans(segments) == [(2, 3, "uncertain"), (0, 1, "buzz")]
    assert {segment.location for segment in segments} == {hives.resolve().name}
    assert {segment.location for segment in labels.read(hives, location="hill")} == {"hill"}


def test_a_folder_takes_a_label_for_what_its_tables_leave_out(hives):
    segments = labels.read(hives, unannotated="no_buzz")
    assert spans(segments) == [
        (0, 2, "no_buzz"), (2, 3, "uncertain"), (3, 10, "no_buzz"),
        (0, 1, "buzz"), (1, 10, "no_buzz"),
    ]  # fmt: skip
    with pytest.raises(ParameterError, match="unannotated='buzz' must be one of"):
        labels.read(hives, unannotated="buzz")


def test_two_tables_of_a_recording_cannot_both_say_what_is_left_out(hives, write):
    write("5\t6\tbuzz\n", "b.txt")
    assert len(labels.read(hives)) == 3
    with pytest.raises(LabelError, match=r"b\.txt: b\.Table\.1\.selections\.txt is of the same"):
        labels.read(hives, unannotated="no_buzz")


def test_a_folder_with_labels_csv_is_that_table(hives, write):
    table = write(HEADER + "b.wav,0,4,buzz,x\n")
    (segment,) = labels.read(hives)
    assert segment.table == table
    with pytest.raises(ParameterError, match=r"labels\.csv: .* must not be given with a CSV"):
        labels.read(hives, unannotated="no_buzz")


def test_a_folder_without_tables_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").touch()
    message = r"neither labels\.csv nor a table \(\.txt, \.tsv\) with a recording .* \(\.wav"
    with pytest.raises(LabelError, match=message):
        labels.read(tmp_path)


def test_a_folder_is_not_of_one_recording(hives):
    with pytest.raises(ParameterError, match="recording must not be given with a folder"):
        labels.read(hives, recording=hives / "a.flac")


def test_no_or_several_recordings_beside_a_table_are_an_error(write, recording):
    with pytest.raises(LabelError, match=r"one recording other .* found none"):
        labels.read(write("0\t1\tbuzz\n", "other.txt"))
    recording.with_suffix(".flac").touch()
    with pytest.raises(LabelError, match=r"found hive.WAV, hive.flac"):
        labels.read(write("0\t1\tbuzz\n", "hive.txt"))


def test_importing_labels_and_folds_does_not_import_tensorflow():
    code = (
        "import sys, qbee.data.labels, qbee.data.folds;"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_the_shared_table_is_read_as_it_is():
    shared = Path(os.environ.get("QBEE_SHARED", REPOSITORY.parent / "shared"))
    table = shared / "data/bee_audio/windows.csv"
    if not table.exists():
        pytest.skip(f"{table} is missing; set QBEE_SHARED to the folder that holds data/bee_audio")
    segments = labels.read(table)
    assert len(segments) == 746
    assert sum(segment.label == "uncertain" for segment in segments) == 50
