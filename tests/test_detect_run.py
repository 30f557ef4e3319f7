"""A detection in a folder: continued, damaged, killed, and told in tables."""

import os
import struct
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from field_toys import (
    FRONT_END,
    RATE,
    BrokenEars,
    DeadlyEars,
    LoudnessEars,
    name_of,
    season,
    sound,
    write,
)

from qbee.audio import mel
from qbee.data import labels
from qbee.detect import clock, events, label_files, tables
from qbee.detect.events import EventRule
from qbee.detect.recordings import Dating, find, inspect, inspect_all
from qbee.detect.run import Detection, DetectSettings
from qbee.errors import AudioError, ModelFileError, ParameterError, QbeeError
from qbee.train import metrics

SETTINGS = DetectSettings(model="m", model_sha256="0" * 64, engine="litert", front_end=FRONT_END)
RULE = EventRule(threshold=0.5, keep_threshold=0.5)
START = datetime(2024, 5, 1, 22)


def hear(out, arguments, *, ears=None, workers=1, on_error="skip", **settings):
    detection = Detection(out, SETTINGS.model_copy(update=settings))
    detection.hear(
        inspect_all(find(arguments), Dating()),
        ears or LoudnessEars(),
        workers=workers,
        on_error=on_error,
    )
    return detection


def kinds(detection):
    return {
        one.placed.recording.path.name: [(p.kind, p.effect) for p in one.part.problems]
        for one in detection.listened
    }


def margins(detection):
    return {one.placed.recording.path.name: one.part.margins for one in detection.listened}


def test_windows_are_those_of_the_recording_in_order(tmp_path):
    paths = season(tmp_path / "field", nights=1)
    detection = hear(tmp_path / "out", [tmp_path / "field"])
    assert [one.placed.recording.path for one in detection.listened] == paths
    for one in detection.listened:
        starts_s = one.starts_s(FRONT_END)
        images = mel.images(one.placed.recording.path, FRONT_END, starts_s)
        expected = metrics.margins(LoudnessEars()().logits(images)).astype(np.float32)
        np.testing.assert_array_equal(one.part.margins, expected)


def test_two_processes_hear_what_one_does(tmp_path):
    season(tmp_path / "field")
    one = hear(tmp_path / "one", [tmp_path / "field"])
    two = hear(tmp_path / "two", [tmp_path / "field"], workers=2)
    for name, found in margins(one).items():
        np.testing.assert_array_equal(margins(two)[name], found)


def test_what_was_heard_is_not_heard_again_and_new_files_are_added(tmp_path):
    paths = season(tmp_path / "field", nights=1)
    hear(tmp_path / "out", paths[:2])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/work/parts").iterdir()}
    detection = hear(tmp_path / "out", paths[2:])
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert len(detection.listened) == 3
    whole = hear(tmp_path / "whole", paths)
    for name, found in margins(whole).items():
        np.testing.assert_array_equal(margins(detection)[name], found)


def test_a_file_that_was_changed_is_heard_again(tmp_path):
    (path,) = season(tmp_path / "field", nights=1, files=1)
    before = margins(hear(tmp_path / "out", [path]))[path.name]
    write(path, sound(30, [(1, 20)]))
    after = margins(hear(tmp_path / "out", [path]))[path.name]
    assert len(after) > len(before)


def test_a_folder_holds_one_detector(tmp_path):
    season(tmp_path / "field", nights=1, files=1)
    hear(tmp_path / "out", [tmp_path / "field"])
    for changes in ({"model_sha256": "1" * 64}, {"engine": "keras"}):
        with pytest.raises(ParameterError, match=f"another {next(iter(changes))}"):
            hear(tmp_path / "out", [tmp_path / "field"], **changes)


def test_a_detector_that_cannot_be_opened_stops_the_run(tmp_path):
    season(tmp_path / "field", nights=1, files=1)
    with pytest.raises(QbeeError, match="is damaged"):
        hear(tmp_path / "out", [tmp_path / "field"], ears=BrokenEars())


def test_a_process_that_dies_takes_only_its_recording(tmp_path):
    paths = season(tmp_path / "field", nights=1)
    write(paths[1], 30 * sound(20, [(0, 20)]), subtype="FLOAT")
    detection = hear(tmp_path / "out", paths, ears=DeadlyEars(), workers=2)
    assert kinds(detection)[paths[1].name] == [("crashed", "left_out")]
    assert "SIGKILL" in detection.listened[1].part.problems[0].text
    assert all(len(margins(detection)[p.name]) for p in (paths[0], paths[2]))
    # It may have died of something else, so it is tried again.
    again = hear(tmp_path / "out", paths)
    assert kinds(again)[paths[1].name] == [("clipping", "used")]


HEAR_SLOWLY = """
import sys
from pathlib import Path
from field_toys import LoudnessEars
from test_detect_run import hear

if __name__ == "__main__":
    hear(Path(sys.argv[1]), sys.argv[2:], ears=LoudnessEars(slow_s=600.0), workers=2)
"""


def children_of(process):
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(child) for child in found]


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(is_so, *, seconds=30.0):
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.05)
    return is_so()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc, as Linux has it")
@pytest.mark.parametrize("wait_s", [0.0, 0.3, 4.0])
def test_processes_end_with_their_parent_whatever_they_do(tmp_path, wait_s):
    paths = season(tmp_path / "field", nights=1, files=2)
    script = tmp_path / "script.py"
    script.write_text(HEAR_SLOWLY)
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, script, tmp_path / "out", *paths]
    with subprocess.Popen(command, env=environment) as parent:
        # Two that listen, and one by which Python counts what they share.
        assert until(lambda: len(children_of(parent.pid)) == 3)
        time.sleep(wait_s)
        children = children_of(parent.pid)
        parent.kill()
    assert until(lambda: not any(map(is_running, children)), seconds=10.0)


def test_a_file_that_is_being_written_is_left_out_until_it_is_finished(tmp_path):
    path = write(tmp_path / "field" / name_of(START), sound(120, []))

    def grow():
        for _ in range(100):
            with path.open("ab") as file:
                file.write(bytes(1000))
            time.sleep(0.05)

    detection = Detection(tmp_path / "out", SETTINGS)
    found = [inspect(path, Dating())]
    writer = threading.Thread(target=grow)
    writer.start()
    detection.hear(found, LoudnessEars(0.2), workers=1, on_error="skip")
    writer.join()
    assert kinds(detection)[path.name] == [("changed", "left_out")]
    assert "still be writing" in detection.listened[0].part.problems[0].text
    again = hear(tmp_path / "out", [path])
    assert "changed" not in dict(kinds(again)[path.name])
    assert len(margins(again)[path.name])


def damaged(folder):
    """Files with one damage each, and the problem it must be."""
    good = write(folder / "good.wav", sound(20, [(3, 6)]))
    content = good.read_bytes()

    def put(name, data):
        (folder / name).write_bytes(data)

    def patched(at, form, value):
        return content[:at] + struct.pack(form, value) + content[at + struct.calcsize(form) :]

    put("empty.wav", b"")
    put("text.wav", b"field notes\n" * 1000)
    put("noise.flac", np.random.default_rng(0).bytes(20000))
    put("head.wav", content[:30])
    put("cut.wav", content[: len(content) // 2])
    put("open.wav", patched(40, "<I", 0xFFFFFFFF))
    put("unfinished.wav", patched(40, "<I", 0))
    put("short_header.wav", patched(40, "<I", 5 * 2 * RATE))
    put("rate.wav", patched(24, "<I", 16000))
    put("channels.wav", patched(22, "<H", 3))
    write(folder / "slow.wav", sound(20, [], rate=2000), rate=2000)
    write(folder / "brief.wav", sound(0.5, []))
    write(folder / "brief_silence.wav", np.zeros(RATE // 2))
    write(folder / "silent.wav", np.zeros(20 * RATE))
    write(folder / "dropout.wav", np.where(np.arange(20 * RATE) % 80000 < 4000, 0, sound(20, [])))
    write(folder / "clipped.wav", np.clip(20 * sound(20, [(0, 9)]), -1, 1))
    write(folder / "offset.wav", sound(20, []) + 0.1)
    flac = write(folder / "whole.flac", sound(100, [(3, 6)])).read_bytes()
    put("flipped.flac", flac[:-40000] + bytes([flac[-40000] ^ 255]) + flac[-39999:])
    nan = sound(20, [])
    nan[RATE * 10] = np.nan
    write(folder / "nan.wav", nan, subtype="FLOAT")
    return {
        "good.wav": [],
        "open.wav": [],
        "whole.flac": [],
        "empty.wav": [("unreadable", "left_out")],
        "text.wav": [("unreadable", "left_out")],
        "noise.flac": [("unreadable", "left_out")],
        "head.wav": [("unreadable", "left_out")],
        "cut.wav": [("cut_short", "used_partly")],
        "unfinished.wav": [("unfinished", "left_out")],
        "short_header.wav": [("wrong_length", "used_partly")],
        "rate.wav": [("wrong_header", "left_out")],
        "channels.wav": [("wrong_header", "left_out")],
        "slow.wav": [("rate_too_low", "left_out")],
        "brief.wav": [("too_short", "left_out")],
        "brief_silence.wav": [("silence", "used"), ("too_short", "left_out")],
        "silent.wav": [("silence", "used")],
        "dropout.wav": [("dropout", "used")],
        "clipped.wav": [("clipping", "used")],
        "offset.wav": [("dc_offset", "used")],
        "flipped.flac": [("cut_short", "used_partly")],
        "nan.wav": [("cut_short", "used_partly")],
    }


def test_every_damage_is_found_and_told_and_all_that_can_be_used_is(tmp_path):
    expected = damaged(tmp_path / "field")
    detection = hear(tmp_path / "out", [tmp_path / "field"])
    found = {
        name: [one for one in some if one[0] not in ("no_start_time", "rate_change")]
        for name, some in kinds(detection).items()
    }
    assert found == expected
    heard = margins(detection)
    for name, problems in expected.items():
        assert (len(heard[name]) > 0) == all(e != "left_out" for _, e in problems), name
    np.testing.assert_array_equal(heard["open.wav"], heard["good.wav"])
    # What lies before the damage equals the same part of the whole.
    count = len(heard["cut.wav"])
    assert count >= (10 - FRONT_END.window_s) / FRONT_END.window_hop_s - 2
    np.testing.assert_array_equal(heard["cut.wav"], heard["good.wav"][:count])
    reasons = {
        one.placed.recording.path.name: one.part.problems[0].text
        for one in detection.listened
        if one.part.problems
    }
    assert "ends at second 9.99" in reasons["cut.wav"]
    assert "0 bytes" in reasons["empty.wav"]
    assert "15.000 s of data follow the 5.000 s" in reasons["short_header.wav"]
    assert "second 10.000 is nan" in reasons["nan.wav"]


@pytest.mark.parametrize("name", ["empty.wav", "cut.wav", "rate.wav"])
def test_a_damaged_file_stops_the_run_that_is_asked_to(tmp_path, name):
    damaged(tmp_path / "all")
    bad = tmp_path / "field" / name
    bad.parent.mkdir()
    (tmp_path / "all" / name).replace(bad)
    # Also when it was heard before.
    for _ in range(2):
        with pytest.raises(AudioError, match=f"{name}: .*--on-error skip"):
            hear(tmp_path / "out", [bad], on_error="stop")
    hear(tmp_path / "out", [bad])


def test_silence_and_the_like_stop_nothing(tmp_path):
    write(tmp_path / "silent.wav", np.zeros(20 * RATE))
    hear(tmp_path / "out", [tmp_path / "silent.wav"], on_error="stop")


def test_recordings_of_a_place_are_compared_with_each_other(tmp_path):
    place = tmp_path / "field"
    write(place / name_of(START), sound(20, []))
    write(place / name_of(START + timedelta(seconds=10)), sound(20, []))
    write(place / name_of(START + timedelta(hours=1)), sound(20, [], rate=16000), rate=16000)
    write(place / "undated.wav", sound(20, [], rate=16000), rate=16000)
    found = [dict(some) for some in kinds(hear(tmp_path / "out", [place])).values()]
    assert [*map(set, found)] == [set(), {"overlap"}, {"rate_change"}, {"no_start_time"}]


def test_one_long_recording_and_its_pieces_are_heard_alike(tmp_path):
    seconds, piece = 100.0, 23.1
    samples = sound(seconds, [(4, 9), (21, 26), (44, 48), (80, 81)])
    write(tmp_path / "long" / name_of(START), samples)
    for begin in np.arange(0, seconds, piece):
        name = name_of(START + timedelta(seconds=float(begin)))
        piece_of = samples[round(begin * RATE) : round((begin + piece) * RATE)]
        write(tmp_path / "cut" / name, piece_of)
    (whole,) = hear(tmp_path / "out_long", [tmp_path / "long"]).listened
    pieces = hear(tmp_path / "out_cut", [tmp_path / "cut"]).listened
    (chain,) = events.chains(pieces)
    rows = tables.cut_rows([chain], FRONT_END)
    heard, at_cut, elapsed = 0, 0, 0.0
    for number, one in enumerate(chain):
        at = (one.starts_s(FRONT_END) + elapsed) / FRONT_END.window_hop_s
        np.testing.assert_allclose(at, at.round(), atol=1e-9)
        expected = whole.part.margins[at.round().astype(int)]
        first, last = number > 0, number < len(chain) - 1
        inner = slice(int(first), len(at) - int(last))
        # soxr rounds as its blocks lie: a few float32 steps of a dB.
        np.testing.assert_allclose(one.part.margins[inner], expected[inner], atol=1e-3)
        at_cut += first + last
        heard += len(at)
        elapsed += one.placed.recording.duration_s
    # All others are listed: those at the cuts, and those that would lie over one.
    assert sum(row[-1] for row in rows) == len(whole.part.margins) - heard
    assert at_cut == 2 * len(rows)
    starts = [round(row[4] / FRONT_END.window_hop_s) for row in rows]
    assert all(start in (0, 1) for start in starts)


@pytest.mark.parametrize("length", [0, 100])
def test_a_damaged_part_is_named_and_heard_again(tmp_path, length):
    season(tmp_path / "field", nights=1, files=1)
    detection = hear(tmp_path / "out", [tmp_path / "field"])
    (part,) = (tmp_path / "out/work/parts").iterdir()
    whole = part.read_bytes()
    part.write_bytes(whole[:length])
    with pytest.raises(ModelFileError, match=part.name):
        _ = detection.listened
    hear(tmp_path / "out", [tmp_path / "field"])
    assert part.read_bytes() == whole


def test_a_file_that_was_gone_is_heard_when_it_is_back(tmp_path):
    (path,) = season(tmp_path / "field", nights=1, files=1)
    found = [inspect(path, Dating())]
    path.rename(tmp_path / "away")
    detection = Detection(tmp_path / "out", SETTINGS)
    detection.hear(found, LoudnessEars(), workers=1, on_error="skip")
    assert kinds(detection) == {path.name: [("unreadable", "left_out")]}
    (tmp_path / "away").rename(path)
    assert kinds(hear(tmp_path / "out", [path])) == {path.name: []}


def test_what_an_unfinished_run_did_not_hear_is_told_and_parts_the_events(tmp_path):
    paths = season(tmp_path / "field", nights=1)
    hear(tmp_path / "out", paths)
    write(paths[1], sound(20, [(1, 19)], seed=7))
    detection = Detection(tmp_path / "out", SETTINGS)
    detection._add([inspect(path, Dating()) for path in paths])
    hear(tmp_path / "out", [paths[0], paths[2]])
    assert kinds(detection)[paths[1].name] == [("not_heard", "left_out")]
    assert len(margins(detection)[paths[1].name]) == 0
    assert [len(chain) for chain in events.chains(detection.listened)] == [2, 1]


def test_two_recorders_that_call_their_folders_alike_do_not_continue_each_other(tmp_path):
    for card in ("card1", "card2"):
        season(tmp_path / card, nights=1)
    found = events.chains(hear(tmp_path / "out", [tmp_path]).listened)
    parents = [{one.placed.recording.path.parent for one in chain} for chain in found]
    assert [len(chain) for chain in found] == [3, 3]
    assert all(len(some) == 1 for some in parents)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    detection = Detection(tmp_path, SETTINGS)
    with (
        detection.locked(),
        pytest.raises(ParameterError, match="another run"),
        Detection(tmp_path, SETTINGS).locked(),
    ):
        pass
    with Detection(tmp_path, SETTINGS).locked():
        pass


def test_all_times_are_shown_in_the_zone_that_was_asked_for_last(tmp_path):
    paths = season(tmp_path / "field", nights=1, files=2)
    detection = Detection(tmp_path / "out", SETTINGS)
    for path, zone in zip(paths, ("UTC", "+02:00"), strict=True):
        found = [inspect(path, Dating(recorder_zone=clock.zone(zone)))]
        detection.hear(found, LoudnessEars(), workers=1, on_error="skip")
    shown = Detection(tmp_path / "out", SETTINGS, zone="Europe/Ljubljana").listened
    texts = [tables.time_text(one, 0.0) for one in shown]
    assert texts == ["2024-05-01T22:00:20.000+02:00", "2024-05-02T00:00:00.000+02:00"]


def events_of(detection):
    chains = events.chains(detection.listened)
    return [event for chain in chains for event in events.find(chain, FRONT_END, RULE)]


def test_label_files_of_raven_and_audacity_read_as_the_events(tmp_path):
    paths = season(tmp_path / "field", nights=1)
    found = events_of(hear(tmp_path / "out", paths))
    raven, audacity = label_files.write(tmp_path / "out", found, FRONT_END)
    assert len(raven) == len(audacity) == len(paths)
    expected = [
        (
            span.listened.placed.recording.path,
            pytest.approx(span.start_s),
            pytest.approx(span.end_s),
        )
        for event in found
        for span in event.spans
    ]
    for files in (raven, audacity):
        read = [
            (segment.path, segment.start_s, segment.end_s)
            for path, file in zip(paths, files, strict=True)
            for segment in labels.read(file, recording=path, location="orchard")
        ]
        assert read == expected


def test_label_files_of_events_that_are_none_any_more_are_removed_but_edited_ones_stay(tmp_path):
    found = events_of(hear(tmp_path / "out", season(tmp_path / "field", nights=1)))
    before, _ = label_files.write(tmp_path / "out", found, FRONT_END)
    mine = before[0].with_name("mine.Table.2.selections.txt")
    mine.write_text("my own")
    before[0].write_text("edited")
    after, _ = label_files.write(tmp_path / "out", found[:1], FRONT_END)
    assert after == [before[0].with_name(before[0].name.replace(".Table", " (2).Table"))]
    kept = {before[0], mine, after[0]}
    assert set((tmp_path / "out" / "raven").rglob("*.txt")) == kept
    assert before[0].read_text() == "edited"


@pytest.mark.parametrize(
    "text", ["../../etc", "/", "a/b", "..", "", "x" * 300, "Ж" * 119, "a\nb", "č ž.1"]
)
def test_no_name_leaves_its_folder(tmp_path, text):
    name = label_files.safe_name(text)
    path = (tmp_path / name).resolve()
    assert path.parent == tmp_path.resolve()
    assert len(name.encode()) <= 120
    assert label_files.safe_name(name) == name
