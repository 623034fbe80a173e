"""The page of a cohort holds all it shows: words escaped, nothing outside, tables with heads, figures with words."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report.cohorts import NASTY, cohort

from medcam.report.cohort_page import CohortView, Sight, cohort_page, write_cohort_page

COHORT = cohort()
VIEW = CohortView(
    COHORT,
    {2: Path("pages/line-0002.html"), 3: Path("pages/a b#c%.html")},
    (Sight(2, "best, hit <1.00>", b"\x89PNG made up"),),
    notes=("A note of the <b>report</b> & more.",),
)
VOID = {"meta", "input", "img", "br", "link", "hr", "col"}


class Page(HTMLParser):
    """Elements with attributes and text; complains of what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return cohort_page(VIEW)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_what_the_user_wrote_is_shown_as_words_and_never_runs(page: Page, text: str) -> None:
    for words in (
        NASTY,
        "net <b>",
        "its image <is> not there & cannot be read",
        "A note with <tags> & signs.",
        "One case failed & was <left out>.",
    ):
        assert words in page.text, words
    assert len(page.all("script")) == 1
    assert "onerror" not in {name for _, attributes in page.elements for name in attributes}
    assert "<b>report" not in text


def test_the_page_asks_nothing_of_the_outside(page: Page, text: str) -> None:
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    addresses = [
        v or ""
        for _, attributes in page.elements
        for n, v in attributes.items()
        if n in ("src", "href", "action", "data", "poster")
    ]
    assert addresses
    assert all(a.startswith(("data:image/", "#", "./pages/")) for a in addresses)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]*", "", text))


def test_the_pictures_ask_nothing_either_and_say_what_they_show(page: Page) -> None:
    pictures = page.all("img")
    assert len(pictures) == 6
    for each in pictures:
        assert len(each["alt"]) > 10
        kind, _, data = each["src"].partition(";base64,")
        if kind == "data:image/svg+xml":
            drawn = base64.b64decode(data).decode()
            assert not re.search(r"(href|src)=\"(?!#)", drawn)
            assert "<script" not in drawn


def test_the_verdict_comes_first_with_its_number_before_its_words(page: Page) -> None:
    first = page.text
    number, chance, words = (
        first.index(w) for w in ("Peak in the lesion: 0.", "chance (lesion elsewhere) 0.03", COHORT.verdict.words)
    )
    assert number < chance < words < first.index("Mean over cases")


def test_the_table_of_cases_has_all_cases_with_values_to_sort_by(text: str) -> None:
    table = text[text.index('<table id="case-table">') :]
    table = table[: table.index("</table>")]
    head, body = table.split("</thead>")
    rows = body.split("<tr ")[1:]
    assert len(rows) == len(COHORT.cases)
    assert all(row.count("<td") + row.count("<th") == head.count("<th ") for row in rows)
    assert head.count('scope="col"') == head.count("<th ")
    assert all('scope="row"' in row for row in rows)
    failed = rows[5]
    assert 'data-verdict="failed"' in failed
    assert 'data-value=""' in failed
    hits = [re.findall(r'data-value="([^"]*)"', row)[1] for row in rows]
    assert [float(h) for h in hits if h] == [c.measures.numbers["hit"].value for c in COHORT.done if c.measures.lesions]
    assert "aria-sort" in text
    assert "button" in text


def test_links_lead_to_pages_beside_this_one(page: Page) -> None:
    links = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert links == ["./pages/line-0002.html", "./pages/a%20b%23c%25.html"]


def test_every_part_has_a_name_and_every_target_is_there(page: Page) -> None:
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    named = [a for tag, a in page.elements if tag == "section"]
    assert all(a["aria-labelledby"] in ids for a in named)
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= ids
    assert page.all("html")[0]["lang"] == "en"


def test_failed_cases_and_what_was_left_out_are_told_by_line(page: Page) -> None:
    assert "line 7: its image <is> not there & cannot be read" in page.text
    left = [case.entry.line for case in COHORT.done if not case.measures.lesions]
    assert left
    for line in left:
        case = next(case for case in COHORT.done if case.entry.line == line)
        assert f"line {line}: {case.measures.numbers['hit'].why}" in page.text
    assert "A note with <tags> & signs. (line 5)" in page.text


def test_a_cohort_of_which_all_failed_still_has_a_page() -> None:
    failed = replace(COHORT, cases=(COHORT.cases[5],), summary=(), comparisons=(), froc={}, counts={}, verdict=None)
    page = Page(cohort_page(CohortView(failed)))
    assert "No case could be measured." in page.text
    assert page.all("img") == []


def test_the_same_cohort_gives_the_same_page_written_whole(tmp_path: Path, text: str) -> None:
    write_cohort_page(VIEW, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
