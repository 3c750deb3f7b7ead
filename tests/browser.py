"""A page in a headless browser: Debian's Chromium, driven by Selenium, where both are there; elsewhere its tests skip."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def opened(page: Path, width: int = 1200) -> Iterator[Any]:
    """A browser that has loaded ``page``, its window so wide; skips the test where there is no browser."""
    found = [shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")]
    if None in found:
        pytest.skip("no browser and driver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no Selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--window-size={width},900",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(found[1]))
    try:
        browser.set_page_load_timeout(60)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics(width))
        browser.get(page.resolve().as_uri())
        yield browser
    finally:
        browser.quit()


def metrics(width: int) -> dict[str, Any]:
    """A screen of this width: headless windows are never narrower than 500 points."""
    return {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}


def complaints(browser: Any) -> list[str]:
    """What the console says."""
    return [entry["message"] for entry in browser.get_log("browser")]


def table(browser: Any, name: str) -> list[list[str]]:
    """The texts of the cells of a table's body, as the page has them now."""
    script = (
        "return [...document.getElementById(arguments[0]).tBodies[0].rows].map(r => [...r.cells].map(c => c.innerText))"
    )
    return browser.execute_script(script, name)
