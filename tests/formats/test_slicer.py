"""Scenes for 3D Slicer, as its own library reads and shows them."""

from __future__ import annotations

import ast
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import nrrd
import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import binary_dilation, binary_erosion, map_coordinates

from conftest import blob, oblique_grid
from formats.asked_slicer import asked
from formats.dicom_phantom import GEOMETRIES, MARKERS, stored_values, write_series
from medcam.errors import OutputError
from medcam.formats import read, slicer_script, write
from medcam.formats.slicer import image_values
from medcam.geometry import Grid
from medcam.recipe import Recipe
from medcam.render import display_range, planes_of, to_display
from medcam.volume import Heatmap, Source, Volume

RECIPE = Recipe("net", "ab" * 32, "grad-cam", "features", "lesion (class 0)")
TARGET = 'lesion <b> & "50 %"; é (class 0)'
THRESHOLD = 0.4
SIDES = {"Red": "axial", "Yellow": "sagittal", "Green": "coronal"}
SHEAR = np.array([[1, 0, 0.0, 0], [0, 1, 0.31, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
GRIDS = {
    "oblique, anisotropic and left-handed": oblique_grid(),
    "axial as stored by scanners": Grid((17, 19, 11), np.array([[-1.5, 0, 0, 20], [0, -1.2, 0, 30], [0, 0, 3, -9], [0, 0, 0, 1.0]])),
    "sagittal": Grid((19, 17, 11), np.array([[0, 0, 2.0, -20], [-1, 0, 0, 30], [0, -1.3, 0, 40], [0, 0, 0, 1]])),
    "coronal": Grid((19, 17, 11), np.array([[-1.1, 0, 0, -20], [0, 0, 2.2, 30], [0, -1.3, 0, 40], [0, 0, 0, 1]])),
    "flipped": Grid((16, 18, 13), np.array([[1.0, 0, 0, 5], [0, -2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])),
    "oblique slice": oblique_grid((22, 25, 1)),
    "tilted gantry": Grid((31, 37, 23), SHEAR @ np.array([[-1.2, 0, 0, 31], [0, -0.9, 0, 44], [0, 0, 2.4, -12], [0, 0, 0, 1]])),
    "oblique tilted gantry": Grid((31, 37, 23), oblique_grid().affine @ SHEAR),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    heatmap: Heatmap
    volume: Volume
    lesion: Volume | None
    peak: tuple[int, ...]


def case(grid: Grid, *, scale: float = 7.0, values: np.ndarray | None = None, **about: Any) -> Case:
    """A blob off the middle that is unlike itself along each axis, on a brighter body; a corner was not looked at."""
    peak = tuple(int(n * share) for n, share in zip(grid.shape, (0.65, 0.3, 0.6), strict=True))
    place = grid.world_mm(np.array(peak))
    relevance = blob(grid, place, 4.0) + 0.4 * blob(grid, place + np.array((4, 3, 5)), 3.0) - 0.1
    relevance *= np.float32(scale / relevance.max())
    relevance[:2, :3] = np.nan
    found = np.unravel_index(np.nanargmax(relevance), grid.shape)
    body = 900 * blob(grid, grid.world_mm((np.array(grid.shape) - 1) * 0.45), 15.0) - 1000
    source = Source(**({"format": "nifti", "sha256": "00", "label": "case"} | about))
    heatmap = Heatmap(relevance if values is None else values, grid, source, RECIPE, TARGET, 1.5, 0.8, ("a note",))
    lesion = (blob(grid, place + np.array((2, 1, -1)), 3.0) > 0.5).astype(np.uint8)
    return Case(
        heatmap,
        Volume(np.rint(body).astype(np.float32), grid, "HU", source),
        Volume(lesion, grid, "a.u.", source),
        tuple(map(int, found)),
    )


def cases() -> dict[str, Case]:
    made = {name: case(grid) for name, grid in GRIDS.items()}
    film = Grid((26, 21, 1), np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]))
    nowhere = {"oriented": False, "placed": False, "spaced": False}
    made["film"] = case(film, format="picture", **nowhere)
    grid = GRIDS["oblique, anisotropic and left-handed"]
    made["nothing speaks for it"] = case(grid, values=np.full(grid.shape, -0.5, np.float32))
    made["nothing was looked at"] = case(grid, values=np.full(grid.shape, np.nan, np.float32))
    made["small numbers"] = case(grid, scale=3e-7)
    return made


CASES = cases()


LEAVES = {"axial": "SI", "sagittal": "LR", "coronal": "AP"}


def place_in_view(made: Case, plane: Any) -> tuple[np.ndarray, tuple[float, float], tuple[int, int]]:
    """Return a plane through the peak with its colours, the spacing of its rows and columns, and where the peak is in it."""
    grid, heatmap = made.volume.grid, made.heatmap
    normal = 2 if plane == "stored" else next(a for a, code in enumerate(grid.axis_codes) if code in LEAVES[plane])
    index = made.peak[normal]
    marks = np.zeros(grid.shape, np.uint8)
    marks[made.peak] = 1
    image, relevance, mark = (to_display(v, grid, plane, index) for v in (made.volume.voxels, heatmap.relevance, marks))
    low, high = display_range(made.volume)
    grey = 255 * ((image.pixels[..., None] - low) / (high - low)).clip(0, 1)
    share = np.nan_to_num(relevance.pixels / heatmap.maximum)[..., None]
    colour = 255 * matplotlib.colormaps["plasma"](np.rint(255 * share[..., 0].clip(0, 1)).astype(int))[..., :3]
    picture = np.where(share >= THRESHOLD, 0.65 * colour + 0.35 * grey, grey)
    row, column = np.argwhere(mark.pixels)[0]
    return picture, image.spacing_mm, (int(row), int(column))


def view_names(made: Case) -> dict[str, str]:
    planes = planes_of(made.volume)
    return SIDES if len(planes) > 1 else {"Red": planes[0]}


def sheared(grid: Grid) -> bool:
    axes = grid.affine[:3, :3] / grid.spacing_mm
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3)


PIXELS = (96, 96)


SEEN = [(name, way) for way in ("slicer", "slicer-script") for name in CASES]
SEEN += [("oblique, anisotropic and left-handed", "nrrd,slicer-script")]
Seen = dict[tuple[str, str], tuple[dict[str, Any], Path]]


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What 3D Slicer makes of each case, and the folder with the pictures."""
    home = tmp_path_factory.mktemp("slicer")
    requests = []
    for n, (name, way) in enumerate(SEEN):
        made, folder = CASES[name], home / f"{n}"
        files = write(made.heatmap, made.volume, folder, formats=way, threshold=THRESHOLD, lesion=made.lesion)
        views = {view: {"pixels": PIXELS, "mm": field_of_view(made, plane)} for view, plane in view_names(made).items()}
        places = made.volume.grid.world_mm(np.array([made.peak, [0, 0, 0], [3, 2, 0], [1, 7, 0]])).tolist()
        what = {"scene": str(files[0])} if way == "slicer" else {"script": str(files[-1]), "names": ["case_gradcam"]}
        requests.append({**what, "folder": str(folder), "points": places, "views": views})
    answers = asked(requests, home)
    return {each: (found, home / str(n)) for n, (each, found) in enumerate(zip(SEEN, answers, strict=True))}


def field_of_view(made: Case, plane: str) -> list[float] | None:
    """Return what makes a voxel of a pixel; of sheared grids, which no view can follow, what the scene itself shows."""
    if sheared(made.volume.grid):
        return None
    _, (down, across), _ = place_in_view(made, plane)
    return [PIXELS[0] * across, PIXELS[1] * down]


@pytest.mark.parametrize(("name", "way"), SEEN)
def test_slicer_reads_every_value_at_its_place(name: str, way: str, seen: Seen) -> None:
    answer, made = seen[name, way][0], CASES[name]
    assert answer["read"]
    image, heatmap = answer["volumes"]
    assert (image["name"], heatmap["name"]) == ("case", f"grad-cam of {TARGET}")
    assert (image["type"], heatmap["type"]) == ("short", "float")
    for volume, voxels in ((image, made.volume.voxels), (heatmap, np.nan_to_num(made.heatmap.relevance))):
        assert volume["shape"] == list(made.volume.grid.shape)
        expected = [voxels[index] for index in (made.peak, (0, 0, 0), (3, 2, 0), (1, 7, 0))]
        np.testing.assert_allclose(volume["values"], expected, rtol=1e-6)
    low, high = display_range(made.volume)
    np.testing.assert_allclose(image["window"], (high - low, (high + low) / 2))
    assert image["colours"] == "Grey"
    assert not image["automatic"]
    assert answer["layout"] == [3 if len(view_names(made)) == 3 else 6]
    if way == "slicer" or sheared(made.volume.grid):
        assert json.loads(answer["texts"][0])["recipe"]["method"] == "grad-cam"


@pytest.mark.parametrize(("name", "way"), SEEN)
def test_masks_and_the_peak_lie_where_they_should(name: str, way: str, seen: Seen) -> None:
    answer, made = seen[name, way][0], CASES[name]
    grid, lesion = made.volume.grid, made.lesion
    assert lesion is not None
    expected = {"relevance from 40 % of its maximum": made.heatmap.mask(THRESHOLD), "lesion": lesion.voxels > 0}
    found = {each["name"]: each for each in answer["segmentations"]}
    assert set(found) == {title for title, mask in expected.items() if mask.any()}
    for title, each in found.items():
        assert each["voxels"] == expected[title].sum()
        truth = grid.world_mm(np.argwhere(expected[title])).mean(axis=0)
        np.testing.assert_allclose(each["centroid"], truth, atol=0.01)
        assert each["shown"] == (title == "lesion")
    if made.heatmap.peak() is None:
        assert answer["points"] == []
    else:
        assert [each["label"] for each in answer["points"]] == ["peak"]
        np.testing.assert_allclose(answer["points"][0]["place"], grid.world_mm(np.array(made.peak)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "way"),
    [each for each in SEEN if CASES[each[0]].heatmap.peak() and not sheared(CASES[each[0]].volume.grid)],
)
def test_views_show_the_pixels_of_the_figures_with_the_peak_in_the_middle(name: str, way: str, seen: Seen) -> None:
    (answer, folder), made = seen[name, way], CASES[name]
    columns, rows = PIXELS
    assert set(answer["views"]) == set(view_names(made))
    for view, plane in view_names(made).items():
        picture, _, (row, column) = place_in_view(made, plane)
        shown = np.load(folder / f"{view}.npy")
        # VTK's pixels lie at their lower left corner, and so does the middle of an even number of them.
        top, left = rows // 2 - 1 - row, columns // 2 - column
        expected = np.zeros(shown.shape)
        expected[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        apart = np.abs(shown - expected).max(axis=-1)
        inside = np.zeros(apart.shape, bool)
        inside[top : top + picture.shape[0], left : left + picture.shape[1]] = True
        assert apart[inside].max() < 3, view
        assert not shown[~inside].any()
        place = answer["views"][view]
        np.testing.assert_allclose(
            np.array(place["ras_from_slice"])[:3, 3], made.volume.grid.world_mm(np.array(made.peak)), atol=1e-9
        )
        upright = np.abs(made.volume.grid.affine[:3, :3] / made.volume.grid.spacing_mm).max(axis=0).min() > 0.999999
        # A film hangs like a frontal plane.
        preset = "Coronal" if plane == "stored" else plane.capitalize()
        assert place["orientation"] == (preset if upright else "Reformat")
        assert place["letters"] == (list("LRPAIS") if made.heatmap.source.oriented else [" "] * 6)


@pytest.mark.parametrize(("name", "way"), SEEN)
def test_colours_show_where_the_relevance_reaches_the_threshold_and_nowhere_else(
    name: str, way: str, seen: Seen
) -> None:
    (answer, folder), made = seen[name, way], CASES[name]
    columns, rows = PIXELS
    for view, plane in view_names(made).items():
        shown = np.load(folder / f"{view}.npy").astype(int)
        coloured = np.ptp(shown, axis=-1) > 2
        if made.heatmap.peak() is None:
            assert not coloured.any()
            assert shown.any()
            continue
        place = answer["views"][view]
        across, down = np.array(field_of_view(made, plane) or place["field_of_view"][:2]) / PIXELS
        row, column = np.mgrid[:rows, :columns]
        right, up = (column - columns // 2) * across, (rows // 2 - 1 - row) * down
        flat = np.stack([right, up, np.zeros_like(right), np.ones_like(right)], -1)
        index = made.volume.grid.index((flat @ np.array(place["ras_from_slice"]).T)[..., :3])
        relevance = np.nan_to_num(made.heatmap.relevance)
        # Between voxel centres it is interpolated; a single slice has no centres beside its own.
        inside = map_coordinates(relevance, np.moveaxis(index, -1, 0), order=1, mode="nearest", prefilter=False)
        beyond = ((index < -0.5) | (index > np.array(relevance.shape) - 0.5)).any(axis=-1)
        expected = (inside >= THRESHOLD * made.heatmap.maximum) & ~beyond
        assert expected.sum() > 10
        apart = np.argwhere(coloured).mean(axis=0) - np.argwhere(expected).mean(axis=0)
        assert np.linalg.norm(apart) < 0.5, view
        # At its rim a pixel may fall on either side.
        assert (coloured & ~binary_dilation(expected)).sum() == 0
        assert (binary_erosion(expected) & ~coloured).sum() == 0


def test_what_slicer_does_not_read_as_it_should_is_stored_as_it_does(tmp_path: Path) -> None:
    for name, made in CASES.items():
        (scene,) = write(made.heatmap, made.volume, tmp_path / name, formats="slicer", threshold=THRESHOLD)
        with zipfile.ZipFile(scene) as bundle:
            bundle.extractall(tmp_path / name)
        for path in (tmp_path / name).rglob("*.nrrd"):
            values, header = nrrd.read(str(path))
            directions = np.array(header["space directions"])
            assert header["space"] == "left-posterior-superior"
            assert header["type"] in ("unsigned char", "short", "float")
            assert np.linalg.det(directions) > 0
            scaled = directions / np.linalg.norm(directions, axis=1, keepdims=True)
            np.testing.assert_allclose(scaled @ scaled.T, np.eye(3), atol=1e-6)
            assert np.isfinite(values).all()


@pytest.mark.parametrize("name", [name for name, made in CASES.items() if not sheared(made.volume.grid)])
def test_the_heatmap_in_a_scene_lies_where_simpleitk_says(name: str, tmp_path: Path) -> None:
    made = CASES[name]
    (scene,) = write(made.heatmap, made.volume, tmp_path, formats="slicer", threshold=THRESHOLD)
    with zipfile.ZipFile(scene) as bundle:
        bundle.extractall(tmp_path)
    image = SimpleITK.ReadImage(str(tmp_path / "case_gradcam/Data/relevance.nrrd"))
    lps = made.volume.grid.world_mm(np.array(made.peak)) * (-1, -1, 1)
    index = image.TransformPhysicalPointToContinuousIndex(lps)
    np.testing.assert_allclose(index, np.rint(index), atol=1e-5)
    assert image.GetPixel(*(round(n) for n in index)) == np.nan_to_num(made.heatmap.relevance)[made.peak]


def test_a_bundle_is_one_folder_of_one_scene_that_refers_to_files_that_are_there(tmp_path: Path) -> None:
    made = CASES["oblique, anisotropic and left-handed"]
    nasty = replace(made.heatmap, target="nasty \x00\x1b <&> ' \" ü", source=replace(made.heatmap.source, label="ä b"))
    (scene,) = write(nasty, made.volume, tmp_path, formats="slicer", threshold=THRESHOLD, lesion=made.lesion)
    with zipfile.ZipFile(scene) as bundle:
        names = bundle.namelist()
        assert {name.split("/")[0] for name in names} == {"_b_gradcam"}
        (text,) = [name for name in names if name.endswith(".mrml")]
        root = ElementTree.fromstring(bundle.read(text))
    files = {node.get("fileName") for node in root if node.get("fileName")}
    assert files == {name.split("/", 1)[1] for name in names if name != text}
    identities = [node.get("id") for node in root]
    assert len(set(identities)) == len(identities)
    for node in root:
        for reference in (node.get("references") or "").split(";"):
            if reference:
                assert reference.split(":")[1] in {*identities, "vtkMRMLColorTableNodeGrey"}


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    made = CASES["film"]
    one, two = (
        write(made.heatmap, made.volume, tmp_path / n, formats="slicer", threshold=THRESHOLD)[0] for n in ("a", "b")
    )
    assert one.read_bytes() == two.read_bytes()


def test_values_that_int16_cannot_hold_are_stored_as_float_and_none_as_64_bits(tmp_path: Path) -> None:
    made = CASES["oblique slice"]
    for voxels, kind in (
        (np.arange(550).reshape(22, 25, 1), np.int16),
        (np.arange(550).reshape(22, 25, 1) * 1000, np.float32),
        (np.arange(550).reshape(22, 25, 1) / 8, np.float32),
        (np.where(np.arange(550) % 7, np.arange(550.0), np.nan).reshape(22, 25, 1), np.int16),
        (np.arange(550).reshape(22, 25, 1).astype(np.uint8), np.uint8),
    ):
        found = image_values(voxels)
        assert found.dtype == kind
        np.testing.assert_array_equal(found, np.where(np.isfinite(voxels), voxels, np.nanmin(voxels)))
    with pytest.raises(OutputError, match="another"):
        write(made.heatmap, CASES["film"].volume, tmp_path, formats="slicer")


def test_the_script_shows_all_heatmaps_of_its_folder_and_the_named_one_on_top(tmp_path: Path) -> None:
    made = CASES["oblique slice"]
    folder = tmp_path / "results"
    for label, target in (("b", "late"), ("a", "early")):
        heatmap = replace(made.heatmap, target=target)
        *_, script = write(
            heatmap, made.volume, folder, formats="nifti,slicer-script", label=label, threshold=THRESHOLD
        )
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["load_in_slicer.py", "case_00_image.nii.gz"]
        + [
            f"{label}{end}"
            for label in "ab"
            for end in (".nii.gz", ".json", "_label.nii.gz", "_label.json", "_slicer.json")
        ]
    )
    view = {"Red": {"pixels": PIXELS, "mm": None}}
    common = {"script": str(script), "points": [], "views": view}
    every, named = asked(
        [
            common | {"names": names, "folder": str(tmp_path / str(n))}
            for n, names in enumerate(([], ["b", "nonsense"]))
        ],
        tmp_path,
    )
    assert len(every["volumes"]) == 4
    assert every["views"]["Red"]["foreground"] == "grad-cam of early"
    assert len(named["volumes"]) == 2
    assert named["views"]["Red"]["foreground"] == "grad-cam of late"


def test_the_scripts_python_is_old_enough_for_slicer() -> None:
    # 3D Slicer 5.0 to 5.8 brings Python 3.9.
    path = Path(slicer_script.__file__).parent / "load_in_slicer.py"
    ast.parse(path.read_text(), feature_version=(3, 9))


def test_no_identity_leaves_the_source(tmp_path: Path) -> None:
    write_series(tmp_path / "study", stored_values((19, 14, 6)), GEOMETRIES["oblique"], description="Doe^Secret")
    volume = read(tmp_path / "study")
    heatmap = replace(
        CASES["oblique slice"].heatmap,
        relevance=blob(volume.grid, volume.grid.world_mm(np.array([5, 5, 2]))),
        grid=volume.grid,
        source=volume.source,
    )
    files = write(heatmap, volume, tmp_path / "out", formats="slicer,slicer-script", threshold=THRESHOLD)
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".mrb":
            with zipfile.ZipFile(path) as bundle:
                content = b"".join(bundle.read(name) for name in bundle.namelist()) + str(bundle.namelist()).encode()
        for marker in MARKERS:
            assert marker.encode() not in content + path.name.encode()
