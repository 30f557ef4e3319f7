"""The review page holds everything, trusts nothing, and is worked by keyboard or mouse."""

import base64
import csv
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from PIL import Image
from selenium.webdriver.common.keys import Keys

from qbee.data import labels
from qbee.errors import ParameterError
from qbee.records import FrontEnd
from qbee.report import review_page
from qbee.report.review_page import ReviewItem

FRONT_END = FrontEnd(n_mels=16, n_frames=32)
MARGIN_S = 0.25
END_S = MARGIN_S + FRONT_END.window_s
# Margin behind the window: a busy machine stops the sound late.
LATE_S = 1.0
EVIL = "</script><script>window.stolen = 1</script><!--"
EVIL_NAMES = [
    EVIL,
    'a "quoted", one\r\n of two lines.wav',
    "<img src=x onerror=alert(1)>",
    "Kühe/蜂.wav",
]


def flac(seed, *, sample_rate_hz=16000, duration_s=END_S + LATE_S):
    """Hum in the FLAC format."""
    time_s = np.arange(int(duration_s * sample_rate_hz)) / sample_rate_hz
    content = io.BytesIO()
    hum = 0.3 * np.sin(2 * np.pi * (180 + 10 * seed) * time_s)
    soundfile.write(content, hum, sample_rate_hz, format="FLAC")
    return content.getvalue()


def item(number, **changes):
    """A window of a group that goes by its number; the higher bands are louder."""
    noise_db = np.random.default_rng(number).normal(-60, 1, (FRONT_END.n_mels, FRONT_END.n_frames))
    usual = ReviewItem(
        clip=f"clips/{number:04d}.flac",
        start_s=MARGIN_S,
        end_s=END_S,
        source=EVIL_NAMES[number % len(EVIL_NAMES)],
        source_start_s=3725.5,
        recorded_at="2024-06-03T09:12:00" if number % 2 else None,
        location="meadow" if number % 2 else " ",
        group=("top", "uncertain", "bottom")[number // 2 % 3],
        probability=(0.97, 0.55, 0.02)[number // 2 % 3],
        image_db=noise_db + np.arange(FRONT_END.n_mels)[:, None],
        audio=flac(number),
    )
    return replace(usual, **changes)


SHOWN = {
    "threshold": 0.5,
    "train_command": "qbee run --labels 'a $& b.csv' --labels {labels} --model beenet3 --out new",
}
ITEMS = [item(number) for number in range(6)]


@pytest.fixture
def write_page(tmp_path):
    """Write a page, and the clips beside it, and return its path."""

    def write(items=ITEMS, *, front_end=FRONT_END, model="beenet3"):
        path = tmp_path / "a review #1" / "review.html"
        for each in items:
            clip = path.parent / each.clip
            clip.parent.mkdir(parents=True, exist_ok=True)
            clip.write_bytes(each.audio)
        review_page.write(items, path, front_end=front_end, model=model, **SHOWN)
        return path

    return write


def content_of(path):
    """What a page says of its windows."""
    page = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="content">(.*?)</script>', page, re.DOTALL).group(1))


def decoded(address, kind):
    """Content of a data address."""
    head, _, text = address.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(text, validate=True)


def picture_of(entry):
    """Brightness of the pixels of a spectrogram."""
    with Image.open(io.BytesIO(decoded(entry["image"], "image/png"))) as picture:
        return np.asarray(picture.convert("L"), int)


def test_page_holds_spectrograms_and_sound_of_all_windows(write_page):
    entries = content_of(write_page())["items"]
    assert [entry["clip"] for entry in entries] == [each.clip for each in ITEMS]
    for entry, each in zip(entries, ITEMS, strict=True):
        assert decoded(entry["audio"], "audio/flac") == each.audio
        picture = picture_of(entry)
        assert picture.shape == each.image_db.shape
        # the loud high bands are at the top
        assert picture[:4].mean() > picture[-4:].mean() + 50


def test_page_loads_nothing(write_page):
    page = write_page().read_text(encoding="utf-8")
    assert not re.search(r"https?://|file:/|//[a-z]+\.", page)
    markup = re.sub(r'id="content">.*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"\b(src|href|srcset|action)=|<link|@import|url\(", markup)
    assert "default-src 'none'; img-src data:; media-src data:" in page


@pytest.mark.parametrize("evil", EVIL_NAMES)
def test_names_from_outside_cannot_become_markup(write_page, evil):
    path = write_page([item(0, source=evil, location=evil, recorded_at=evil)], model=evil)
    page = path.read_text(encoding="utf-8")
    assert len(re.findall(r"<script", page)) == len(re.findall(r"</script", page)) == 2
    assert "<img src=x" not in page
    content = content_of(path)
    assert content["model"] == content["items"][0]["source"] == evil


def test_a_name_that_is_no_unicode_is_written(write_page):
    assert content_of(write_page([item(0, source="\udcff.wav")]))["items"][0]["source"]


def test_the_table_has_the_columns_of_a_label_table(write_page):
    columns = re.search(r"COLUMNS = (\[.*?\]);", write_page().read_text(), re.DOTALL).group(1)
    needed = ["file", "start_s", "end_s", "label", "location", "recorded_at"]
    assert re.findall(r'"(\w+)"', columns)[:6] == needed


def test_windows_are_shown_by_group_in_the_order_given(write_page):
    groups = ["bottom", "top", "uncertain", "top"]
    entries = content_of(write_page([item(i, group=g) for i, g in enumerate(groups)]))["items"]
    assert [entry["clip"][6:10] for entry in entries] == ["0001", "0003", "0002", "0000"]


def test_a_probability_at_the_threshold_is_a_buzz(write_page):
    items = [item(0, probability=0.5), item(0, probability=np.nextafter(0.5, 0))]
    decisions = [entry["decision"] for entry in content_of(write_page(items))["items"]]
    assert decisions == ["buzz", "no_buzz"]


def test_a_blank_location_is_unknown(write_page):
    entries = content_of(write_page([item(0, location=" \n"), item(1)]))["items"]
    assert [entry["location"] for entry in entries] == ["unknown", "meadow"]


def test_windows_are_levelled_as_the_detector_levels_them(write_page):
    items = [item(0), item(0, image_db=item(0).image_db - 40)]
    each, other = (picture_of(e) for e in content_of(write_page(items))["items"])
    assert np.array_equal(each, other)
    by_fold = FRONT_END.model_copy(update={"standardize": "fold"})
    loud, soft = (picture_of(e) for e in content_of(write_page(items, front_end=by_fold))["items"])
    assert loud.mean() > soft.mean() + 50


def test_digital_silence_is_drawn_dark(write_page):
    silence_db = np.full((FRONT_END.n_mels, FRONT_END.n_frames), -100.0)
    assert picture_of(content_of(write_page([item(0, image_db=silence_db)]))["items"][0]).max() < 10


def test_ticks_stand_at_their_frequencies_and_times(write_page):
    axes = content_of(write_page())["axes"]
    assert [tick["text"] for tick in axes["hz"]] == ["50", "200", "400", "800", "1450"]
    assert axes["s"][0] == {"text": "0", "percent": 0.0}
    assert axes["s"][-1] == {"text": "1", "percent": 100.0}
    places = [tick["percent"] for tick in axes["hz"]]
    assert places == sorted(places)
    assert 0 <= places[0] <= 3.2
    assert 96.8 <= places[-1] <= 100


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": "../clip.flac"},
        {"clip": "/clip.flac"},
        {"clip": ""},
        {"group": "middle"},
        {"end_s": MARGIN_S},
        {"start_s": -0.1},
        {"start_s": float("nan")},
        {"probability": float("nan")},
        {"probability": 1.5},
        {"image_db": np.zeros((3, 3))},
    ],
)
def test_a_window_that_cannot_be_shown_is_refused(tmp_path, changes):
    name, value = next(iter(changes.items()))
    wanted = "shape" if name == "image_db" else re.escape(f"{name}={value!r}")
    path = tmp_path / "review.html"
    with pytest.raises(ParameterError, match=wanted):
        review_page.write(
            [item(0, **changes)],
            path,
            front_end=FRONT_END,
            model="m",
            **SHOWN,
        )
    assert not path.exists()


def test_a_page_without_windows_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="at least one window"):
        review_page.write(
            [],
            tmp_path / "review.html",
            front_end=FRONT_END,
            model="m",
            **SHOWN,
        )


# In a browser


def test_answers_by_keyboard_survive_a_reload_and_become_labels(reader, write_page):
    path = write_page()
    reader.open(path)
    reader.press("b", "n", "u", Keys.ENTER, Keys.ENTER)
    assert reader.text("counter") == "5 of 6 answered"
    reader.press(Keys.HOME, "j", "b", Keys.ARROW_RIGHT, Keys.BACKSPACE)
    expected = ["buzz", "buzz", "uncertain", "not answered", "no buzz", "not answered"]
    assert reader.answers() == expected
    assert reader.text("unsaved") == "not saved"
    reader.browser.refresh()
    assert reader.answers() == expected
    assert reader.text("position").startswith("Window 4 of 6")
    reader.press("s")
    table = path.parent / "labels.csv"
    shutil.copy(reader.saved_table(), table)
    segments = labels.read_csv(table)
    assert [segment.label for segment in segments] == ["buzz", "buzz", "uncertain", "no_buzz"]
    numbers = [0, 1, 2, 4]
    assert [s.path for s in segments] == [path.parent / ITEMS[i].clip for i in numbers]
    assert {(s.start_s, s.end_s) for s in segments} == {(MARGIN_S, END_S)}
    assert [s.location for s in segments] == ["unknown", "meadow", "unknown", "unknown"]
    assert [s.recorded_at for s in segments] == [ITEMS[i].recorded_at for i in numbers]
    check_further_columns(table, numbers)


def check_further_columns(table, numbers):
    """Check what else the table says of the windows."""
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, strict=True))
    assert [row["source"] for row in rows] == [ITEMS[i].source for i in numbers]
    assert {float(row["source_start_s"]) for row in rows} == {3725.5}
    assert [float(row["probability"]) for row in rows] == [ITEMS[i].probability for i in numbers]
    assert [row["decision"] for row in rows] == ["buzz", "buzz", "buzz", "no_buzz"]


def test_leaving_with_unsaved_answers_is_warned_of(reader, write_page):
    reader.open(write_page())
    assert not reader.would_warn()
    reader.press("s")
    assert reader.text("message") == "There is no answer to save yet."
    reader.press("b")
    assert reader.would_warn()
    reader.press("s")
    assert not reader.would_warn()
    assert reader.saved_table().exists()
    reader.browser.refresh()
    assert not reader.would_warn()
    assert reader.text("unsaved") == "saved"
    reader.press("n")
    assert reader.would_warn()


def long_item(number):
    """A window that plays longer than any machine takes for the next key."""
    return item(number, end_s=MARGIN_S + 20, audio=flac(number, duration_s=21))


def test_space_plays_and_stops(reader, write_page):
    reader.open(write_page([long_item(0)]))
    reader.press(Keys.SPACE)
    reader.wait(lambda: reader.sound("currentTime") > MARGIN_S + 0.1)
    assert reader.text("play").startswith("Stop")
    reader.press(Keys.SPACE)
    assert reader.sound("paused")
    reader.wait(lambda: reader.text("play").startswith("Play"))


def test_sound_ends_with_the_window_and_not_with_the_clip(reader, write_page):
    reader.open(write_page())
    reader.press(Keys.SPACE)
    reader.wait(lambda: reader.sound("currentTime") > MARGIN_S and reader.sound("paused"))
    assert END_S <= reader.sound("currentTime") < reader.sound("duration")


def test_a_clip_too_short_to_seek_in_is_played_with_its_margin(reader, write_page):
    reader.open(write_page([item(0, audio=flac(0, sample_rate_hz=4000))]))
    for _ in range(2):
        reader.press(Keys.SPACE)
        reader.wait(lambda: not reader.sound("paused") and reader.sound("currentTime") > 0.1)
        reader.wait(lambda: reader.sound("paused"))
        assert END_S <= reader.sound("currentTime") < reader.sound("duration")


def test_a_clip_that_is_no_sound_is_told(reader, write_page):
    reader.open(write_page([item(0, audio=b"no sound")]))
    reader.press(Keys.SPACE)
    reader.wait(lambda: reader.text("message") == "This browser cannot play the clip.")
    assert reader.text("play").startswith("Play")


def test_windows_play_on_arrival_if_asked(reader, write_page):
    reader.open(write_page())
    reader.press("j")
    assert reader.sound("paused")
    reader.press("a", "j")
    reader.wait(lambda: reader.sound("currentTime") > MARGIN_S)
    assert reader.text("position").startswith("Window 3 of 6")


def test_pages_of_other_content_have_other_answers(reader, write_page):
    reader.open(write_page())
    reader.press("b")
    reader.open(write_page(ITEMS[:5]))
    assert reader.text("counter") == "0 of 5 answered"
    reader.open(write_page())
    assert reader.text("counter") == "1 of 6 answered"


@pytest.mark.parametrize("kept", ["{", '{"answers": ["maybe"]}', "null", "3"])
def test_a_damaged_store_means_no_answers(reader, write_page, kept):
    reader.open(write_page())
    reader.browser.execute_script("localStorage.setItem(KEY, arguments[0])", kept)
    reader.browser.refresh()
    assert reader.text("counter") == "0 of 6 answered"
    reader.press("b")
    assert reader.text("counter") == "1 of 6 answered"


def test_hostile_names_are_text_and_nothing_is_refused_or_fetched(reader, write_page):
    reader.open(write_page([item(0), item(2)], model=EVIL))
    reader.press("j", "k", Keys.SPACE, "?", Keys.ESCAPE)
    assert EVIL in reader.text("facts")
    assert EVIL in reader.text("title")
    assert reader.ask("window.stolen === undefined")
    assert reader.browser.get_log("browser") == []
    fetched = reader.ask("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith("data:") for name in fetched)


def test_enter_on_a_focused_button_is_that_button(reader, write_page):
    reader.open(write_page())
    for _ in range(20):
        reader.press(Keys.TAB)
        if reader.ask("document.activeElement.dataset.label") == "no_buzz":
            break
    outline = "getComputedStyle(document.activeElement).outline"
    assert "solid 3px" in reader.ask(outline)
    reader.press(Keys.ENTER, Keys.ENTER)
    assert reader.answers()[:3] == ["no buzz", "no buzz", "not answered"]


def test_after_a_mouse_click_the_keys_work_on(reader, write_page):
    reader.open(write_page())
    reader.click("#cell-4")
    reader.press(Keys.SPACE)
    reader.wait(lambda: reader.sound("currentTime") > MARGIN_S)
    reader.click("[data-label=uncertain]")
    reader.press(Keys.ENTER)
    assert reader.answers()[4:] == ["uncertain", "no buzz"]
    reader.click("#cell-4")
    reader.click("#clear")
    reader.press("g")
    assert reader.text("position").startswith("Window 1 of 6")
    assert reader.text("counter") == "1 of 6 answered"


def test_a_click_on_the_spectrogram_plays_from_there(reader, write_page):
    reader.open(write_page([long_item(0)]))
    assert reader.ask("document.getElementById('cursor').hidden")
    reader.click("#plot")
    reader.wait(lambda: reader.sound("currentTime") > MARGIN_S + 9.9)
    assert not reader.sound("paused")
    reader.wait(lambda: reader.ask("!document.getElementById('cursor').hidden"))


def test_the_command_names_the_folder_of_the_page(reader, write_page):
    path = write_page()
    reader.open(path)
    assert f"{path.parent}/" in reader.text("folder")
    assert f"--labels '{path.parent}/labels.csv'" in reader.text("command")


@pytest.mark.parametrize("width", [1280, 400])
def test_page_fits_the_screen(reader, write_page, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    reader.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    reader.open(write_page())
    assert reader.ask("document.documentElement.scrollWidth <= innerWidth")
    for selector in ("#plot", "#play", "#accept", "[data-label=uncertain]"):
        lowest = f"document.querySelector('{selector}').getBoundingClientRect().bottom"
        assert reader.ask(f"{lowest} <= innerHeight")
