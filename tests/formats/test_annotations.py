"""Boxes, polygons and points become masks on the image's own grid."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from conftest import made_volume, oblique_grid
from medcam.errors import InputError
from medcam.formats.annotations import Annotation, read_annotation
from medcam.volume import Volume

FILM = made_volume(np.zeros((40, 30, 1), np.float32), oblique_grid((40, 30, 1)))
SCAN = made_volume(np.zeros((21, 17, 9), np.float32), oblique_grid((21, 17, 9)))


def drawn(folder: Path, text: str, image: Volume = FILM, *, name: str = "b.csv", **options: object) -> Annotation:
    (folder / name).write_text(text)
    return read_annotation(folder / name, image, names=["x/film.png"], **options)  # type: ignore[arg-type]


def test_boxes_of_nih_cover_the_pixels_whose_centres_they_hold(tmp_path: Path) -> None:
    text = "Image Index,Finding Label,Bbox [x,y,w,h],,,\nfilm.png,Mass,4.6,7.2,10,5.5,,,\nother.png,Mass,0,0,9,9,,,\n"
    found = drawn(tmp_path, text)
    expected = np.zeros((40, 30, 1), bool)
    for i in range(40):
        for j in range(30):
            expected[i, j] = 4.6 <= i + 0.5 < 14.6 and 7.2 <= j + 0.5 < 12.7
    np.testing.assert_array_equal(found.mask.voxels > 0, expected)
    assert found.boxes is not None
    low, high = np.argwhere(expected).min(0), np.argwhere(expected).max(0)
    assert found.boxes[0].tolist() == np.stack([low, high], 1).tolist()


def test_boxes_that_were_drawn_on_a_larger_picture_are_scaled_along_each_side(tmp_path: Path) -> None:
    text = "image,x,y,w,h\nfilm,80,60,160,30\n"
    assert drawn(tmp_path, text, drawn_on=(400, 150)).boxes.tolist() == [[[8, 23], [12, 17], [0, 0]]]  # type: ignore[union-attr]
    stated = "image,x,y,w,h,image_width,image_height\nfilm,80,60,160,30,400,150\n"
    assert drawn(tmp_path, stated).boxes.tolist() == [[[8, 23], [12, 17], [0, 0]]]  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"line 2: the box spans 80 to 240 pixels and the image 0 to 40.*--drawn-on"):
        drawn(tmp_path, text)


def test_several_boxes_stay_apart_and_the_smaller_is_seen_where_they_overlap(tmp_path: Path) -> None:
    found = drawn(tmp_path, "image,label,x,y,w,h\nfilm,a,2,2,4,4\nfilm,b,0,0,12,9\nfilm,a,20,20,5,5\n")
    assert np.unique(found.mask.voxels).tolist() == [0, 1, 2, 3]
    assert (found.mask.voxels == 1).sum() == 16
    assert (found.mask.voxels == 2).sum() == 12 * 9 - 16
    only = drawn(tmp_path, "image,label,x,y,w,h\nfilm,a,2,2,4,4\nfilm,b,0,0,12,9\n", label="B")
    assert (only.mask.voxels > 0).sum() == 108


def test_a_box_of_a_volume_says_its_slices(tmp_path: Path) -> None:
    found = drawn(tmp_path, "image,x,y,w,h,z,d\nfilm,3,4,5,6,2,3\n", SCAN)
    assert found.boxes is not None
    assert found.boxes.tolist() == [[[3, 7], [4, 9], [2, 4]]]
    assert (found.mask.voxels > 0).sum() == 5 * 6 * 3
    with pytest.raises(InputError, match="9 slices, and the box says neither"):
        drawn(tmp_path, "image,x,y,w,h\nfilm,3,4,5,6\n", SCAN)


def test_polygons_of_coco_are_filled_as_another_library_fills_them(tmp_path: Path) -> None:
    ring = [3.0, 3.0, 33.0, 5.0, 28.0, 25.0, 8.0, 22.0]
    values = {
        "images": [{"id": 7, "file_name": "film.png", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "mass"}, {"id": 2, "name": "tube"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [ring]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 3, 2]},
            {"id": 3, "image_id": 8, "category_id": 1, "bbox": [0, 0, 3, 2]},
        ],
    }
    found = drawn(tmp_path, json.dumps(values), name="c.json", label="mass")
    # Drawn eight times as large, so that the other library's own rule for borders matters little.
    picture = Image.new("1", (320, 240))
    ImageDraw.Draw(picture).polygon([v * 8 for v in ring], fill=1)
    at_centres = np.asarray(picture).T[4::8, 4::8]
    assert ((found.mask.voxels[:, :, 0] > 0) != at_centres).sum() <= 2
    assert 450 < (found.mask.voxels > 0).sum() < 600
    assert (drawn(tmp_path, json.dumps(values), name="c.json", label="tube").mask.voxels > 0).sum() == 6


def test_points_are_voxels_or_spheres_in_millimetres(tmp_path: Path) -> None:
    one = drawn(tmp_path, "image,i,j,k\nfilm,4,5,6\n", SCAN)
    assert np.argwhere(one.mask.voxels).tolist() == [[4, 5, 6]]
    assert one.boxes is None
    x, y, z = SCAN.grid.world_mm(np.array([10.2, 8.1, 4.0]))
    ball = drawn(tmp_path, f"image,x_mm,y_mm,z_mm,radius_mm\nfilm,{x},{y},{z},4\n", SCAN)
    index = np.stack(np.meshgrid(*map(np.arange, SCAN.grid.shape), indexing="ij"), -1)
    apart = np.linalg.norm((index - [10.2, 8.1, 4.0]) * SCAN.grid.spacing_mm, axis=-1)
    np.testing.assert_array_equal(ball.mask.voxels > 0, apart <= 4)
    unplaced = replace(SCAN, source=replace(SCAN.source, placed=False))
    with pytest.raises(InputError, match="needs an image with a place"):
        drawn(tmp_path, "image,x_mm,y_mm,z_mm\nfilm,0,0,0\n", unplaced)
    with pytest.raises(InputError, match="lies outside the image"):
        drawn(tmp_path, "image,i,j,k\nfilm,40,5,6\n", SCAN)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("b.csv", "image,x,y,w,h\nother,1,2,3,4\n", "nothing that was drawn of this image"),
        ("b.csv", "image,x,y,w,h\nfilm,1,2,three,4\n", "line 2: 'w' should be a number, not 'three'"),
        ("b.csv", "x,y,w,h\n1,2,3,4\n", "no column 'image'"),
        ("b.csv", "image,a\nfilm,1\n", "it needs x, y, w and h of a box"),
        ("c.json", "{}", "no COCO file of images and annotations: the entry 'images' is missing"),
        ("c.json", "[1", "no COCO file"),
    ],
)
def test_what_is_no_annotation_is_refused_in_words(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        drawn(tmp_path, text, name=name)
