"""The cohort's page in a real browser: it sorts and filters by keyboard, its links lead somewhere, and nothing is asked of the outside."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report.cohorts import cohort

from medcam.report.cohort_page import CohortView, write_cohort_page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--window-size=1200,1100", "--disable-dev-shm-usage", "--disable-gpu")
COHORT = cohort()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    other = Path("pages/a b#c%.html")
    (folder / "pages").mkdir()
    (folder / other).write_text("<!doctype html><title>a case</title>")
    write_cohort_page(CohortView(COHORT, {3: other}), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if BROWSER is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    browser.get(page.as_uri())
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if browser.execute_script("return document.body.dataset.table") == "ready":
            return browser
        time.sleep(0.1)
    raise AssertionError("the table of cases was not ready in time")


def column(browser: Any, number: int) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('#case-table tbody tr')].filter(r => !r.hidden).map(r => r.cells[arguments[0]].textContent)",
        number,
    )


def head(browser: Any, words: str) -> tuple[int, Any]:
    heads = browser.find_elements("css selector", "#case-table thead th")
    n = next(n for n, each in enumerate(heads) if each.text.strip() == words)
    return n, heads[n]


def test_the_page_asks_nothing_of_the_outside_and_complains_of_nothing(opened: Any) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert asked
    assert {url.split(":")[0] for url in asked} <= {"file", "blob", "data"}
    assert [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    broken = "return [...document.images].filter(i => !(i.complete && i.naturalWidth > 100)).length"
    assert opened.execute_script(broken) == 0


def test_the_table_sorts_by_keyboard_numbers_as_numbers_and_undefined_last(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    n, cell = head(opened, "average precision")
    assert cell.get_attribute("aria-sort") == "none"
    button = cell.find_element("tag name", "button")
    button.send_keys(Keys.ENTER)
    assert cell.get_attribute("aria-sort") == "ascending"
    rising = column(opened, n)
    known = [float(v) for v in rising if v != "-"]
    assert known == sorted(known)
    assert len(set(known)) > 3
    assert rising[len(known) :] == ["-"] * (len(rising) - len(known))
    assert "-" in rising
    button.send_keys(Keys.SPACE)
    assert cell.get_attribute("aria-sort") == "descending"
    falling = column(opened, n)
    assert [float(v) for v in falling if v != "-"] == known[::-1]
    assert falling[-1] == "-"
    sorted_heads = opened.find_elements(
        "css selector", "#case-table th[aria-sort=ascending], #case-table th[aria-sort=descending]"
    )
    assert len(sorted_heads) == 1


def test_words_sort_too_with_numbers_in_them_in_order(opened: Any) -> None:
    n, cell = head(opened, "patient")
    cell.find_element("tag name", "button").click()
    assert column(opened, n) == sorted(column(opened, n), key=lambda name: int(name[1:]))


def test_the_filters_show_what_fits_and_say_how_many(opened: Any) -> None:
    told = opened.find_element("id", "filter-told")
    assert told.text == f"{len(COHORT.cases)} of {len(COHORT.cases)} cases shown"
    assert told.get_attribute("aria-live") == "polite"
    field = opened.find_element("id", "filter")
    field.send_keys("CASE-0")
    assert told.text.startswith("9 of ")
    assert len(column(opened, 0)) == 9
    opened.execute_script(
        "const s = document.getElementById('filter-verdict'); s.value = 'failed'; s.dispatchEvent(new Event('input'))"
    )
    assert told.text.startswith("1 of ")
    assert column(opened, 0) == ["7"]


def test_a_case_leads_to_its_page(opened: Any) -> None:
    opened.find_element("css selector", "#case-table tbody a").click()
    end = time.monotonic() + 20
    while opened.title != "a case" and time.monotonic() < end:
        time.sleep(0.1)
    assert opened.title == "a case"


def test_names_that_hold_markup_run_nothing(opened: Any) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        opened.switch_to.alert  # noqa: B018
    assert opened.execute_script("return document.querySelectorAll('#case-table img, #case-table script').length") == 0


def test_without_scripts_all_cases_stand_in_the_tables_order(browser: Any, page: Path, tmp_path: Path) -> None:
    blind = tmp_path / "blind.html"
    text = page.read_text(encoding="utf-8")
    blind.write_text(text[: text.index("<script>")] + "</body></html>", encoding="utf-8")
    browser.get(blind.as_uri())
    assert column(browser, 0) == [str(case.entry.line) for case in COHORT.cases]
    assert not browser.find_element("id", "filters").is_displayed()
    assert browser.find_elements("css selector", "#case-table button") == []
