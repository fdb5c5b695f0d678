"""Headless Chromium for the tests of pages; they are skipped where there is none."""

import contextlib
import json
import shutil
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

QUIET = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --window-size=1280,1000"""


@contextlib.contextmanager
def chromium(profile):
    """A driver of Chromium; `profile` is a folder that does not exist yet. Only loopback names are resolved."""
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.skip(f"no {' and no '.join(missing)} on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    for argument in (
        *QUIET.split(),
        f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found["chromedriver"]))
    try:
        yield driver
    finally:
        driver.quit()


def wait(driver, condition, seconds=60):
    """The first true value of `condition()`."""
    return WebDriverWait(driver, seconds, poll_frequency=0.1).until(lambda _: condition())


def console_errors(driver):
    """What pages have logged as errors since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def contacted_hosts(driver):
    """host:port of every request over the network since the last call; the browser's own pages are not among them."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls += [event["params"]["url"] for event in events if event["method"] == "Network.webSocketCreated"]
    return {urlsplit(url).netloc for url in urls if urlsplit(url).scheme in ("http", "https", "ws", "wss")}
