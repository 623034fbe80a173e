"""The cohort's page in a real browser: it sorts and filters by keyboard, its links lead somewhere, and nothing is asked of the outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import asked_for, chromium, complaints, wait_for
from report.cohorts import cohort

from medcam.report.cohort_page import CohortView, write_cohort_page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
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
    with chromium() as driver:
        yield driver


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    browser.get(page.as_uri())
    wait_for("the table of cases", lambda: browser.execute_script("return document.body.dataset.table") == "ready")
    return browser


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
    asked = asked_for(opened)
    assert asked
    assert asked <= {"file", "blob", "data"}
    assert complaints(opened) == []
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
    wait_for("the case", lambda: opened.title == "a case", patience_s=20)
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
