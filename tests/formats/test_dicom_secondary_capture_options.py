"""Overlays as they are asked for: with a border, compressed, of key slices; of enhanced images, of other grids, of films."""

from __future__ import annotations

import inspect
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from formats.derived_sources import program
from formats.made_sources import (
    SHAPE,
    SOURCES,
    blob,
    made_enhanced,
    made_export,
    made_film,
    made_series,
    source,
)
from formats.test_burned_in import cut, glyph
from formats.validators import complaints, of_dcmtk
from medcam.errors import OutputError, UsageError
from medcam.formats.dicom_secondary_capture import secondary_capture, secondary_capture_instance
from medcam.volume import Volume


def written(volume: Volume, folder: Path, options: dict[str, Any], **changes: Any) -> pydicom.Dataset:
    (path,) = secondary_capture(made_export(volume, folder, **changes), **options)
    return pydicom.dcmread(path)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with a border": {"colour_bar": True},
    "key slices": {"slices": "key", "most": 3},
    "RLE": {"compress": "rle"},
    "JPEG-LS": {"compress": "jpeg-ls", "colour_bar": True},
    "JPEG 2000": {"compress": "jpeg-2000", "colour_bar": True},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", SOURCES)
def test_the_validator_has_nothing_against_any_overlay(name: str, options: str, tmp_path: Path) -> None:
    written(source(tmp_path / "source", name), tmp_path, OPTIONS[options])
    assert complaints(tmp_path / "out_sc.dcm") == []


def by_gdcm(path: Path, raw: Path) -> pydicom.Dataset:
    subprocess.run([program("gdcmconv"), "--raw", path, raw], check=True, capture_output=True)
    return pydicom.dcmread(raw)


def by_dcmtk(name: str, path: Path, raw: Path) -> pydicom.Dataset:
    subprocess.run([of_dcmtk(name), path, raw], check=True, capture_output=True)
    return pydicom.dcmread(raw)


@pytest.mark.parametrize("name", ["an oblique MR", "a CR"])
@pytest.mark.parametrize(
    ("compress", "syntax", "dcmtk"),
    [
        ("rle", "1.2.840.10008.1.2.5", "dcmdrle"),
        ("jpeg-ls", "1.2.840.10008.1.2.4.80", "dcmdjpls"),
        # dcmtk has no decoder of JPEG 2000.
        ("jpeg-2000", "1.2.840.10008.1.2.4.90", None),
    ],
)
def test_compressed_pixels_are_the_same_to_every_decoder(
    compress: str, syntax: str, dcmtk: str | None, name: str, tmp_path: Path
) -> None:
    volume = source(tmp_path / "source", name)
    # JPEG 2000 does not take pictures as small as these without their border.
    border = compress == "jpeg-2000"
    raw = written(volume, tmp_path, {"colour_bar": border})
    small = written(volume, tmp_path, {"colour_bar": border, "compress": compress})
    assert small.file_meta.TransferSyntaxUID == syntax
    assert small.PhotometricInterpretation == ("YBR_RCT" if compress == "jpeg-2000" else "RGB")
    assert small.get("LossyImageCompression") == raw.get("LossyImageCompression")
    # Another way to write the same pixels is not another instance.
    assert small.SOPInstanceUID == raw.SOPInstanceUID
    path = tmp_path / "out_sc.dcm"
    decoded = {"pydicom": small, "gdcm": by_gdcm(path, tmp_path / "gdcm.dcm")}
    if dcmtk is not None:
        decoded["dcmtk"] = by_dcmtk(dcmtk, path, tmp_path / "dcmtk.dcm")
    for decoder, dataset in decoded.items():
        np.testing.assert_array_equal(dataset.pixel_array, raw.pixel_array, err_msg=decoder)
    by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    np.testing.assert_array_equal(np.squeeze(by_itk), raw.pixel_array)


def test_frames_too_small_for_a_compression_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"20 x 16 pixels are too small for jpeg-2000.*choose rle"):
        written(made_series(tmp_path / "series"), tmp_path, {"compress": "jpeg-2000"})
    assert not (tmp_path / "out_sc.dcm").exists()


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("a CR", "a DX")])
def test_a_border_moves_nothing(name: str, tmp_path: Path) -> None:
    volume = source(tmp_path / "source", name)
    plain = written(volume, tmp_path / "plain", {})
    framed = written(volume, tmp_path / "framed", {"colour_bar": True})
    assert (plain.BurnedInAnnotation, framed.BurnedInAnnotation) == ("NO", "YES")
    assert framed.SOPInstanceUID != plain.SOPInstanceUID
    assert {item.SpatialLocationsPreserved for item in framed.SourceImageSequence} == {"NO"}
    images = [SimpleITK.ReadImage(str(tmp_path / kind / "out_sc.dcm")) for kind in ("plain", "framed")]
    small, large = (SimpleITK.GetArrayFromImage(image) for image in images)
    count, rows, columns = small.shape[:3]
    # Where a reader finds the picture's first pixel, there it is.
    i, j, k = images[1].TransformPhysicalPointToIndex(images[0].GetOrigin())
    assert (i > 0, j > 0, k) == (True, True, 0)
    np.testing.assert_array_equal(large[:, j : j + rows, i : i + columns], small)
    last = images[0].TransformIndexToPhysicalPoint((columns - 1, rows - 1, count - 1))
    assert images[1].TransformPhysicalPointToContinuousIndex(last) == pytest.approx(
        (i + columns - 1, j + rows - 1, count - 1), abs=1e-3
    )


def test_letters_are_those_of_the_patient(tmp_path: Path) -> None:
    # Axial as a scanner stores it has the patient's right at the left; a film in profile has anterior there.
    volumes = {
        "R": made_series(tmp_path / "axial", "axial"),
        "L": made_series(tmp_path / "mirrored", "mirrored in the plane"),
        "A": made_film(tmp_path / "profile", "DX", ("P", "F")),
        "": made_film(tmp_path / "unknown", "CR", None),
    }
    for letter, volume in volumes.items():
        pixels = written(volume, tmp_path, {"colour_bar": True}).pixel_array
        size, margin = 13, 18
        page = pixels.reshape(-1, *pixels.shape[-3:])[-1][: margin + 24, :margin, 0]
        if not letter:
            assert not page.any()
            continue
        alike = {each: glyph(each, size) for each in "RLAPIS"}
        same = {each: one.shape == cut(page).shape and (one == cut(page)).mean() for each, one in alike.items()}
        assert max(same, key=lambda each: same[each]) == letter
        assert same[letter] > 0.85


def three_findings(volume: Volume) -> np.ndarray:
    """Return three separate blobs, with peaks of 1, 0.8 and 0.6 in slices 4, 1 and 4."""
    parts = [height * blob(volume, at, 1.2) for height, at in ((1.0, (4, 9, 4)), (0.8, (13, 3, 1)), (0.6, (14, 10, 4)))]
    return np.max(parts, axis=0)


def test_key_slices_are_those_through_the_peaks_and_refer_to_no_other(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    relevance = three_findings(volume)
    every = written(volume, tmp_path, {}, relevance=relevance)
    key = written(volume, tmp_path, {"slices": "key"}, relevance=relevance)
    one = written(volume, tmp_path, {"slices": "key", "most": 1}, relevance=relevance)
    assert len({each.SOPInstanceUID for each in (every, key, one)}) == 3
    for dataset, slices in ((key, [1, 4]), (one, [4])):
        headers = [volume.source.instances[k] for k in slices]
        assert dataset.NumberOfFrames == len(slices)
        np.testing.assert_array_equal(
            dataset.pixel_array.reshape(-1, *every.pixel_array.shape[1:]), every.pixel_array[slices]
        )
        uids = [item.ReferencedSOPInstanceUID for item in dataset.SourceImageSequence]
        assert uids == [header.SOPInstanceUID for header in headers]
        (series,) = dataset.ReferencedSeriesSequence
        assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == uids
        for group, header in zip(dataset.PerFrameFunctionalGroupsSequence, headers, strict=True):
            assert group.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(header.ImagePositionPatient)
    assert "through the peaks of 3 of 3 findings" in key.DerivationDescription
    assert "through the peaks of 1 of 3 findings" in one.DerivationDescription


def test_a_key_slice_that_was_interpolated_is_shown_by_its_neighbour(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series", leave_out=(3,), allow_gaps=True)
    dataset = written(volume, tmp_path, {"slices": "key"}, relevance=blob(volume, (4, 9, 3), 1.2))
    assert dataset.NumberOfFrames == 1
    (item,) = dataset.SourceImageSequence
    assert item.ReferencedSOPInstanceUID == volume.source.header(2).SOPInstanceUID


def test_without_evidence_the_key_slice_is_the_middle_one(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    dataset = written(volume, tmp_path, {"slices": "key"}, relevance=np.zeros(SHAPE, np.float32))
    (item,) = dataset.SourceImageSequence
    assert item.ReferencedSOPInstanceUID == volume.source.header(3).SOPInstanceUID
    assert "of 0 of 0 findings" in dataset.DerivationDescription.replace("peaks of 0", "of 0")


def test_frames_of_an_enhanced_image_are_named_and_lie_where_they_lay(tmp_path: Path) -> None:
    volume = made_enhanced(tmp_path / "source")
    at = (12.2, 3.9, 4.1)
    dataset = written(volume, tmp_path, {}, relevance=blob(volume, at, 4.0))
    (item,) = dataset.SourceImageSequence
    assert item.ReferencedSOPInstanceUID == volume.source.instances[0].SOPInstanceUID
    # Every second frame is of this volume, stored from the last slice to the first.
    assert item.ReferencedFrameNumber == [2, 4, 6, 8, 10, 12]
    key = written(volume, tmp_path / "key", {"slices": "key"}, relevance=blob(volume, at, 1.0))
    assert key.SourceImageSequence[0].ReferencedFrameNumber == volume.source.slices[4].number == 4
    image = SimpleITK.ReadImage(str(tmp_path / "out_sc.dcm"))
    off = volume.grid.index(hottest(image)) - at
    assert np.abs(off).max() <= 0.5


def hottest(image: SimpleITK.Image) -> np.ndarray:
    """Return where the brightest colour lies, RAS+ mm."""
    pixels = SimpleITK.GetArrayFromImage(image).astype(int)
    k, j, i = np.unravel_index(np.argmax(pixels[..., :2].min(-1) - pixels[..., 2]), pixels.shape[:3])
    x, y, z = image.TransformIndexToPhysicalPoint((int(i), int(j), int(k)))
    return np.array([-x, -y, z])


def test_a_frame_that_lies_elsewhere_than_its_slice_is_refused(tmp_path: Path) -> None:
    volume = made_enhanced(tmp_path / "source")
    frames = volume.source.slices
    shuffled = replace(volume.source, slices=(frames[1], frames[0], *frames[2:]))
    with pytest.raises(OutputError, match=r"slice 0 of the heatmap lies 2\.50 mm from where"):
        written(replace_source(volume, shuffled), tmp_path, {})


def replace_source(volume: Volume, source: Any) -> Volume:
    return Volume(volume.voxels, volume.grid, volume.unit, source)


def test_a_volume_on_another_grid_is_shown_on_that_grid(tmp_path: Path) -> None:
    volume = source(tmp_path / "source", "another grid")
    at = (7.2, 4.1, 2.9)
    dataset = written(volume, tmp_path, {}, relevance=blob(volume, at, 4.0))
    assert dataset.NumberOfFrames == volume.grid.shape[2]
    image = SimpleITK.ReadImage(str(tmp_path / "out_sc.dcm"))
    assert image.GetSize() == volume.grid.shape
    assert image.GetSpacing() == pytest.approx(volume.grid.spacing_mm)
    assert np.abs(volume.grid.index(hottest(image)) - at).max() <= 0.5
    assert len(dataset.SourceImageSequence) == SHAPE[2]
    assert {item.SpatialLocationsPreserved for item in dataset.SourceImageSequence} == {"NO"}


@pytest.mark.parametrize(
    ("tags", "spacing", "calibration"),
    [
        ({"PixelSpacing": ["0.2", "0.3"]}, (0.3, 0.2), None),
        ({"PixelSpacing": ["0.2", "0.3"], "PixelSpacingCalibrationType": "FIDUCIAL"}, (0.3, 0.2), "FIDUCIAL"),
        (
            {"ImagerPixelSpacing": ["0.22", "0.33"], "EstimatedRadiographicMagnificationFactor": "1.1"},
            (0.3, 0.2),
            "GEOMETRY",
        ),
        ({"ImagerPixelSpacing": ["0.2", "0.3"]}, None, None),
        ({"PixelSpacing": ["0", "0"]}, None, None),
    ],
)
@pytest.mark.parametrize("colour_bar", [False, True])
def test_readers_know_how_large_a_films_pixels_are_if_the_film_does(
    tags: dict[str, Any], spacing: tuple[float, float] | None, calibration: str | None, colour_bar: bool, tmp_path: Path
) -> None:
    volume = made_film(tmp_path / "film", "DX", **tags)
    dataset = written(volume, tmp_path / "out", {"colour_bar": colour_bar})
    assert complaints(tmp_path / "out" / "out_sc.dcm") == []
    assert dataset.get("PixelSpacingCalibrationType") == calibration
    image = SimpleITK.ReadImage(str(tmp_path / "out" / "out_sc.dcm"))
    assert image.GetSpacing()[:2] == pytest.approx(spacing or (1, 1))
    dcm2niix = pytest.importorskip("dcm2niix").bin
    subprocess.run([dcm2niix, "-z", "n", "-b", "n", "-o", tmp_path, tmp_path / "out"], capture_output=True, check=True)
    (file,) = tmp_path.glob("*.nii")
    assert nibabel.load(file).header.get_zooms()[:2] == pytest.approx(spacing or (1, 1))


def test_the_uids_of_an_overlay_are_known_before_it_is_written(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    for options in OPTIONS.values():
        dataset = written(volume, tmp_path, options)
        found = (dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID)
        assert found == secondary_capture_instance(made_export(volume, tmp_path), **options)


def test_a_colour_bar_in_other_words_than_true_or_false_is_refused(tmp_path: Path) -> None:
    volume = made_series(tmp_path / "series")
    with pytest.raises(UsageError, match="colour_bar is True or False, not 'no'"):
        # As the command line hands it over, where no types are checked.
        inspect.unwrap(secondary_capture)(made_export(volume, tmp_path), colour_bar="no")


@pytest.mark.parametrize("options", [{"compress": "jpeg"}, {"slices": "some"}, {"slices": "key", "most": 0}])
def test_options_of_no_meaning_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=next(reversed(options))):
        written(made_series(tmp_path / "series"), tmp_path, options)
    assert not (tmp_path / "out_sc.dcm").exists()
