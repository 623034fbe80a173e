"""The overview of a cohort: every case in its line, words escaped, links to files that are there, nothing outside."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

from medcam.cohort.manifest import DONE, Row
from medcam.report.overview import OVERVIEW, overview_page, write_overview

_ANSWER = {
    "class": "<b>lesion</b> & more",
    "probability": 0.25,
    "score": -1.5,
    "peak": "voxel 1, 2, 3",
    "notes": "A note.",
    "verdict": "",
}
ROWS = [
    Row("b", 3, "second", 2, state="late", error="it took longer than 5 s", answer={}),
    Row(
        "a", 2, "<first> case", 1, state=DONE, answer=_ANSWER,
        files={f"heatmaps/a b#%/x:y_gradcam{end}": [1, 2, "d"] for end in (".nii.gz", "_label.nii.gz", ".png", ".json", "_sc.dcm")},
    ),
    Row("c", 4, "third", 2, state=DONE, answer={**_ANSWER, "probability": "nan", "score": "nan", "verdict": "the map agrees"}),
]  # fmt: skip


def cells(page: str) -> list[list[str]]:
    body = page.partition("<tbody>")[2].partition("</tbody>")[0]
    found = []
    for row in re.findall(r"<tr.*?</tr>", body):
        found.append([unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<t[dh].*?</t[dh]>", row)])
    return found


def test_cases_stand_in_order_with_what_is_known_of_them(tmp_path: Path) -> None:
    page = write_overview(ROWS, tmp_path, title="Cohort <x>").read_text()
    first, second, third = cells(page)
    assert first == [
        "2", "<first> case", "1", "<b>lesion</b> & more", "0.250", "-1.5", "voxel 1, 2, 3", "", "picture DICOM heatmap", "A note.",
    ]  # fmt: skip
    assert (second[0], second[4], second[7], second[9]) == ("3", "-", "late", "it took longer than 5 s")
    assert (third[4], third[5], third[7]) == ("-", "-", "the map agrees")
    assert "3 cases of 2 patients; 1 failed" in page
    assert "<b>lesion" not in page
    assert (tmp_path / OVERVIEW).read_text() == page


def test_links_lead_to_the_files_and_nowhere_else() -> None:
    page = overview_page(sorted(ROWS, key=lambda row: row.line), title="Cohort")
    links = re.findall(r'href="(.*?)"', page)
    assert all(link.startswith("./heatmaps/") for link in links)
    assert [unquote(unescape(link)).removeprefix("./") for link in links] == [
        f"heatmaps/a b#%/x:y_gradcam{ending}" for ending in (".png", "_sc.dcm", ".nii.gz")
    ]
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
