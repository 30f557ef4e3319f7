"""A small job, run once through the command line and used by several tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import Reader, installed, options
from selenium import webdriver

from qbee.audio import synth

# Small enough for tests: a minute of training, and every part of the split has both classes. So
# little training tells no scheme from another: the space has no 16 bits, so that arenas are alike.
SMALL_JOB = ["--model", "beenet3", "--epochs", "2", "--trials", "3", "--fine-tune-epochs", "1",
             "--folds", "3", "--space",
             str(Path(__file__).parent / "small_space.json")]  # fmt: skip


def qbee(*arguments, check=True):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "qbee", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> Path:
    """Label table of small soundscapes."""
    folder = tmp_path_factory.mktemp("recordings")
    return synth.soundscapes(folder, seed=5, recordings_per_location=2, duration_s=44.0)


@pytest.fixture(scope="session")
def finished_job(tmp_path_factory, recordings) -> Path:
    """Result folder of a job that ran without a disturbance."""
    out = tmp_path_factory.mktemp("finished")
    qbee("run", "--labels", recordings, "--out", out, *SMALL_JOB)
    return out


@pytest.fixture
def reader(tmp_path):
    """A person with a browser that ends with the test."""
    browser = installed("chromium", "chromium-browser", "google-chrome")
    service = webdriver.ChromeService(executable_path=installed("chromedriver"))
    downloads = tmp_path / "downloads"
    driver = webdriver.Chrome(options=options(browser, downloads), service=service)
    yield Reader(driver, downloads)
    driver.quit()
