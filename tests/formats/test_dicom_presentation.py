"""Presentation states: valid, drawn where the relevance is, with the contrast of the images themselves."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from PIL import Image
from pydicom import Dataset

from formats.dicom_phantom import MARKERS, stored_values, write_film
from formats.made_sources import COMPLETE, SHAPE, SOURCES, blob, made_export, made_film, made_series, source
from formats.validators import complaints, of_dcmtk
from medcam.errors import OutputError, UsageError
from medcam.formats.dicom import read_dicom
from medcam.formats.dicom_presentation import presentation_state, presentation_state_instance
from medcam.render import display_range
from medcam.volume import Source, Volume

DRAWN = [name for name in SOURCES if name != "another grid"]


def written(volume: Volume, folder: Path, *, most: int = 10, **changes: Any) -> pydicom.Dataset:
    (path,) = presentation_state(made_export(volume, folder, **changes), most=most)
    return pydicom.dcmread(path)


def lines(state: Dataset, layer: str) -> dict[tuple[str, int | None], list[np.ndarray]]:
    """Return the polylines of a layer, in image coordinates (column, row), by instance and frame."""
    found: dict[tuple[str, int | None], list[np.ndarray]] = {}
    for item in state.GraphicAnnotationSequence:
        if item.GraphicLayer == layer:
            (image,) = item.ReferencedImageSequence
            key = (image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber"))
            for graphic in item.GraphicObjectSequence:
                assert (graphic.GraphicType, graphic.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL")
                points = np.array(graphic.GraphicData).reshape(-1, 2)
                assert len(points) == graphic.NumberOfGraphicPoints
                found.setdefault(key, []).append(points)
    return found


@pytest.mark.parametrize("name", DRAWN)
def test_the_validator_has_nothing_against_a_state_on(name: str, tmp_path: Path) -> None:
    written(source(tmp_path / "source", name), tmp_path)
    assert complaints(tmp_path / "out_ps.dcm", "GrayscaleSoftcopyPresentationState") == []


@pytest.mark.parametrize("name", DRAWN)
def test_dcmtk_finds_the_state_consistent(name: str, tmp_path: Path) -> None:
    written(source(tmp_path / "source", name), tmp_path)
    done = subprocess.run([of_dcmtk("dcmpschk"), "-v", tmp_path / "out_ps.dcm"], capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()
    # It takes no date and time with an offset from UTC, in any object.
    affected = [line for line in said if "Affected attribute" in line and "ContributionDateTime" not in line]
    assert affected == []
    assert any("Pass 3 - Semantic Check" in line for line in said)
    assert not [
        line
        for line in said
        if line.startswith("E:") and "data type definition" not in line and ":   " not in line and line != "E: "
    ]


@pytest.mark.parametrize("name", DRAWN)
def test_outlines_on_each_image_enclose_what_reaches_the_threshold_there(name: str, tmp_path: Path) -> None:
    volume = source(tmp_path / "source", name)
    relevance = blob(volume, [0.61 * n for n in volume.grid.shape], 2.5)
    state = written(volume, tmp_path, relevance=relevance)
    drawn = lines(state, "RELEVANCE")
    columns, rows, count = volume.grid.shape
    # Centres of pixels, in coordinates that start at the corner of the first.
    centres = np.stack(np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5, indexing="ij"), -1).reshape(-1, 2)
    hot = relevance >= np.float32(0.3) * relevance.max()
    for k in range(count):
        frame = volume.source.slices[k]
        polygons = drawn.pop((volume.source.header(k).SOPInstanceUID, frame.number if frame else None), [])
        within = sum(
            (Polygon(one).contains_points(centres).astype(int) for one in polygons), np.zeros(len(centres), int)
        )
        wrong = (within % 2 == 1).reshape(columns, rows) != hot[:, :, k]
        # Coordinates are rounded to a thousandth of a pixel.
        assert not (wrong & (np.abs(relevance[:, :, k] / relevance.max() - 0.3) > 1e-3)).any()
    assert drawn == {}


def test_only_images_with_a_finding_are_referred_to(tmp_path: Path) -> None:
    volume = source(tmp_path / "source", "an enhanced MR")
    state = written(volume, tmp_path, relevance=blob(volume, (12, 4, 4), 1.5))
    (series,) = state.ReferencedSeriesSequence
    (image,) = series.ReferencedImageSequence
    shown = {item.ReferencedImageSequence[0].ReferencedFrameNumber for item in state.GraphicAnnotationSequence}
    frames = np.atleast_1d(image.ReferencedFrameNumber).tolist()
    assert sorted(shown) == frames == sorted(frames)
    assert volume.source.slices[4].number in frames
    assert len(frames) < SHAPE[2]


def test_peaks_are_crossed_out_around_and_numbered(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    parts = [height * blob(volume, at, 1.2) for height, at in ((1.0, (4, 9, 4)), (0.8, (13, 3, 1)))]
    relevance = np.max(parts, axis=0)
    state = written(volume, tmp_path, relevance=relevance)
    crosses = lines(state, "RELEVANCE PEAK")
    for k, centre in ((4, (4.5, 9.5)), (1, (13.5, 3.5))):
        arms = crosses[volume.source.header(k).SOPInstanceUID, None]
        assert len(arms) == 4
        ends = np.concatenate(arms)
        assert ends.mean(0) == pytest.approx(centre)
        # Nothing is drawn over the peak itself.
        assert np.abs(ends - centre).sum(1).min() > 1
    texts = {
        text.UnformattedTextValue: tuple(text.AnchorPoint)
        for item in state.GraphicAnnotationSequence
        if item.GraphicLayer == "RELEVANCE PEAK"
        for text in item.TextObjectSequence
    }
    # Of 14 pixels the gap and the arm are 1.5 pixels each, the least: the words stand where the arms end.
    assert texts == {"1: 1.00": (7.5, 12.5), f"2: {relevance[13, 3, 1] / relevance.max():.2f}": (16.5, 6.5)}
    one = lines(written(volume, tmp_path, relevance=relevance, most=1), "RELEVANCE PEAK")
    assert list(one) == [(volume.source.header(4).SOPInstanceUID, None)]


def test_every_image_says_what_it_shows_and_what_it_is_not(tmp_path: Path) -> None:
    state = written(made_series(tmp_path / "series"), tmp_path)
    outlines = [item for item in state.GraphicAnnotationSequence if item.GraphicLayer == "RELEVANCE"]
    for item in outlines:
        (text,) = item.TextObjectSequence
        assert "lesion (class 0)" in text.UnformattedTextValue
        assert "from 0.3 of the maximum" in text.UnformattedTextValue
        assert "NOT FOR DIAGNOSTIC USE" in text.UnformattedTextValue
    assert state.SeriesDescription == "grad-cam outline: lesion (class 0) NOT FOR DIAGNOSTIC USE"
    assert "NOT FOR DIAGNOSTIC USE" in state.ContentDescription
    assert "ab" * 32 in state.ContributingEquipmentSequence[0].ContributionDescription
    assert (state.PresentationCreationDate, state.Modality) == ("20240506", "PR")
    del state.PatientName, state.PatientID
    assert not [marker for marker in MARKERS if marker in str(state)]


def shown_by_dcmtk(state: Path, image: Path, out: Path, frame: int = 1) -> np.ndarray:
    subprocess.run([of_dcmtk("dcmp2pgm"), "-f", str(frame), "-p", state, image, out], check=True, capture_output=True)
    return np.array(Image.open(out)).T


@pytest.mark.parametrize(
    ("options", "tags"),
    [
        ({"modality": "CT", "slope": 1, "intercept": -1024}, {"WindowCenter": "300", "WindowWidth": "900"}),
        ({"modality": "CT", "slope": 1, "intercept": -1024}, {}),
        ({"modality": "MR"}, {"WindowCenter": "1500", "WindowWidth": "2000"}),
        ({"modality": "MR"}, {}),
        (
            {"modality": "MR", "photometric": "MONOCHROME1", "bits_stored": 12},
            {"WindowCenter": "1500", "WindowWidth": "2000"},
        ),
        ({"modality": "PT", "slope": 0.0001, "intercept": 0}, {"WindowCenter": "0.2", "WindowWidth": "0.3"}),
    ],
)
def test_dcmtk_shows_an_image_through_the_state_as_medcam_does(
    options: dict[str, Any], tags: dict[str, Any], tmp_path: Path
) -> None:
    volume = made_series(tmp_path / "series", tags=tags, **options)
    state = written(volume, tmp_path)
    k = 1
    assert volume.source.header(k).SOPInstanceUID in {
        image.ReferencedSOPInstanceUID for image in state.ReferencedSeriesSequence[0].ReferencedImageSequence
    }
    low, high = display_range(volume)
    expected = 255 * ((volume.voxels[:, :, k] - low) / (high - low)).clip(0, 1)
    found = shown_by_dcmtk(tmp_path / "out_ps.dcm", tmp_path / "series" / f"{k:03d}.dcm", tmp_path / "shown.pgm")
    # The window of the standard is half a stored value off from the plain one.
    assert np.abs(found - expected).max() <= 2


def test_images_with_rescalings_of_their_own_keep_their_contrast_each(tmp_path: Path) -> None:
    def own(k: int) -> dict[str, Any]:
        return {
            "RescaleSlope": str(1 + k),
            "RescaleIntercept": str(-300 * k),
            "WindowCenter": "2000",
            "WindowWidth": "3000",
        }

    volume = made_series(tmp_path / "series", slice_tags=own)
    state = written(volume, tmp_path)
    assert complaints(tmp_path / "out_ps.dcm", "GrayscaleSoftcopyPresentationState") == []
    assert "RescaleSlope" not in state
    for k in (1, 2):
        expected = 255 * ((volume.voxels[:, :, k] - 500) / 3000).clip(0, 1)
        found = shown_by_dcmtk(tmp_path / "out_ps.dcm", tmp_path / "series" / f"{k:03d}.dcm", tmp_path / "shown.pgm")
        assert np.abs(found - expected).max() <= 2


@pytest.mark.parametrize(
    ("tags", "spacing", "ratio"),
    [
        ({"PixelSpacing": ["0.2", "0.3"]}, [0.2, 0.3], None),
        ({"PixelAspectRatio": ["4", "3"]}, None, [4, 3]),
        ({}, None, [1, 1]),
    ],
)
def test_pixels_keep_their_shape(
    tags: dict[str, Any], spacing: list[float] | None, ratio: list[int] | None, tmp_path: Path
) -> None:
    state = written(made_film(tmp_path / "film", "CR", **tags), tmp_path)
    (area,) = state.DisplayedAreaSelectionSequence
    assert (area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner) == ([1, 1], [23, 17])
    assert area.get("PresentationPixelSpacing") == spacing
    assert area.get("PresentationPixelAspectRatio") == ratio


@pytest.mark.parametrize(
    ("tags", "side", "faults"),
    [
        ({"BodyPartExamined": "KNEE", "ImageLaterality": "R"}, "R", 0),
        ({"BodyPartExamined": "THORAX"}, None, 0),
        # The source's own fault.
        ({"BodyPartExamined": "KNEE"}, "", 1),
        ({"BodyPartExamined": None}, "", 1),
    ],
)
def test_the_series_names_the_side_where_the_part_has_one(
    tags: dict[str, Any], side: str | None, faults: int, tmp_path: Path
) -> None:
    state = written(made_film(tmp_path / "film", "DX", **tags), tmp_path)
    assert state.get("Laterality") == side
    found = complaints(tmp_path / "out_ps.dcm", "GrayscaleSoftcopyPresentationState")
    assert len(found) == faults
    assert all(line.startswith("Warning - </Laterality(") for line in found)


def test_a_very_long_outline_is_drawn_in_parts(tmp_path: Path) -> None:
    path = write_film(
        tmp_path, stored_values((600, 500, 1))[:, :, 0], tags={**COMPLETE, "PositionReferenceIndicator": None}
    )
    volume = read_dicom(path)
    # A comb: one region whose outline winds through the whole film.
    relevance = np.zeros(volume.grid.shape, np.float32)
    relevance[::2, 1:-1], relevance[:, 250] = 1.0, 1.0
    state = written(volume, tmp_path / "out", relevance=relevance)
    (parts,) = lines(state, "RELEVANCE").values()
    assert max(len(part) for part in parts) <= 8191
    assert sum(len(part) for part in parts) > 8191
    np.testing.assert_array_equal(parts[0][-1], parts[1][0])


@pytest.mark.parametrize("fill", [0.0, -1.0, np.nan])
def test_without_evidence_there_is_nothing_to_draw(fill: float, tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    export = made_export(volume, tmp_path, relevance=np.full(SHAPE, fill, np.float32))
    assert presentation_state(export) == ()
    assert presentation_state_instance(export) is None
    assert not (tmp_path / "out_ps.dcm").exists()


def test_a_finding_in_a_slice_that_is_no_image_is_left_out(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series", leave_out=(3,), allow_gaps=True)
    state = written(volume, tmp_path, relevance=blob(volume, (4, 9, 3), 1.8))
    assert lines(state, "RELEVANCE PEAK") == {}
    assert set(lines(state, "RELEVANCE")) <= {(header.SOPInstanceUID, None) for header in volume.source.instances}


def test_what_cannot_be_drawn_on_is_refused(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    with pytest.raises(OutputError, match="another grid, or are tiles of a mosaic"):
        written(source(tmp_path / "grid", "another grid"), tmp_path)
    assert presentation_state_instance(made_export(source(tmp_path / "grid", "another grid"), tmp_path)) is None
    plain = Volume(volume.voxels, volume.grid, "a.u.", Source("nifti", ""))
    with pytest.raises(OutputError, match="read from nifti"):
        written(plain, tmp_path)
    with pytest.raises(UsageError, match="most is a whole number"):
        written(volume, tmp_path, most=0)
    assert not (tmp_path / "out_ps.dcm").exists()


def test_the_uids_of_a_state_are_known_and_stay(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    seen = set()
    for most, threshold in ((10, 0.3), (10, 0.5), (2, 0.3), (10, 0.3)):
        state = written(volume, tmp_path, most=most, threshold=threshold)
        instance = presentation_state_instance(made_export(volume, tmp_path, threshold=threshold), most=most)
        assert (state.SOPClassUID, state.SOPInstanceUID, state.SeriesInstanceUID) == instance
        seen.add(state.SOPInstanceUID)
    assert len(seen) == 3
