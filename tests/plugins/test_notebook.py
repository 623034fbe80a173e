"""What notebooks show: small, without scripts, in place, without identity, and never at the cost of a cell."""

from __future__ import annotations

import base64
import html
import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import chromium, wait_for
from PIL import Image

import medcam
from conftest import blob, oblique_grid
from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from medcam import Grid, Heatmap, Recipe, Source, Volume
from medcam.errors import UsageError
from medcam.report import notebook

RECIPE = Recipe("net", "cd" * 32, "grad-cam", "features", "lesion")
SOURCE = Source("nifti", "ab" * 32, "MR_s3", "MR")
LEFT_FRONT_HIGH = np.array([-16.0, 19.0, 12.0])


def centred(shape: tuple[int, int, int], axes: np.ndarray) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ (np.array(shape) - 1) / 2
    return Grid(shape, affine)


@pytest.fixture(scope="module")
def case() -> tuple[Heatmap, Volume]:
    grid = centred((31, 37, 23), oblique_grid().affine[:3, :3])
    heatmap = Heatmap(
        blob(grid, LEFT_FRONT_HIGH), grid, SOURCE, RECIPE, "lesion (class 0)", 2.0, 0.881, ("A note <b>.",)
    )
    return heatmap, Volume(200 * blob(grid, np.zeros(3), 20.0), grid, "a.u.", SOURCE)


def pictures(text: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB"), int) for each in found]


def fit(text: str | None) -> str:
    """Hold what every result must be: small, static, and complete in itself."""
    assert text is not None
    assert len(text) < 300_000
    assert not re.search(r"<script|javascript:|on[a-z]+=|https?://|<link|@import", text)
    assert "Research use only, not for diagnosis." in text
    assert len(pictures(text)) == 1
    return text


def test_a_heatmap_says_what_it_is_of_and_where_its_peak_is(case: tuple[Heatmap, Volume]) -> None:
    text = fit(case[0]._repr_html_())
    words = html.unescape(re.sub(r"<[^>]+>", " ", text))
    assert case[0].peak_in_words() in words
    assert " L, " in words
    for each in (
        "lesion (class 0)",
        "grad-cam",
        "layer features",
        "model net",
        "logit 2",
        "probability 0.881",
        "MR_s3",
    ):
        assert each in words
    assert "A note &lt;b&gt;." in text
    assert len(text) < 40_000


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1)])
def test_the_hot_spot_is_drawn_on_the_patients_own_side(flips: tuple[int, int, int]) -> None:
    grid = centred((31, 37, 23), np.diag(flips) @ np.diag((1.2, 1.3, 1.9)))
    heatmap = Heatmap(blob(grid, LEFT_FRONT_HIGH), grid, SOURCE, RECIPE, "lesion", 1.0)
    (pixels,) = pictures(fit(heatmap._repr_html_()))
    hot = (np.ptp(pixels, axis=-1) > 100) & (pixels.max(-1) > 150)
    hot[:, int(0.88 * hot.shape[1]) :] = False  # the colour bar
    columns = np.flatnonzero(hot.any(0))
    spots = np.split(columns, np.flatnonzero(np.diff(columns) > 20) + 1)
    assert len(spots) == 3
    # Of each plane's own black frame: axial and coronal with the patient's left at the right, sagittal with the front at the left.
    middles = [(spot[0] + spot[-1]) / 2 for spot in spots]
    frames = frames_of(pixels, [int(middle) for middle in middles])
    sides = [middle > frame for middle, frame in zip(middles, frames, strict=True)]
    assert sides == [True, True, False]


def frames_of(pixels: np.ndarray, inside: list[int]) -> list[float]:
    """Return the middle column of the picture that each of some columns lies in; between pictures is a colour of its own."""
    background = np.abs(pixels - np.array([0x15, 0x17, 0x1C])).max(-1) < 4
    row = int(np.argwhere((np.ptp(pixels, axis=-1) > 100)[:, inside[0]]).mean())
    free = np.flatnonzero(background[row])
    return [(free[free < at].max() + free[free > at].min()) / 2 for at in inside]


def test_colours_end_at_the_maximum_that_the_bar_names(case: tuple[Heatmap, Volume]) -> None:
    doubled = replace(case[0], relevance=2 * case[0].relevance)
    (one,), (two,) = (pictures(fit(each._repr_html_())) for each in (case[0], doubled))
    width = int(0.85 * one.shape[1])
    assert np.array_equal(one[:, :width], two[:, :width])
    assert not np.array_equal(one[:, width:], two[:, width:])


def test_what_was_not_looked_at_is_grey_and_told(case: tuple[Heatmap, Volume]) -> None:
    relevance = case[0].relevance.copy()
    relevance[:, :, :8] = np.nan
    text = fit(replace(case[0], relevance=relevance)._repr_html_())
    assert "34.8 % not looked at" in text
    grey = np.abs(pictures(text)[0] - 71).max(-1) < 3
    assert 0.02 < grey.mean() < 0.3
    assert not (np.abs(pictures(fit(case[0]._repr_html_()))[0] - 71).max(-1) < 3).mean() > 0.005


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, 1e-38, 3e38])
def test_maps_that_say_nothing_or_one_thing_are_shown_too(case: tuple[Heatmap, Volume], value: float) -> None:
    flat = replace(case[0], relevance=np.full(case[0].grid.shape, value, np.float32))
    text = fit(flat._repr_html_())
    assert ("nothing speaks for the target" in text) == (not value > 0)
    fit(medcam.show(flat, case[1])._repr_html_())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_slices_along_any_axis_are_shown(axis: int) -> None:
    shape = tuple(1 if n == axis else 20 + 7 * n for n in range(3))
    grid = centred(shape, np.diag((1.2, 1.3, 1.9)))
    heatmap = Heatmap(blob(grid, np.zeros(3)), grid, SOURCE, RECIPE, "lesion", 1.0)
    fit(heatmap._repr_html_())
    fit(Volume(heatmap.relevance, grid, "a.u.", SOURCE)._repr_html_())


def test_an_image_is_shown_with_its_grid_and_no_letters_that_its_file_does_not_know(
    case: tuple[Heatmap, Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = fit(case[1]._repr_html_())
    assert "31 x 37 x 23 voxels" in text
    assert "1.2 x 0.9 x 2.4 mm" in text
    assert "axes towards L, P, S" in text
    letters: list[str] = []
    drawn = notebook._say

    def listening(figure: Any, x: float, y: float, text: str, **look: Any) -> None:
        letters.append(text)
        drawn(figure, x, y, text, **look)

    monkeypatch.setattr(notebook, "_say", listening)
    blind = replace(case[1], source=replace(SOURCE, oriented=False, spaced=False))
    text = fit(blind._repr_html_())
    assert "orientation not known" in text
    assert "size of a pixel not known" in text
    assert not set(letters) & set("RLAPSI")
    case[1]._repr_html_()
    assert set("RLAPSI") <= set(letters)


def test_a_noisy_film_stays_small() -> None:
    grid = centred((1400, 1700, 1), np.diag((0.2, 0.2, 1.0)))
    noise = np.random.default_rng(3).normal(size=grid.shape).astype(np.float32)
    film = Volume(noise, grid, "a.u.", replace(SOURCE, format="dicom"))
    fit(film._repr_html_())
    fit(medcam.show(Heatmap(noise, grid, film.source, RECIPE, "nodule", 1.0), film)._repr_html_())


def test_several_heatmaps_are_shown_beside_each_other_with_a_lesion(case: tuple[Heatmap, Volume]) -> None:
    heatmap, image = case
    other = replace(heatmap, relevance=heatmap.relevance**2, recipe=replace(RECIPE, method="layer-cam"))
    lesion = Volume((heatmap.relevance > 0.5).astype(np.uint8), image.grid, "", SOURCE)
    text = fit(medcam.show([heatmap, other], image, lesion=lesion, title="mine & yours")._repr_html_())
    assert text.count("Peak: ") == 2
    assert "layer-cam" in text


def test_no_patients_name_comes_along(tmp_path: Path) -> None:
    write_series(tmp_path / "study", stored_values((29, 24, 18)), GEOMETRIES["oblique"])
    image = medcam.read(tmp_path / "study")
    heatmap = Heatmap(blob(image.grid, image.grid.world_mm(np.array([9, 9, 9]))), image.grid, image.source, RECIPE, "x", 1.0)  # fmt: skip
    view = medcam.show(heatmap, image)
    for text in (image._repr_html_(), heatmap._repr_html_(), view._repr_html_(), view.interactive().html):
        assert text is not None
        assert not [marker for marker in MARKERS if marker in text]


def test_what_cannot_be_drawn_costs_the_picture_and_not_the_cell(
    case: tuple[Heatmap, Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> str:
        raise RuntimeError("no font")

    for name in ("heatmap_html", "volume_html", "view_html"):
        monkeypatch.setattr(notebook, name, broken)
    assert case[0]._repr_html_() is None
    assert case[1]._repr_html_() is None
    assert medcam.show(*case)._repr_html_() is None
    monkeypatch.setitem(sys.modules, "medcam.report.notebook", None)
    assert case[0]._repr_html_() is None


def test_heatmaps_of_another_image_are_refused(case: tuple[Heatmap, Volume]) -> None:
    with pytest.raises(UsageError, match="give the image that it was made for"):
        medcam.show(case[0], case[1].slice(3))
    with pytest.raises(UsageError, match="at least one heatmap"):
        medcam.show([], case[1])


def test_the_interactive_page_is_one_frame_whose_script_reaches_nothing_of_the_notebook(
    case: tuple[Heatmap, Volume],
) -> None:
    page = medcam.show(*case).interactive(height=700)
    text = page._repr_html_()
    assert text.startswith("<iframe ")
    assert 'sandbox="allow-scripts"' in text
    assert "height:700px" in text
    (inside,) = re.findall(r'srcdoc="([^"]*)"', text)
    assert html.unescape(inside) == page.html
    assert len(text) < 3_000_000
    assert repr(page).startswith("Page of ")


@pytest.mark.slow
def test_a_real_notebook_shows_them(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbformat = pytest.importorskip("nbformat")
    root = Path(__file__).parents[2]
    cells = [
        f"import sys; sys.path.insert(0, {str(root)!r}); import medcam",
        f"film = medcam.read({str(root / 'data_samples/cxr/film.dcm')!r}); film",
        "heatmap = medcam.explain(film, 'demo-cxr', target='nodule'); heatmap",
        "medcam.show(heatmap, film)",
        "medcam.show(heatmap, film).interactive()",
        "import medcam.report.notebook as n; n.heatmap_html = None; heatmap",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    # What libraries say on standard error is an output, too.
    shown = [next(each["data"] for each in cell["outputs"] if "data" in each) for cell in book.cells[1:]]
    for each in shown[:3]:
        fit(each["text/html"])
    assert "<iframe" in shown[3]["text/html"]
    assert "text/html" not in shown[4]
    assert shown[4]["text/plain"].startswith("Heatmap(")
    kept = tmp_path / "book.ipynb"
    nbformat.write(book, kept)
    assert kept.stat().st_size < 6_000_000


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_in_a_browser_the_picture_is_seen_and_the_viewer_runs_in_its_frame(
    browser: Any, case: tuple[Heatmap, Volume], tmp_path: Path
) -> None:
    view = medcam.show(*case)
    page = tmp_path / "cell.html"
    page.write_text(f"<!doctype html><meta charset=utf-8>{view._repr_html_()}{view.interactive()._repr_html_()}")
    browser.get(page.as_uri())
    assert browser.find_element("tag name", "img").size["width"] > 500
    assert browser.find_element("tag name", "img").get_property("naturalWidth") > 500
    if shots := os.environ.get("MEDCAM_SHOTS"):
        browser.save_screenshot(f"{shots}/cell.png")
    frame = browser.find_element("tag name", "iframe")
    browser.switch_to.frame(frame)
    wait_for("the viewer", lambda: browser.execute_script("return document.body.dataset.viewer"), patience_s=120)
    assert browser.execute_script("return document.body.dataset.viewer") == "ready"
    assert "relevance 1.00 of the maximum" in browser.find_element("id", "where").text
    with pytest.raises(Exception, match=r"[Bb]locked a frame|SecurityError"):
        browser.execute_script("return window.parent.document.title")
    if shots := os.environ.get("MEDCAM_SHOTS"):
        browser.switch_to.default_content()
        browser.execute_script("arguments[0].scrollIntoView()", frame)
        browser.save_screenshot(f"{shots}/frame.png")
