"""The real OHIF, over a real archive, draws what medcam sends on the right slice and at the right place, and not mirrored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browsers import chromium
from viewers.ohif_page import Page
from viewers.ohif_server import ohif, ohif_dist

from formats.derived_sources import COMPLETE, LPS_FROM_RAS, RECIPE
from formats.dicom_phantom import OBLIQUE, affine_of, write_series
from medcam.cli import main
from medcam.formats import read, write
from medcam.volume import Heatmap
from pacs import servers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SHAPE = (56, 72, 14)
AFFINE = affine_of(OBLIQUE, (1.7, 1.3, 3.2), (60, 70, -30))
# Off centre along every axis, so that a mirror image of any kind lies elsewhere.
HOT = (17, 49, 4)
FORMATS = "dicom-sc,dicom-seg,dicom-pm,dicom-sr,dicom-ps,dicom-ko"


def relevance() -> np.ndarray:
    """A blob with a longer tail to one side, and a corner that was not looked at."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    apart = index - HOT
    width = np.where(apart > 0, (6.0, 3.0, 0.9), (3.0, 4.0, 0.8))
    values = np.exp(-0.5 * (apart / width) ** 2).prod(-1) - 0.05
    values[:3, :2] = np.nan
    return values.astype(np.float32)


def phantom(folder: Path, hot: np.ndarray) -> None:
    """A body in which the hot voxels are the brightest: where they are drawn is where an overlay must lie."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    body = np.linalg.norm((index - np.array(SHAPE) / 2) / (np.array(SHAPE) * 0.47), axis=-1) < 1
    voxels = np.where(hot, 2000, body * (300 + 3 * index[..., 0] + 10 * index[..., 2]))
    write_series(folder, voxels.astype(np.uint16), AFFINE, tags={**COMPLETE, "WindowCenter": 1000, "WindowWidth": 2000})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A study and what was derived of it, sent over the web to an archive and opened in OHIF."""
    dist, home = ohif_dist(), tmp_path_factory.mktemp("ohif")
    values = relevance()
    phantom(home / "study", values >= 0.5 * np.nanmax(values))
    volume = read(home / "study")
    heatmap = Heatmap(values, volume.grid, volume.source, RECIPE, RECIPE.target, 2.5, 0.9, ())
    write(heatmap, volume, home / "results", formats=FORMATS)
    archive = servers.orthanc(home / "orthanc")
    archive.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MEDCAM_DICOMWEB_USER", servers.USER)
            patch.setenv("MEDCAM_DICOMWEB_PASSWORD", servers.PASSWORD)
            words = ["send", home / "study", home / "results", "--to", archive.dicomweb, "--spool", home / "spool"]
            assert main([*map(str, words), "--quiet"]) == 0
        study = str(volume.source.instances[0].StudyInstanceUID)
        with ohif(dist, archive) as address, chromium(1400, 900) as browser:
            yield Page(browser, address, study)
    finally:
        archive.kill()


def first_pixel(k: int) -> np.ndarray:
    """Where slice k begins, in DICOM's coordinates."""
    return np.asarray(LPS_FROM_RAS * (AFFINE @ (0, 0, k, 1))[:3])


def changed(page: Page, k: int, *, at_least: float) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of slice k an overlay changes by so much, and which show the brightest voxels of the image beneath."""
    page.go_to(first_pixel(k))
    over, plain = page.with_and_without_overlay()
    return np.abs(over - plain).max(-1) > at_least, plain.min(-1) > 200


def lies_on(overlay: np.ndarray, bright: np.ndarray, *, voxels: float) -> None:
    """Both are there and their middles are not further apart than so many voxels."""
    values = relevance()
    count = (values[:, :, HOT[2]] >= 0.5 * np.nanmax(values)).sum()
    pixels_a_voxel = np.sqrt(bright.sum() / count)
    assert pixels_a_voxel > 5
    apart = np.linalg.norm(np.argwhere(overlay).mean(0) - np.argwhere(bright).mean(0))
    assert apart < voxels * pixels_a_voxel
    assert 0.6 < overlay.sum() / bright.sum() < 1.7


MIRRORED = SHAPE[2] - 1 - HOT[2]


def test_the_study_lists_the_image_and_all_that_was_derived_of_it(page: Page) -> None:
    # What OHIF cannot open it lists all the same; the how-to names it.
    assert page.listed() == {
        "MR": True, "OT": True, "SEG": True, "PMAP": True, "SR": True, "PR": False, "KO": False,
    }  # fmt: skip


def test_the_segmentation_lies_where_the_relevance_is_high(page: Page) -> None:
    page.open("grad-cam region")
    page.click("Yes")
    page.wait_for_overlay("stack")
    overlay, bright = changed(page, HOT[2], at_least=20)
    lies_on(overlay, bright, voxels=0.5)
    overlay, bright = changed(page, MIRRORED, at_least=2)
    assert not overlay.any()
    assert not bright.any()


def test_the_overlay_in_colours_shows_the_relevance_on_its_slice_alone(page: Page) -> None:
    page.open("grad-cam: lesion")
    page.wait_for_images(9001)
    page.go_to(first_pixel(HOT[2]))
    coloured = np.ptp(page.pixels(), axis=-1) > 60
    rows, columns = np.argwhere(coloured).mean(0) / coloured.shape
    assert coloured.any()
    # The image fills the height of the view.
    middle = np.array(coloured.shape) / 2
    step = coloured.shape[0] / (SHAPE[1] * 1.3)
    expected = middle + (np.array(HOT[1::-1]) - (np.array(SHAPE[1::-1]) - 1) / 2) * np.array((1.3, 1.7)) * step
    assert np.abs(np.array((rows, columns)) * coloured.shape - expected).max() < 3 * 1.7 * step
    page.go_to(first_pixel(MIRRORED))
    assert not (np.ptp(page.pixels(), axis=-1) > 60).any()


# The last: OHIF carries the window and the colours of a map over to what is opened next.
def test_the_parametric_map_lies_where_the_relevance_is_high(page: Page) -> None:
    page.open("grad-cam map")
    page.wait_for_overlay("orthographic")
    overlay, bright = changed(page, HOT[2], at_least=60)
    lies_on(overlay, bright, voxels=1.0)
    overlay, bright = changed(page, MIRRORED, at_least=2)
    assert not overlay.any()
    assert not bright.any()
