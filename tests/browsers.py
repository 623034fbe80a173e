"""A headless Chromium for tests of pages: WebGL in software, what it asks for, and patience."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist", "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip


@contextmanager
def chromium(width: int = 1200, height: int = 1100) -> Iterator[Any]:
    """A browser with a window of this size, that keeps what it asks for and complains of. Skips where it is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if BROWSER is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    for flag in (*_FLAGS, f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(DRIVER))
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def wait_for(what: str, found: Callable[[], Any], *, patience_s: float = 60.0) -> Any:
    """Return what is found as soon as it is something; parts of a page that are not there yet are errors of the script."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + patience_s
    said = ""
    while time.monotonic() < end:
        try:
            if value := found():
                return value
        except WebDriverException as error:
            said = str(error.msg)
        time.sleep(0.2)
    raise AssertionError(f"the page does not show {what} in time {said}")


def asked_for(browser: Any) -> set[str]:
    """Return the schemes of all addresses that were asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    return {url.split(":")[0] for url in asked}


def complaints(browser: Any, levels: tuple[str, ...] = ("SEVERE", "WARNING")) -> list[Any]:
    """Return what the browser complained of since the last call."""
    return [entry for entry in browser.get_log("browser") if entry["level"] in levels]
