"""Colours and figures: which side of the patient a rendered pixel shows, and in which colour."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from medcam import render
from medcam.errors import GeometryError, OutputError, UsageError
from medcam.geometry import Grid
from medcam.recipe import Recipe
from medcam.volume import Heatmap, Source, Volume

CODES = [
    tuple(signs[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for signs in itertools.product("RL", "AP", "SI")
]
RECIPE = Recipe("net", "00" * 32, "grad-cam", "features.3", "lesion (class 0)")
SPACING = (1.5, 1.0, 2.0)


def volume(voxels: np.ndarray, affine: np.ndarray, **source: object) -> Volume:
    return Volume(voxels, Grid(voxels.shape, affine), "a.u.", Source(**{"format": "nifti", "sha256": "", **source}))


def heatmap(relevance: np.ndarray, image: Volume, *, score: float = 2.5, probability: float | None = 0.9) -> Heatmap:
    return Heatmap(relevance, image.grid, image.source, RECIPE, RECIPE.target, score, probability)


def corner_phantom() -> np.ndarray:
    """Return an RAS volume, hot in the patient's left anterior superior corner, and a little elsewhere."""
    voxels = np.zeros((13, 15, 11), np.float32)
    voxels[2:4, 11:13, 8:10] = 1
    voxels[2, 12, 8] = 1.25
    voxels[9, 3, 2] = 0.5
    return voxels


def reoriented(voxels: np.ndarray, code: Sequence[str], *, degrees: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the same RAS voxels as nibabel stores them in another orientation, and their affine."""
    angle = np.deg2rad(degrees)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image = nib.Nifti1Image(voxels, tilt @ np.diag([*SPACING, 1]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt("".join(code))
    )
    image = image.as_reoriented(turn)
    return np.asanyarray(image.dataobj), image.affine


def canvas(figure: Figure, dpi: int = 60) -> np.ndarray:
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def axes_named(figure: Figure, name: str) -> Axes:
    (axes,) = (axes for axes in figure.axes if axes.get_label() == name)
    return axes


def panel_pixels(figure: Figure, name: str, pixels: np.ndarray) -> np.ndarray:
    box = axes_named(figure, name).get_window_extent()
    height = len(pixels)
    return pixels[round(height - box.y1) : round(height - box.y0), round(box.x0) : round(box.x1)]


def coloured_place(panel: np.ndarray) -> tuple[float, float]:
    """Return where the colour is, as fractions of the panel's width and height, weighted by how yellow it is."""
    weight = np.clip(panel[..., :2].min(-1) - panel[..., 2], 0, None).astype(float) ** 2
    rows, columns = np.indices(weight.shape)
    return (
        float((columns * weight).sum() / weight.sum() / weight.shape[1]),
        float((rows * weight).sum() / weight.sum() / weight.shape[0]),
    )


def crosshair(figure: Figure, name: str) -> tuple[float, float]:
    """Return where the lines of a panel would cross, as fractions of its width and height."""
    axes = axes_named(figure, name)
    ends = [axes.transAxes.inverted().transform(axes.transData.transform(line.get_xydata())) for line in axes.lines]
    (x,) = {round(float(one[0]), 6) for one, other in ends if abs(one[0] - other[0]) < 1e-9}
    (y,) = {round(float(one[1]), 6) for one, other in ends if abs(one[1] - other[1]) < 1e-9}
    return x, 1 - y


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def letters_around(figure: Figure, name: str) -> dict[str, str]:
    """Return which letter stands on each side of a panel, by where they are drawn."""
    box = axes_named(figure, name).get_window_extent()
    middle_x, middle_y, near = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2, 0.2 * figure.dpi
    sides = {
        "left": (box.x0, middle_y),
        "right": (box.x1, middle_y),
        "top": (middle_x, box.y1),
        "bottom": (middle_x, box.y0),
    }
    letters = [text for text in figure.findobj(Text) if len(text.get_text()) == 1 and text.get_text() in "RLAPSI"]
    return {
        side: letter.get_text()
        for side, place in sides.items()
        for letter in letters
        if np.hypot(*(letter.get_window_extent().get_points().mean(0) - place)) < near
    }


@pytest.mark.parametrize("code", CODES, ids="".join)
def test_every_slice_of_every_orientation_is_shown_in_radiological_convention(code: tuple[str, ...]) -> None:
    ras = np.random.default_rng(0).random((3, 5, 7)).astype(np.float32)
    voxels, affine = reoriented(ras, code, degrees=12)
    grid = Grid(voxels.shape, affine)
    expected = {
        "axial": (lambda z: ras[::-1, ::-1, z].T, "S", "RLAP", SPACING[1], SPACING[0]),
        "coronal": (lambda y: ras[::-1, y, ::-1].T, "A", "RLSI", SPACING[2], SPACING[0]),
        "sagittal": (lambda x: ras[x, ::-1, ::-1].T, "R", "APSI", SPACING[2], SPACING[1]),
    }
    for plane, (slice_of, grows, letters, down, across) in expected.items():
        axis = next(n for n, letter in enumerate(code) if letter in {"S": "SI", "A": "AP", "R": "RL"}[grows])
        for world in range(voxels.shape[axis]):
            index = world if code[axis] == grows else voxels.shape[axis] - 1 - world
            picture = render.to_display(voxels, grid, plane, index)
            np.testing.assert_array_equal(picture.pixels, slice_of(world))
            assert "".join(picture.letters) == letters
            assert picture.spacing_mm == pytest.approx((down, across))


def test_the_stored_plane_turns_nothing_and_keeps_colour_channels() -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (4, 3, 2, 3)).astype(np.uint8)
    picture = render.to_display(voxels, Grid((4, 3, 2), np.diag([-2.0, -0.5, 1, 1])), "stored", 1)
    np.testing.assert_array_equal(picture.pixels, voxels[:, :, 1].transpose(1, 0, 2))
    assert picture.letters == ("R", "L", "A", "P")
    assert picture.spacing_mm == (0.5, 2.0)


@pytest.mark.parametrize("code", CODES, ids="".join)
def test_heat_on_the_patients_left_anterior_superior_is_rendered_there(code: tuple[str, ...]) -> None:
    voxels, affine = reoriented(corner_phantom(), code)
    image = volume(np.zeros_like(voxels), affine)
    figure = render.montage(heatmap(voxels, image), image)
    pixels = canvas(figure)
    # (fraction of width, of height) of the hottest voxel's centre in the RAS volume turned to radiological convention.
    x, y, z = 1 - 2.5 / 13, 1 - 12.5 / 15, 1 - 8.5 / 11
    for plane, place, letters in (
        ("axial", (x, y), "RLAP"),
        ("coronal", (x, z), "RLSI"),
        ("sagittal", (y, z), "APSI"),
    ):
        panel = panel_pixels(figure, f"{plane} overlay", pixels)
        assert coloured_place(panel) == pytest.approx(place, abs=0.05)
        found = letters_around(figure, f"{plane} overlay")
        assert "".join(found[side] for side in ("left", "right", "top", "bottom")) == letters
        assert crosshair(figure, f"{plane} overlay") == pytest.approx(place, abs=0.01)


def test_the_plain_panels_show_the_anatomy_on_the_same_side_and_no_colour() -> None:
    voxels, affine = reoriented(corner_phantom(), "LPS")
    image = volume(voxels, affine)
    figure = render.montage(heatmap(np.where(voxels > 1, 1, 0).astype(np.float32), image), image)
    panel = panel_pixels(figure, "axial plain", canvas(figure))
    assert (np.ptp(panel, axis=-1) == 0).all()
    rows, columns = np.nonzero(panel[..., 0] > 128)
    assert columns.min() > panel.shape[1] / 2
    assert rows.max() < panel.shape[0] / 2


def test_blended_colours_are_computed_as_by_hand() -> None:
    image = np.array([[0.0, 5, 10, 10, 10, -99]])
    relevance = np.array([[0.5, 4, 4, 1.3, np.nan, -8]])
    rgb = render.overlay_rgb(image, relevance, window=(0.0, 10.0), threshold=0.25)
    peak = 255 * np.array(matplotlib.colormaps[render.COLOURS](1.0)[:3])
    low = 255 * np.array(matplotlib.colormaps[render.COLOURS](round(255 * 1.3 / 4))[:3])
    opacity = 0.45 + 0.4 * (1.3 / 4 - 0.25) / 0.75
    np.testing.assert_array_equal(rgb[0, 0], [0, 0, 0])
    np.testing.assert_allclose(rgb[0, 1], 0.85 * peak + 0.15 * 128, atol=1)
    np.testing.assert_allclose(rgb[0, 2], 0.85 * peak + 0.15 * 255, atol=1)
    np.testing.assert_allclose(rgb[0, 3], opacity * low + (1 - opacity) * 255, atol=1)
    np.testing.assert_array_equal(rgb[0, 4], [255, 255, 255])
    np.testing.assert_array_equal(rgb[0, 5], [0, 0, 0])


def test_relevance_reaching_the_threshold_is_coloured_and_below_it_is_not() -> None:
    rgb = render.overlay_rgb(np.zeros(3), np.array([0.75, 0.7499, 3.0]), window=(0.0, 1.0), threshold=0.25)
    assert [bool(pixel.any()) for pixel in rgb] == [True, False, True]


def test_on_black_background_every_visible_colour_is_bright_and_grows_with_relevance() -> None:
    share = np.linspace(0.3, 1, 50)
    rgb = render.overlay_rgb(np.zeros(50), share, window=(0.0, 1.0), maximum=1.0).astype(float)
    luminance = rgb @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luminance) >= -0.5).all()
    assert rgb.max(-1).min() > 60


@pytest.mark.parametrize("shape", [(7,), (5, 4), (3, 4, 5), (3, 4, 5, 2)])
def test_any_shape_is_coloured_voxel_by_voxel(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    image, relevance = generator.random(shape), generator.normal(size=shape).astype(np.float32)
    whole = render.overlay_rgb(image, relevance, window=(0.0, 1.0))
    flat = render.overlay_rgb(image.ravel(), relevance.ravel(), window=(0.0, 1.0))
    assert whole.shape == (*shape, 3)
    np.testing.assert_array_equal(whole.reshape(-1, 3), flat)


def test_slices_normalised_by_a_shared_maximum_equal_the_slices_of_the_whole() -> None:
    relevance = np.random.default_rng(1).random((4, 5, 3)).astype(np.float32) * (0.2, 0.5, 1)
    image = np.zeros((4, 5, 3))
    whole = render.overlay_rgb(image, relevance, window=(0.0, 1.0))
    part = render.overlay_rgb(image[..., 1], relevance[..., 1], window=(0.0, 1.0), maximum=float(relevance.max()))
    np.testing.assert_array_equal(whole[:, :, 1], part)
    assert not np.array_equal(part, render.overlay_rgb(image[..., 1], relevance[..., 1], window=(0.0, 1.0)))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_map_without_positive_relevance_stays_grey(value: float) -> None:
    image = np.linspace(0, 1, 12).reshape(3, 4)
    rgb = render.overlay_rgb(image, np.full((3, 4), value), window=(0.0, 1.0))
    np.testing.assert_array_equal(rgb, np.rint(255 * image).astype(np.uint8)[..., None].repeat(3, -1))


def test_colouring_refuses_other_shapes_and_thresholds_that_mean_nothing() -> None:
    with pytest.raises(UsageError, match=r"\(3,\).*\(4,\)"):
        render.overlay_rgb(np.zeros(3), np.zeros(4), window=(0.0, 1.0))
    with pytest.raises(UsageError, match="threshold"):
        render.overlay_rgb(np.zeros(3), np.zeros(3), window=(0.0, 1.0), threshold=1.0)


def grey_volume(voxels: np.ndarray, *, unit: str = "a.u.", window: tuple[float, float] | None = None) -> Volume:
    return Volume(voxels, Grid(voxels.shape, np.eye(4)), unit, Source("dicom", "", window=window))


def test_the_files_window_is_used_where_it_shows_the_image() -> None:
    voxels = np.linspace(-1000, 1000, 1001).reshape(7, 11, 13)
    assert render.display_range(grey_volume(voxels, window=(40.0, 400.0))) == (-160, 240)
    assert render.display_range(grey_volume(voxels, window=(-600.0, 1500.0))) == (-1350, 150)


@pytest.mark.parametrize(
    "window", [(9e4, 10.0), (40.0, 0.0), (40.0, -5.0), (float("nan"), 400.0), (40.0, float("inf"))]
)
def test_a_window_that_shows_nothing_is_replaced(window: tuple[float, float]) -> None:
    voxels = np.linspace(-1000, 1000, 1001).reshape(7, 11, 13)
    low, high = render.display_range(grey_volume(voxels, window=window))
    assert (low, high) == pytest.approx((-988, 990), abs=5)


def test_a_ct_without_window_shows_soft_tissue_if_it_has_some() -> None:
    tissue = np.linspace(-1000, 1000, 1001).reshape(7, 11, 13)
    assert render.display_range(grey_volume(tissue, unit="HU")) == (-160, 240)
    air = np.linspace(-1000, -700, 1001).reshape(7, 11, 13)
    assert render.display_range(grey_volume(air, unit="HU"))[1] == pytest.approx(-701.5, abs=1)


def test_background_and_single_bright_voxels_do_not_set_the_window() -> None:
    voxels = np.zeros((20, 21, 22))
    voxels[5:15, 5:15, 5:15] = np.random.default_rng(0).uniform(100, 200, (10, 10, 10))
    voxels[7, 7, 7] = 1e6
    voxels[0, 0, 0] = np.nan
    low, high = render.display_range(grey_volume(voxels))
    assert 99 < low < 103
    assert 197 < high < 201


@pytest.mark.parametrize("values", [(7.0,), (np.nan,), (0.0, 3.0)])
def test_a_window_is_found_for_constant_empty_and_binary_images(values: tuple[float, ...]) -> None:
    voxels = np.resize(values, (3, 4, 5))
    low, high = render.display_range(grey_volume(voxels))
    assert low < high
    assert np.isfinite([low, high]).all()


def wide_image(**source: object) -> tuple[Volume, Heatmap]:
    """Return an oblique image with voxels of 1.5 x 1 x 2 mm and one hot spot at index 6 9 4."""
    shape = (40, 50, 12)
    angle = np.deg2rad(8)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = tilt @ np.diag([-1.5, -1.0, 2.0, 1])
    image = volume(np.random.default_rng(0).random(shape).astype(np.float32), affine, **source)
    i, j, k = np.indices(shape)
    relevance = np.exp(-((i - 6) ** 2 + (j - 9) ** 2 + (2 * (k - 4)) ** 2) / 30).astype(np.float32)
    return image, heatmap(relevance, image)


def test_a_montage_tells_what_was_explained_and_where_it_was_cut() -> None:
    image, heat = wide_image()
    written = "\n".join(texts(render.montage(heat, image)))
    x, y, z = heat.peak().world_mm
    for expected in (
        "lesion (class 0)",
        "probability 0.9, logit 2.5 · grad-cam · layer features.3 · model net",
        f"axial (oblique 8°) · z = {z:.1f} mm",
        f"coronal (oblique 8°) · y = {y:.1f} mm",
        f"sagittal · x = {x:.1f} mm",
        "relative relevance (own maximum = 1)",
        "0.3 threshold",
        "Research use only - not for diagnosis",
    ):
        assert expected in written
    assert "nan" not in written.lower()


def test_a_montage_shows_the_notes_and_how_much_was_not_looked_at() -> None:
    image, heat = wide_image()
    relevance = heat.relevance.copy()
    relevance[:, :5] = np.nan
    heat = Heatmap(
        relevance, heat.grid, heat.source, RECIPE, r"a $\frac$ c", 1.0, None, notes=("The network saw half of it.",)
    )
    figure = render.montage(heat, image)
    # Were it taken for mathematics, drawing it would fail.
    canvas(figure)
    written = texts(figure)
    assert r"a $\frac$ c" in written
    assert "The network saw half of it." in written
    assert "10.0 % of the image was not looked at" in written


def test_pictures_and_scale_bars_are_true_in_millimetres() -> None:
    image, heat = wide_image()
    figure = render.montage(heat, image)
    sizes_mm = {"axial": (40 * 1.5, 50 * 1.0), "coronal": (40 * 1.5, 12 * 2.0), "sagittal": (50 * 1.0, 12 * 2.0)}
    per_mm = []
    for plane, (width, height) in sizes_mm.items():
        box = axes_named(figure, f"{plane} overlay").get_window_extent()
        per_mm += [box.width / width, box.height / height]
    assert per_mm == pytest.approx([per_mm[0]] * 6, rel=1e-6)
    blocks = [block.get_window_extent() for block in figure.findobj(Rectangle)]
    bars = [block.width for block in blocks if 1 < block.height < 0.05 * figure.dpi]
    lengths = [float(text.split()[0]) for text in texts(figure) if text.endswith(" mm") and "=" not in text]
    assert len(bars) == len(lengths) == 6
    assert bars == pytest.approx([length * per_mm[0] for length in lengths], rel=1e-6)


def test_nothing_is_said_of_sides_or_millimetres_that_the_file_does_not_know() -> None:
    image, heat = wide_image(oriented=False, spaced=False)
    written = texts(render.montage(heat, image))
    assert not {"R", "L", "A", "P", "S", "I"} & set(written)
    assert not [text for text in written if "mm" in text or "axial" in text]
    assert "across k · k = 4" in written
    assert [text for text in written if text.endswith("pixels")]


@pytest.mark.parametrize("value", [0.0, -2.0, np.nan])
def test_a_map_without_evidence_is_drawn_plain_and_says_so(value: float) -> None:
    image, _ = wide_image()
    figure = render.montage(heatmap(np.full(image.grid.shape, value, np.float32), image), image)
    assert "no positive evidence" in texts(figure)
    assert "relative relevance (own maximum = 1)" not in texts(figure)
    pixels = canvas(figure)
    for plane in ("axial", "coronal", "sagittal"):
        assert (np.ptp(panel_pixels(figure, f"{plane} overlay", pixels), axis=-1) == 0).all()


@pytest.mark.parametrize(
    ("shape", "source", "plane"),
    [
        ((30, 40, 1), {"format": "dicom", "oriented": True}, "stored"),
        ((30, 40, 1), {"format": "picture", "oriented": False, "spaced": False}, "stored"),
        ((30, 40, 1), {"format": "nifti"}, "axial"),
        ((30, 1, 40), {"format": "nifti"}, "coronal"),
        ((1, 30, 40), {"format": "nifti"}, "sagittal"),
    ],
)
def test_a_single_slice_is_drawn_once_plain_and_once_coloured(
    shape: tuple[int, int, int], source: dict[str, object], plane: str
) -> None:
    relevance = np.zeros(shape, np.float32)
    # Towards the end of i and the start of j and k.
    hot = tuple(slice(n - 1 - n // 5, None) if axis == 0 else slice(0, max(n // 5, 1)) for axis, n in enumerate(shape))
    relevance[hot] = 1
    image = volume(np.zeros(shape, np.float32), np.diag([-1.0, -1.0, 1, 1]), **source)
    figure = render.montage(heatmap(relevance, image), image)
    assert sorted(axes.get_label() for axes in figure.axes if "plain" in axes.get_label()) == [f"{plane} plain"]
    x, y = coloured_place(panel_pixels(figure, f"{plane} overlay", canvas(figure)))
    # Affine L P S: i grows to the left of the patient, j to posterior, k to superior.
    expected = {"stored": ("high", "low"), "axial": ("high", "low"), "coronal": ("high", "high")}
    across, down = expected.get(plane, ("low", "high"))
    assert (x > 0.7) if across == "high" else (x < 0.3)
    assert (y > 0.7) if down == "high" else (y < 0.3)


def test_a_lesion_is_outlined_where_it_lies_whatever_grid_its_mask_is_on() -> None:
    voxels = np.zeros((30, 40, 20), np.float32)
    image = volume(voxels, np.diag([-1.0, -1.0, 2.0, 1]))
    relevance = voxels.copy()
    relevance[20, 10, 12] = 1
    mask = voxels.copy()
    mask[16:26, 6:16, 10:15] = 1
    flipped = np.diag([1.0, -1.0, 2.0, 1])
    flipped[0, 3] = -29
    cropped = image.grid.affine.copy()
    cropped[:3, 3] = (-15, -4, 18)
    lesions = volume(mask, image.grid.affine), volume(mask[::-1], flipped), volume(mask[15:26, 4:, 9:15], cropped)
    panels = []
    for lesion in lesions:
        figure = render.montage(heatmap(relevance, image), image, lesion=lesion)
        assert "dashed: lesion mask" in texts(figure)
        panels.append(panel_pixels(figure, "axial overlay", canvas(figure, 100)))
        # On this grey image only the outline is black; its first and last rows and columns, as fractions of the panel:
        place = np.argwhere(panels[-1].max(-1) < 60) / panels[-1].shape[:2]
        first, last = np.array([6 / 40, 16 / 30]), np.array([16 / 40, 26 / 30])
        np.testing.assert_allclose(place.min(0), first, atol=0.02)
        np.testing.assert_allclose(place.max(0), last, atol=0.02)
        assert (np.minimum(np.abs(place - first), np.abs(place - last)).min(-1) < 0.03).all()
    np.testing.assert_array_equal(panels[0], panels[1])
    np.testing.assert_array_equal(panels[0], panels[2])


def test_a_lesion_outside_the_shown_slices_is_mentioned() -> None:
    image, heat = wide_image()
    mask = np.zeros(image.grid.shape, np.float32)
    mask[30:35, 30:35, 9:11] = 1
    assert texts(render.montage(heat, image, lesion=volume(mask, image.grid.affine))).count("lesion elsewhere") == 3


def test_a_montage_refuses_an_image_or_lesion_from_elsewhere() -> None:
    image, heat = wide_image()
    other = volume(image.voxels, image.grid.affine + np.diag([0.1, 0, 0, 0]))
    with pytest.raises(UsageError, match="another"):
        render.montage(heat, other)
    here = Volume(image.voxels, Grid(image.grid.shape, image.grid.affine, "1.2"), "a.u.", image.source)
    heat = Heatmap(heat.relevance, here.grid, here.source, RECIPE, "lesion", 1.0)
    there = Volume(image.voxels, Grid(image.grid.shape, image.grid.affine, "1.3"), "a.u.", image.source)
    with pytest.raises(GeometryError, match="frames of reference"):
        render.montage(heat, here, lesion=there)


@pytest.mark.parametrize("shape", [(40, 50, 12), (60, 60, 2), (9, 200, 9), (200, 150, 1), (12, 150, 1)])
def test_no_text_leaves_the_page_or_runs_into_another(shape: tuple[int, int, int]) -> None:
    image = volume(np.zeros(shape, np.float32), np.diag([-1.0, -1.0, 2.0, 1]) @ wide_image()[0].grid.affine)
    relevance = np.zeros(shape, np.float32)
    relevance[shape[0] // 3, shape[1] // 3, 0] = 1
    recipe = Recipe("a network with a rather long name " * 4, "", "grad-cam", "module.block." * 9, "t")
    notes = ("A note that is longer than the figure is wide, as notes of careful programs tend to be. " * 3,)
    heat = Heatmap(relevance, image.grid, image.source, recipe, "a target of many words " * 9, -1234.5, 0.5, notes)
    mask = volume(np.zeros(shape, np.float32), image.grid.affine)
    figure = render.montage(heat, image, lesion=mask)
    canvas(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.findobj(Text) if text.get_text().strip()]
    page = figure.bbox
    assert [text for text, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > page.x1 or box.y1 > page.y1] == []
    assert [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)] == []


def test_a_figure_is_written_as_a_png_of_the_size_asked_for(tmp_path: Path) -> None:
    image, heat = wide_image()
    figure = render.montage(heat, image)
    render.save_png(figure, tmp_path / "deep" / "montage.png", dpi=50)
    with Image.open(tmp_path / "deep" / "montage.png") as picture:
        assert picture.size == tuple(int(50 * inches) for inches in figure.get_size_inches())
        assert picture.convert("RGB").getpixel((0, 0)) == (0x15, 0x17, 0x1C)


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    figure = Figure(figsize=(1, 1))
    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OutputError, match="No space left"):
        render.save_png(figure, tmp_path / "montage.png")
    assert list(tmp_path.iterdir()) == []


def test_rendering_needs_no_pyplot() -> None:
    program = "import sys, medcam.render; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_real_brain_is_shown_with_its_lesion_on_the_right_side(real_data: Path) -> None:
    flair, mask = (nib.load(real_data / "mri_ms" / f"patient26_{name}.nii.gz") for name in ("FLAIR", "lesions"))
    image = volume(np.asarray(flair.dataobj, np.float32), flair.affine)
    relevance = np.zeros(image.grid.shape, np.float32)
    # A piece of lesion well in the left half (RAS x < 0).
    lesion = np.asarray(mask.dataobj) > 0
    x = image.grid.world_mm(np.stack(np.nonzero(lesion), -1))[:, 0]
    place = np.stack(np.nonzero(lesion), -1)[x < -15][100]
    relevance[tuple(slice(n - 4, n + 5) for n in place)] = 1
    figure = render.montage(heatmap(relevance, image), image, lesion=volume(lesion.astype(np.float32), mask.affine))
    across, _ = coloured_place(panel_pixels(figure, "axial overlay", canvas(figure)))
    assert across > 0.55
