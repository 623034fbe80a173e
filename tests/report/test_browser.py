"""The page in a real browser: what is drawn where, what the controls do, and that nothing is asked of the outside."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import asked_for, chromium, complaints, wait_for
from PIL import Image

from conftest import blob, oblique_grid
from medcam import Grid, Heatmap, Recipe, Source, Volume
from medcam.report import Case, write_case_page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# Left, in front, high: a mirror image of any kind puts it elsewhere.
PLACE = np.array([-21.0, 26.0, 17.0])
SOURCE = Source("nifti", "ab" * 32, "phantom")


def phantom(grid: Grid) -> Case:
    """A grey ellipsoid with a hot spot, and a second heatmap whose spot lies elsewhere."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    body = (np.linalg.norm(grid.world_mm(index) / (55, 62, 48), axis=-1) < 1).astype(np.float32)
    volume = Volume(body * 300 + 50, grid, "a.u.", SOURCE)
    recipe = Recipe("net", "cd" * 32, "grad-cam", "features", "lesion")
    there = Heatmap(blob(grid, PLACE, 6.0), grid, SOURCE, recipe, "lesion", 2.0)
    other = replace(there, relevance=blob(grid, -PLACE, 6.0), recipe=replace(recipe, method="layer-cam"))
    mask = (blob(grid, PLACE, 6.0) > 0.6).astype(np.uint8)
    return Case(volume, (there, other), 0.5, Volume(mask, grid, "", SOURCE))


@pytest.fixture(scope="module")
def grid() -> Grid:
    tilted = oblique_grid((62, 74, 36), (2.0, 1.9, 3.2))
    affine = tilted.affine.copy()
    affine[:3, 3] = -(affine[:3, :3] @ (np.array(tilted.shape) - 1) / 2)
    return Grid(tilted.shape, affine)


@pytest.fixture(scope="module")
def page(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "case.html"
    write_case_page(phantom(grid), path)
    return path


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


def opened(browser: Any, page: Path) -> str:
    browser.get(page.as_uri())
    return str(
        wait_for("the viewer", lambda: browser.execute_script("return document.body.dataset.viewer"), patience_s=120)
    )


def drawn(browser: Any) -> np.ndarray:
    """The canvas as pixels."""
    time.sleep(0.5)
    png = browser.find_element("id", "canvas").screenshot_as_png
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)


def change(browser: Any, name: str, value: str) -> None:
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('input'))",
        name, value,
    )  # fmt: skip


def coloured(pixels: np.ndarray, least: int = 60) -> np.ndarray:
    """Where a pixel has a colour; the lowest part, with the colour bar, is left out."""
    found = np.ptp(pixels, axis=-1) > least
    found[int(0.85 * len(found)) :] = False
    return found


def where(browser: Any) -> str:
    return str(browser.find_element("id", "where").text)


def test_the_page_asks_nothing_of_the_outside_and_complains_of_nothing(browser: Any, page: Path) -> None:
    assert opened(browser, page) == "ready"
    assert asked_for(browser) <= {"file", "blob", "data"}
    assert complaints(browser, ("SEVERE",)) == []


def test_the_crosshair_starts_at_the_peak_in_millimetres_of_the_patient(browser: Any, page: Path, grid: Grid) -> None:
    opened(browser, page)
    peak = phantom(grid).heatmaps[0].peak()
    x, y, z = peak.world_mm
    assert where(browser).startswith(
        f"{abs(x):.1f} L, {abs(y):.1f} A, {abs(z):.1f} S mm · voxel {', '.join(map(str, peak.voxel))}"
    )
    assert "relevance 1.00 of the maximum" in where(browser)


@pytest.mark.parametrize(
    ("planes", "right", "up"),
    # The radiological convention: the patient's left is at the right of the picture; a nose that looks to the left.
    [("0", 21.0, 26.0), ("1", 21.0, 17.0), ("2", -26.0, 17.0)],
)
def test_the_hot_spot_is_drawn_where_it_lies(browser: Any, page: Path, planes: str, right: float, up: float) -> None:
    opened(browser, page)
    change(browser, "planes", planes)
    browser.execute_script("document.getElementById('outline').click(); medcamViewer.setCrosshairWidth(0)")
    pixels = drawn(browser)
    body = pixels.max(-1) > 90
    body[int(0.85 * len(body)) :] = False
    spot = np.argwhere(coloured(pixels)).mean(0)
    rows, columns = np.nonzero(body)
    middle = np.array([rows.min() + rows.max(), columns.min() + columns.max()]) / 2
    down, across = spot - middle
    # The grid is oblique, so a plane is no exact section; the side and the direction tell every mirror image apart.
    assert np.sign(across) == np.sign(right)
    assert np.sign(-down) == np.sign(up)
    assert abs(np.rad2deg(np.arctan2(-down, across) - np.arctan2(up, right))) < 30


def test_the_controls_do_what_they_say(browser: Any, page: Path) -> None:
    opened(browser, page)
    browser.execute_script("document.getElementById('outline').click(); medcamViewer.setCrosshairWidth(0)")
    before = coloured(drawn(browser))
    change(browser, "threshold", "0.9")
    hottest = drawn(browser)
    assert 0 < coloured(hottest).sum() < 0.5 * before.sum()
    # Below the threshold nothing fades out: faint colours are no more than the rim of what is shown.
    assert coloured(hottest, 12).sum() < 2.6 * coloured(hottest).sum()
    change(browser, "threshold", "0.5")
    change(browser, "opacity", "0")
    assert not coloured(drawn(browser)).any()
    change(browser, "opacity", "0.7")
    at_first = drawn(browser)
    change(browser, "colours", "viridis")
    green = drawn(browser)
    hot = coloured(at_first)
    assert (green[hot][:, 1] - green[hot][:, 0]).mean() > (at_first[hot][:, 1] - at_first[hot][:, 0]).mean() + 40
    # Choosing colours does not forget the threshold.
    assert coloured(green).sum() < 1.5 * before.sum()
    browser.execute_script("document.getElementById('outline').click()")
    assert np.abs(drawn(browser) - green).max() > 50


def test_another_heatmap_is_shown_alone_and_at_its_own_peak(browser: Any, page: Path) -> None:
    opened(browser, page)
    change(browser, "method", "1")
    assert " R, " in where(browser)
    assert " P, " in where(browser)
    assert " I mm" in where(browser)
    assert "relevance 1.00" in where(browser)


def test_the_keyboard_moves_the_crosshair_a_voxel_and_back_to_the_peak(browser: Any, page: Path, grid: Grid) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    start, canvas = where(browser), browser.find_element("id", "canvas")
    canvas.send_keys(Keys.ARROW_RIGHT)
    # To the patient's left: of the axes of this grid, i runs that way.
    peak = phantom(grid).heatmaps[0].peak()
    moved = tuple(np.array(peak.voxel) + np.array([1 if grid.axis_codes[0] == "L" else -1, 0, 0]))
    assert f"voxel {', '.join(map(str, moved))} " in where(browser)
    canvas.send_keys(Keys.PAGE_UP)
    assert where(browser) != start
    canvas.send_keys("p")
    assert where(browser) == start


def test_every_control_has_a_name_and_can_be_reached_by_tab(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    names = browser.execute_script(
        "return [...document.querySelectorAll('#controls input, #controls select, #controls button')]"
        ".map(e => (e.labels && e.labels[0] || e).textContent.trim())"
    )
    assert all(names)
    reached = set()
    for _ in range(12):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.switch_to.active_element.get_attribute("id"))
    assert {"method", "threshold", "opacity", "colours", "planes", "outline", "peak", "canvas"} <= reached


def test_without_webgl_the_figure_stands_alone(page: Path, tmp_path: Path, browser: Any) -> None:
    blind = tmp_path / "blind.html"
    text = page.read_text(encoding="utf-8")
    blind.write_text(text.replace('getContext("webgl2")', 'getContext("no such thing")'), encoding="utf-8")
    assert opened(browser, blind) == "none"
    assert not browser.find_element("id", "viewer").is_displayed()
    assert browser.find_element("tag name", "img").size["width"] > 300
    assert "WebGL 2" in browser.find_element("id", "no-viewer").text
