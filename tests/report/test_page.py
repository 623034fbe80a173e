"""A page holds all it shows and nothing of others: layers in place, words escaped, no request."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest

import medcam
from medcam import Grid, Heatmap, Recipe, Source, UsageError, Volume
from medcam.report import Case, case_page
from medcam.report.layers import heatmap_layer, image_layer, outline_layer, shown_grid
from medcam.report.page import LIBRARY, library_source

AFFINE = np.array([[-0.8, 0.3, 0.2, 30.0], [0.2, -1.9, 0.5, -12.0], [0.1, 0.4, 3.1, 44.0], [0, 0, 0, 1]])
SHAPE = (13, 9, 6)
RECIPE = Recipe("net</script><b>", "ab" * 32, "grad-cam", "features", "lesion (class 0)")
SOURCE = Source("nifti", "cd" * 32, "scan", notes=("A note with <tags> & signs.",))


def case(shape: tuple[int, int, int] = SHAPE, **changes: object) -> Case:
    rng = np.random.default_rng(3)
    grid = Grid(shape, AFFINE)
    volume = Volume(rng.normal(100, 40, shape).astype(np.float32), grid, "a.u.", SOURCE)
    relevance = rng.normal(0, 0.2, shape).astype(np.float32)
    relevance[tuple(n - 2 if n > 2 else 0 for n in shape)] = 3.0
    relevance[0, 0, 0] = np.nan
    heatmap = Heatmap(relevance, grid, SOURCE, RECIPE, "lesion (class 0)", 2.5, 0.92, ("Look </script> here.",))
    mask = np.zeros(shape, np.uint8)
    mask[-4:-1, -4:-1, -3:] = 1
    return replace(Case(volume, (heatmap,), 0.4, Volume(mask, grid, "", SOURCE)), **changes)


def embedded(page: str, name: str) -> bytes:
    (found,) = re.findall(rf'<script type="text/plain" id="{name}">([^<]*)</script>', page)
    return base64.b64decode(found)


def placed(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    return np.asarray(image.dataobj), image.affine


def at(data: bytes, world_mm: np.ndarray) -> np.ndarray:
    """Values of a layer at places, by the nearest voxel."""
    values, affine = placed(data)
    index = np.rint(nibabel.affines.apply_affine(np.linalg.inv(affine), world_mm)).astype(int)
    return values[tuple(index.T)]


def test_each_layer_lies_where_the_image_lies_whatever_its_axes() -> None:
    one = case()
    page, grid = case_page(one), one.volume.grid
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1).reshape(-1, 3)
    where = grid.world_mm(index)
    image = at(embedded(page, "layer-image"), where).reshape(SHAPE)
    span = float(np.ptp(one.volume.voxels))
    np.testing.assert_allclose(image, one.volume.voxels, atol=span / 65000)
    share = at(embedded(page, "layer-heatmap-0"), where).reshape(SHAPE)
    expected = np.clip(np.nan_to_num(one.heatmaps[0].relevance) / 3.0, 0, 1)
    np.testing.assert_allclose(share, expected, atol=0.5 / 255 + 1e-6)
    _, affine = placed(embedded(page, "layer-image"))
    assert nibabel.aff2axcodes(affine) == ("R", "A", "S")


@pytest.mark.parametrize("thick", [False, True])
def test_the_outline_is_the_lesions_edge_and_not_its_inside(thick: bool) -> None:
    grid = Grid((9, 8, 7), AFFINE if thick else AFFINE @ np.diag([2.0, 1.0, 0.7, 1.0]))
    mask = np.zeros(grid.shape, bool)
    mask[2:7, 2:6, 1:6] = True
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 3)
    shell = at(outline_layer(mask, shown_grid(grid)), grid.world_mm(index)).reshape(grid.shape)
    expected = mask.copy()
    # Of thick slices the first and the last one have an inside, too.
    expected[3:6, 3:5, 1:6] = False
    if not thick:
        expected[3:6, 3:5, [1, 5]] = True
    np.testing.assert_array_equal(shell.astype(bool), expected)


def test_a_film_has_an_outline_in_its_own_plane_only() -> None:
    grid = Grid((9, 8, 1), AFFINE)
    mask = np.zeros(grid.shape, bool)
    mask[2:7, 2:6] = True
    shell, _ = placed(outline_layer(mask, shown_grid(grid)))
    assert shell.sum() == 5 * 4 - 3 * 2


def test_a_large_image_is_averaged_and_its_hottest_voxel_kept() -> None:
    one = case((12, 9, 5))
    shown = shown_grid(one.volume.grid, most_voxels=100)
    assert np.prod(shown.grid.shape) <= 100
    assert max(shown.factors) > 1
    # The axis with the finest voxels gives way first.
    assert shown.factors[0] > shown.factors[2]
    values, affine = placed(heatmap_layer(one.heatmaps[0], shown))
    assert values.max() == pytest.approx(1)
    hottest = nibabel.affines.apply_affine(affine, np.argwhere(values == values.max())[0])
    peak = one.heatmaps[0].peak()
    assert peak is not None
    reach = np.linalg.norm(np.array(shown.grid.spacing_mm) / 2)
    assert np.linalg.norm(hottest - peak.world_mm) <= reach
    image, _ = placed(image_layer(one.volume, shown))
    assert image.mean() == pytest.approx(one.volume.voxels.mean(), rel=0.05)


class Found(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts, self.addresses, self.tags, self.text = 0, [], [], []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.scripts += tag == "script"
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action") and value]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_what_a_file_says_is_shown_as_words_and_never_as_code() -> None:
    page = case_page(case())
    found = Found()
    found.feed(page)
    # The case, three layers, the library and the viewer: nothing that a name or a note opened or closed.
    assert found.scripts == 6
    assert "b" not in found.tags
    assert "A note with <tags> & signs." in "".join(found.text)
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    values = json.loads(re.search(r'id="case">(.*?)</script>', page, re.S)[1])
    assert values["heatmaps"][0]["name"] == "grad-cam"
    peak = case().heatmaps[0].peak()
    np.testing.assert_allclose(values["heatmaps"][0]["peak_mm"], peak.world_mm)
    back = np.array(values["index_from_world"]) @ [*peak.world_mm, 1]
    np.testing.assert_allclose(back, peak.voxel, atol=1e-9)


def test_the_policy_of_the_page_lets_nothing_out() -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', case_page(case()))[1]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert "*" not in policy


def test_the_same_case_makes_the_same_page() -> None:
    assert case_page(case()) == case_page(case())


def test_heatmaps_are_told_apart_by_what_differs() -> None:
    one = case()
    first = one.heatmaps[0]
    others = (
        replace(first, recipe=replace(RECIPE, method="layer-cam")),
        replace(first, recipe=replace(RECIPE, layer="stem")),
        first,
    )
    page = case_page(replace(one, heatmaps=(first, *others), measures=({"hit": 1.0},) * 3 + ({"hit": float("nan")},)))
    names = [each["name"] for each in json.loads(re.search(r'id="case">(.*?)</script>', page, re.S)[1])["heatmaps"]]
    assert names == ["grad-cam · features (1)", "layer-cam · features", "grad-cam · stem", "grad-cam · features (4)"]
    assert "not defined" in page


def test_a_heatmap_without_positive_evidence_says_so() -> None:
    one = case()
    nothing = replace(one.heatmaps[0], relevance=np.full(SHAPE, -1.0, np.float32))
    page = case_page(replace(one, heatmaps=(nothing,)))
    assert "nothing speaks for the target" in page
    assert json.loads(re.search(r'id="case">(.*?)</script>', page, re.S)[1])["heatmaps"][0]["peak_mm"] is None


def test_a_heatmap_of_another_image_is_refused() -> None:
    one, other = case(), case((13, 9, 5))
    with pytest.raises(UsageError, match="give the image that the heatmaps were made for"):
        case_page(replace(one, heatmaps=other.heatmaps))
    with pytest.raises(UsageError, match="at least one"):
        case_page(replace(one, heatmaps=()))


def test_the_viewers_library_is_what_its_makers_published() -> None:
    assert LIBRARY == "niivue-0.69.0.umd.js.gz"
    digest = hashlib.sha256(library_source()).hexdigest()
    assert digest == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    # What would end the element that holds it does not occur.
    assert b"</script" not in library_source().lower()


def test_html_is_a_format_like_others(tmp_path: Path) -> None:
    one = case()
    (path,) = medcam.write(one.heatmaps[0], one.volume, tmp_path, formats="html", lesion=one.lesion, threshold=0.4)
    assert path.name == "scan_gradcam.html"
    assert path.read_text(encoding="utf-8") == case_page(one)
