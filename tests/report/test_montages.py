"""The comparison of heatmaps: the same slices and sides in each row, and the scale that it names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report.cohorts import scene

from medcam import Heatmap, UsageError
from medcam.render import to_display
from medcam.report.montages import comparison

VOLUME, LESION, HEATMAP = scene(1)


def pictures(figure: object) -> dict[str, np.ndarray]:
    return {axes.get_label(): np.asarray(axes.images[0].get_array()) for axes in figure.axes}


def coloured(pixels: np.ndarray) -> np.ndarray:
    return np.ptp(pixels.astype(int), axis=-1) > 40


def test_colours_lie_where_the_relevance_lies_in_each_row_and_plane() -> None:
    other = replace(HEATMAP, relevance=np.roll(HEATMAP.relevance, 4, axis=0))
    figure = comparison({"a": HEATMAP, "b": other}, VOLUME, lesion=LESION, title="t", threshold=0.4)
    found = pictures(figure)
    assert list(found)[:-1] == [
        f"{row} {plane}" for row in ("image", "a", "b") for plane in ("axial", "coronal", "sagittal")
    ]
    peak = HEATMAP.peak().voxel
    axes_of = {
        plane: next(a for a, c in enumerate(VOLUME.grid.axis_codes) if c in letters)
        for plane, letters in {"axial": "SI", "coronal": "AP", "sagittal": "RL"}.items()
    }
    for name, heatmap in {"a": HEATMAP, "b": other}.items():
        for plane, axis in axes_of.items():
            hot = to_display(heatmap.relevance, VOLUME.grid, plane, peak[axis]).pixels >= 0.4 * heatmap.maximum
            assert (coloured(found[f"{name} {plane}"]) == hot).mean() > 0.98
    assert not coloured(found["image axial"]).any()


def test_a_shared_scale_fades_the_weaker_map_and_its_own_does_not() -> None:
    weak = replace(HEATMAP, relevance=HEATMAP.relevance * np.float32(0.3))
    own = pictures(comparison({"a": HEATMAP, "b": weak}, VOLUME, title="t", threshold=0.4))
    shared_figure = comparison({"a": HEATMAP, "b": weak}, VOLUME, title="t", threshold=0.4, maximum=HEATMAP.maximum)
    shared = pictures(shared_figure)
    np.testing.assert_array_equal(own["a axial"], own["b axial"])
    np.testing.assert_array_equal(shared["a axial"], own["a axial"])
    assert not coloured(shared["b axial"]).any()
    said = " ".join(text.get_text() for text in shared_figure.texts)
    assert "the same for all rows" in said
    assert f"{HEATMAP.maximum:.3g}" in said


def test_a_map_without_positive_evidence_is_said_to_be_one() -> None:
    blank = replace(HEATMAP, relevance=-np.abs(HEATMAP.relevance))
    figure = comparison({"blank": blank}, VOLUME, title="t")
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "no positive evidence" in words
    assert {"A", "P", "S", "I", "R", "L"} <= set(words)


def test_letters_are_left_out_where_the_image_knows_no_sides() -> None:
    volume = replace(VOLUME, source=replace(VOLUME.source, oriented=False))
    figure = comparison({"a": HEATMAP}, volume, title="t")
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert not {"A", "P", "S", "I", "R", "L"} & set(words)


def test_heatmaps_that_do_not_lie_on_the_image_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one heatmap"):
        comparison({}, VOLUME, title="t")
    shifted = replace(VOLUME.grid, affine=VOLUME.grid.affine + np.array([[0, 0, 0, 5.0]] + [[0] * 4] * 3))
    other = Heatmap(HEATMAP.relevance, shifted, HEATMAP.source, HEATMAP.recipe, "x", 1.0)
    with pytest.raises(UsageError, match="'other' lies on"):
        comparison({"other": other}, VOLUME, title="t")
