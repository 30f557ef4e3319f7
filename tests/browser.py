"""A person at headless Chromium."""

import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


def installed(*names):
    """Path of the first of several programs that is installed, or a skip."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or pytest.skip(f"{names[0]} is not installed")


def options(browser, downloads):
    """Settings of a browser that runs as root, in a container, without a screen."""
    chosen = webdriver.ChromeOptions()
    chosen.binary_location = browser
    flags = "--headless=new --no-sandbox --disable-dev-shm-usage --disable-gpu"
    for flag in (*flags.split(), "--window-size=1280,800"):
        chosen.add_argument(flag)
    chosen.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chosen.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    return chosen


class Reader:
    """A person at the browser."""

    def __init__(self, browser, downloads):
        self.browser, self.downloads = browser, downloads

    def open(self, path):
        self.browser.get(path.as_uri())

    def press(self, *keys):
        ActionChains(self.browser).send_keys(*keys).perform()

    def click(self, selector):
        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    def text(self, name):
        return self.browser.find_element(By.ID, name).text

    def sound(self, field):
        return self.browser.execute_script(f"return document.getElementById('audio').{field}")

    def ask(self, expression):
        return self.browser.execute_script(f"return {expression}")

    def wait(self, condition):
        return WebDriverWait(self.browser, 20, poll_frequency=0.02).until(lambda _: condition())

    def answers(self):
        """Answers as the film shows them to a screen reader."""
        cells = self.browser.find_elements(By.CLASS_NAME, "cell")
        spoken = [cell.get_attribute("aria-label").rpartition(", ")[2] for cell in cells]
        return [text.removeprefix("your answer: ") for text in spoken]

    def would_warn(self):
        """Whether leaving the page would be warned of."""
        return self.ask("!dispatchEvent(new Event('beforeunload', { cancelable: true }))")

    def saved_table(self):
        """Path of the table, when the browser has finished writing it."""
        path = self.downloads / "labels.csv"
        self.wait(path.exists)
        return path
