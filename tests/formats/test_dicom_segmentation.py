"""Regions of high relevance as DICOM Segmentations: valid, in their place for every reader, and truthful about what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from formats.derived_sources import (
    FILMS,
    ODD,
    PLACED,
    REAL,
    RECIPE,
    WHEN,
    blob,
    by_dcm2niix,
    by_dcmqi,
    centroid,
    complaints,
    disagreements,
    export_of,
    real_volume,
    volume_of,
)
from formats.dicom_phantom import MARKERS
from medcam.errors import OutputError, UsageError
from medcam.formats import check_formats
from medcam.formats.dicom_segmentation import (
    no_region,
    segmentation,
    segmentation_dataset,
    segmentation_instance,
)
from medcam.formats.exporting import Export
from medcam.render import COLOURS
from medcam.volume import Frame

KINDS: dict[str, dict[str, Any]] = {
    "binary": {},
    "two thresholds": {"thresholds": [0.6, 0.3]},
    "fractional": {"kind": "fractional", "compress": "rle"},
    "labelmap": {"kind": "labelmap", "thresholds": [0.3, 0.6], "compress": "jpeg-ls"},
}


def written(export: Export, **options: Any) -> Path:
    (path,) = segmentation(export, **options)
    return path


def stored(path: Path) -> tuple[pydicom.Dataset, np.ndarray]:
    """Return a file and its frames, indexed frame, row, column."""
    dataset = pydicom.dcmread(path)
    return dataset, dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [*PLACED, "a tilted gantry", *ODD, *FILMS])
def test_the_validator_has_nothing_against_a_segmentation_of(case: str, kind: str, tmp_path: Path) -> None:
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    assert complaints(written(export, **KINDS[kind]), "Segmentation") == []


@pytest.mark.parametrize("name", REAL)
def test_the_validator_complains_of_real_segmentations_only_about_the_sources_own_words(
    name: str, real_data: Path, tmp_path: Path
) -> None:
    volume = real_volume(name, real_data, tmp_path / "source")
    export = export_of(volume, tmp_path)
    path = written(export, thresholds=[0.3, 0.6])
    found = complaints(path, "Segmentation")
    assert [line for line in found if not any(f"/{keyword}(" in line for keyword in REAL[name])] == []
    if volume.source.placed:
        by = SimpleITK.ReadImage(str(by_dcmqi("segimage2itkimage", path, tmp_path / "out") / "2.nrrd"))
        voxels = np.argwhere(SimpleITK.GetArrayFromImage(by) > 0)[:, ::-1]
        expected = export.heatmap.mask(0.6)
        assert len(voxels) == expected.sum()
        x, y, z = by.TransformContinuousIndexToPhysicalPoint(voxels.mean(0).tolist())
        assert np.linalg.norm((-x, -y, z) - centroid(expected, export.heatmap.grid.affine)) < 1e-3


@pytest.mark.parametrize("case", ["a CT", "an oblique MR", "an enhanced MR", "latin letters", "a CR film", "a DX film"])
def test_source_and_segmentation_are_one_study_of_one_patient(case: str, tmp_path: Path) -> None:
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    assert disagreements(tmp_path / "source", written(export)) == []


@pytest.mark.parametrize("case", PLACED)
def test_dcmqi_finds_every_voxel_of_every_segment_in_its_place(case: str, tmp_path: Path) -> None:
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    found = by_dcmqi("segimage2itkimage", written(export, thresholds=[0.3, 0.6]), tmp_path / "out")
    for number, threshold in ((1, 0.3), (2, 0.6)):
        expected = export.heatmap.mask(threshold)
        image = SimpleITK.ReadImage(str(found / f"{number}.nrrd"))
        voxels = np.argwhere(SimpleITK.GetArrayFromImage(image) > 0)[:, ::-1]
        assert len(voxels) == expected.sum() > 10
        x, y, z = image.TransformContinuousIndexToPhysicalPoint(voxels.mean(0).tolist())
        assert np.linalg.norm((-x, -y, z) - centroid(expected, export.heatmap.grid.affine)) < 1e-4


@pytest.mark.parametrize("case", ["an oblique MR", "another grid"])
@pytest.mark.parametrize("compress", [None, "rle"])
def test_dcmqi_finds_fractions_and_labels_in_their_places(case: str, compress: str | None, tmp_path: Path) -> None:
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    heat = export.heatmap
    share = np.rint(255 * (heat.relevance / heat.maximum).clip(0, 1)).astype(int)
    expected = {"fractional": share, "labelmap": heat.mask(0.3).astype(int) + heat.mask(0.6)}
    for kind, values in expected.items():
        thresholds = [0.3, 0.6] if kind == "labelmap" else None
        path = written(export, kind=kind, thresholds=thresholds, compress=compress)
        found = by_dcmqi("segimage2itkimage", path, tmp_path / kind)
        image = SimpleITK.ReadImage(str(found / "1.nrrd"))
        for k, j, i in np.argwhere(SimpleITK.GetArrayFromImage(image) > 0).tolist():
            x, y, z = image.TransformIndexToPhysicalPoint((i, j, k))
            index = heat.grid.index(np.array((-x, -y, z)))
            assert np.abs(index - index.round()).max() < 1e-4
            assert image[i, j, k] == values[tuple(index.round().astype(int))]
        assert (SimpleITK.GetArrayFromImage(image) > 0).sum() == (values > 0).sum()


@pytest.mark.parametrize("case", PLACED)
def test_highdicom_finds_every_voxel_of_every_segment_in_its_place(case: str, tmp_path: Path) -> None:
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    for kind in ("binary", "labelmap"):
        found = highdicom.seg.segread(written(export, kind=kind, thresholds=[0.3, 0.6]))
        for number, threshold in ((1, 0.3), (2, 0.6)):
            expected = export.heatmap.mask(threshold)
            if kind == "labelmap" and number == 1:
                expected = expected & ~export.heatmap.mask(0.6)
            volume = found.get_volume(segment_numbers=[number], combine_segments=False)
            mask = volume.array[..., 0] > 0
            assert mask.sum() == expected.sum()
            place = centroid(mask, volume.affine) * (-1, -1, 1)
            assert np.linalg.norm(place - centroid(expected, export.heatmap.grid.affine)) < 1e-4


# They take each one-bit frame to begin with a byte, which those of 11 x 17 pixels do not; dcmqi and highdicom read these.
@pytest.mark.parametrize("case", [case for case in PLACED if case != "another grid"])
def test_simpleitk_and_dcm2niix_find_the_region_in_its_place(case: str, tmp_path: Path) -> None:
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    path = written(export)
    expected = export.heatmap.mask(export.threshold)
    truth = centroid(expected, export.heatmap.grid.affine)
    image = SimpleITK.ReadImage(str(path))
    voxels = np.argwhere(SimpleITK.GetArrayFromImage(image) > 0)[:, ::-1]
    x, y, z = image.TransformContinuousIndexToPhysicalPoint(voxels.mean(0).tolist())
    assert len(voxels) == expected.sum()
    assert np.linalg.norm((-x, -y, z) - truth) < 1e-4
    nifti = nibabel.load(by_dcm2niix(path, tmp_path / "nifti"))
    mask = np.asarray(nifti.dataobj) > 0
    assert mask.sum() == expected.sum()
    assert np.linalg.norm(centroid(mask, nifti.affine) - truth) < 1e-4


def test_dcmqi_is_told_what_each_segment_is_and_in_which_colour(tmp_path: Path) -> None:
    import matplotlib

    export = export_of(volume_of("a CT", tmp_path / "source"), tmp_path)
    found = by_dcmqi("segimage2itkimage", written(export, thresholds=[0.3, 0.6]), tmp_path / "out")
    first, second = (each[0] for each in json.loads((found / "meta.json").read_text())["segmentAttributes"])
    assert first["SegmentLabel"] == "lesion (class 0): relevance from 30 %"
    assert second["SegmentLabel"] == "lesion (class 0): relevance from 60 %"
    assert first["SegmentAlgorithmName"] == "medcam grad-cam"
    assert first["SegmentedPropertyCategoryCodeSequence"]["CodeValue"] == "309825002"
    assert first["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] == "Visual explanation"
    assert first["SegmentedPropertyTypeModifierCodeSequence"]["CodeValue"] == "130403"
    assert "outlines no lesion" in first["SegmentDescription"]
    assert first["TrackingUniqueIdentifier"] != second["TrackingUniqueIdentifier"]
    for segment, threshold in ((first, 0.3), (second, 0.6)):
        overlay = 255 * np.array(matplotlib.colormaps[COLOURS](threshold)[:3])
        assert np.abs(np.array(segment["recommendedDisplayRGBValue"]) - overlay).max() <= 2


def test_segments_hold_what_reaches_each_threshold_and_label_maps_the_bands_between(tmp_path: Path) -> None:
    export = export_of(volume_of("an oblique MR", tmp_path / "source"), tmp_path)
    low, high = (export.heatmap.mask(t).T for t in (0.3, 0.6))
    dataset, frames = stored(written(export, thresholds=[0.6, 0.3]))
    for number, expected in ((1, low), (2, high)):
        kept = [k for k in range(6) if expected[k].any()]
        at = [
            n
            for n, item in enumerate(dataset.PerFrameFunctionalGroupsSequence)
            if item.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
        ]
        np.testing.assert_array_equal(frames[at], expected[kept])
    assert dataset.SegmentsOverlap == "YES"
    _, frames = stored(written(export, kind="labelmap", thresholds=[0.3, 0.6]))
    kept = [k for k in range(6) if low[k].any()]
    np.testing.assert_array_equal(frames, (low.astype(int) + high)[kept])


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_voxel_at_a_threshold_is_within(kind: str, tmp_path: Path) -> None:
    volume = volume_of("an oblique MR", tmp_path / "source")
    relevance = np.zeros(volume.grid.shape, np.float32)
    relevance[3:7, 5, 2], relevance[4, 5, 2] = 0.5, 1
    export = export_of(volume, tmp_path, relevance)
    dataset, frames = stored(written(export, kind=kind, thresholds=[0.5, 1]))
    counts = [(frames == n).sum() for n in (1, 2)] if kind == "labelmap" else frames.sum(axis=(1, 2)).tolist()
    assert counts == ([3, 1] if kind == "labelmap" else [4, 1])
    assert dataset.SegmentSequence[-1].SegmentLabel == "lesion (class 0): relevance from 100 %"


def test_a_fraction_is_the_share_of_the_maximum_and_says_that_it_is_no_probability_of_disease(tmp_path: Path) -> None:
    volume = volume_of("an oblique MR", tmp_path / "source")
    relevance = blob(volume.grid)
    relevance[:4] = np.nan
    export = export_of(volume, tmp_path, 40 * relevance)
    dataset, frames = stored(written(export, kind="fractional"))
    assert (dataset.SegmentationFractionalType, dataset.MaximumFractionalValue) == ("PROBABILITY", 255)
    assert "no probability of disease" in dataset.SegmentSequence[0].SegmentDescription
    share = np.nan_to_num(relevance.astype(float) / np.nanmax(relevance)).clip(0, 1).T
    ranks = [item.FrameContentSequence[0].InStackPositionNumber for item in dataset.PerFrameFunctionalGroupsSequence]
    back = np.zeros(share.shape)
    back[np.array(ranks) - 1] = frames / 255
    assert np.abs(back - share).max() <= 0.5 / 255 + 1e-6
    # Cut at half, it is the binary segmentation.
    assert (export.heatmap.mask(0.5) == (back > 0.5).T).mean() > 0.995


@pytest.mark.parametrize("options", [{"kind": "fractional"}, {"kind": "labelmap", "thresholds": [0.2, 0.5, 0.9]}])
@pytest.mark.parametrize("compress", ["rle", "jpeg-ls"])
@pytest.mark.parametrize("case", ["a CT", "another grid"])
def test_compressed_pixels_are_the_same_pixels_under_the_same_uid(
    case: str, options: dict[str, Any], compress: str, tmp_path: Path
) -> None:
    # The other grid has an odd number of pixels a slice.
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    plain, expected = stored(written(export, **options))
    small, frames = stored(written(export, **options, compress=compress))
    np.testing.assert_array_equal(frames, expected)
    assert (
        small.file_meta.TransferSyntaxUID
        == {"rle": "1.2.840.10008.1.2.5", "jpeg-ls": "1.2.840.10008.1.2.4.80"}[compress]
    )
    assert small.SOPInstanceUID == plain.SOPInstanceUID
    assert small.LossyImageCompression == "00"


def test_frames_of_multi_frame_sources_are_referred_to_by_number(tmp_path: Path) -> None:
    volume = volume_of("an enhanced MR", tmp_path / "source")
    dataset, _ = stored(written(export_of(volume, tmp_path)))
    (source,) = dataset.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == volume.source.instances[0].SOPInstanceUID
    assert source.ReferencedFrameNumber == [2, 4, 6, 8, 10, 12]
    places = volume.source.instances[0].PerFrameFunctionalGroupsSequence
    for item in dataset.PerFrameFunctionalGroupsSequence:
        (reference,) = item.DerivationImageSequence[0].SourceImageSequence
        assert reference.SpatialLocationsPreserved == "YES"
        assert places[reference.ReferencedFrameNumber - 1].PlanePositionSequence[
            0
        ].ImagePositionPatient == pytest.approx(item.PlanePositionSequence[0].ImagePositionPatient, abs=1e-5)


def test_slices_without_a_picture_lie_between_the_others_and_refer_to_nothing(tmp_path: Path) -> None:
    volume = volume_of("a missing slice", tmp_path / "source")
    dataset, _ = stored(written(export_of(volume, tmp_path, kind_of_map(volume))))
    sources = [len(item.DerivationImageSequence) for item in dataset.PerFrameFunctionalGroupsSequence]
    assert sources == [1, 1, 0, 1, 1, 1]
    assert len(dataset.SourceImageSequence) == 5
    resampled, _ = stored(written(export_of(volume_of("another grid", tmp_path / "other"), tmp_path)))
    assert {item.SpatialLocationsPreserved for item in resampled.SourceImageSequence} == {"NO"}
    assert len(resampled.SourceImageSequence) == 6
    assert not any(item.DerivationImageSequence for item in resampled.PerFrameFunctionalGroupsSequence)


def kind_of_map(volume: Any) -> np.ndarray:
    """Return relevance that is high somewhere in each slice."""
    relevance = np.zeros(volume.grid.shape, np.float32)
    relevance[3, 4:7] = 1
    return relevance


def test_tiles_of_a_mosaic_are_not_said_to_keep_their_places(tmp_path: Path) -> None:
    volume = volume_of("an oblique MR", tmp_path / "source")
    mosaic = volume.source.instances[0]
    mosaic.Columns, mosaic.Rows, mosaic.ImageType = 60, 32, ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    source = replace(volume.source, instances=(mosaic,), slices=(Frame(0),) * 6)
    dataset, _ = stored(written(export_of(replace(volume, source=source), tmp_path)))
    (reference,) = dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    assert reference.SpatialLocationsPreserved == dataset.SourceImageSequence[0].SpatialLocationsPreserved == "NO"


@pytest.mark.parametrize("case", FILMS)
def test_a_film_is_segmented_pixel_by_pixel_without_a_place_in_the_patient(case: str, tmp_path: Path) -> None:
    volume = volume_of(case, tmp_path / "source")
    export = export_of(volume, tmp_path)
    for kind in ("binary", "labelmap"):
        dataset, frames = stored(written(export, kind=kind))
        np.testing.assert_array_equal(frames, export.heatmap.mask(0.5).T)
        assert "FrameOfReferenceUID" not in dataset
        assert dataset.get("PatientOrientation") == volume.source.instances[0].get("PatientOrientation", "")
        found = highdicom.seg.segread(export.path("_seg.dcm"))
        uid = volume.source.instances[0].SOPInstanceUID
        by_source = found.get_pixels_by_source_instance([uid], segment_numbers=[1])
        np.testing.assert_array_equal(by_source[..., 0] > 0, frames > 0)


def test_it_says_what_it_is_and_how_it_was_made(tmp_path: Path) -> None:
    long = replace(RECIPE, preprocessing=tuple(f"transform {n} with a name of some length" for n in range(400)))
    export = export_of(
        volume_of("latin letters", tmp_path / "source"), tmp_path, recipe=long, target="Läsion 病変 " * 9
    )
    dataset, _ = stored(written(export))
    segment = dataset.SegmentSequence[0]
    parts = segment.SegmentationAlgorithmIdentificationSequence
    assert len(parts) == 2
    assert json.loads("".join(part.AlgorithmParameters for part in parts)) == long.to_json()
    assert {part.AlgorithmName for part in parts} == {"medcam grad-cam"}
    assert parts[0].AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert segment.SegmentLabel.endswith(": relevance from 50 %")
    assert len(segment.SegmentLabel) <= 64
    assert dataset.SeriesDescription.startswith("grad-cam region: Lasion Lasion")
    assert dataset.SeriesDescription.endswith("NOT FOR DIAGNOSTIC USE")
    assert (dataset.Modality, dataset.SeriesNumber, dataset.ImageType[0]) == ("SEG", 9002, "DERIVED")
    assert (dataset.BurnedInAnnotation, dataset.RecognizableVisualFeatures) == ("NO", "NO")
    assert dataset.ContentDate == WHEN.strftime("%Y%m%d")
    assert "ab" * 32 in dataset.DerivationDescription
    lossy, _ = stored(written(export_of(volume_of("lossy images", tmp_path / "lossy"), tmp_path)))
    assert (lossy.LossyImageCompression, lossy.LossyImageCompressionRatio) == ("01", 12.5)


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "looked at"), (0.0, "speaks for"), (-2.0, "speaks for"), (0.7, "same everywhere")]
)
def test_where_there_is_no_region_nothing_is_written_and_the_words_say_why(
    value: float, words: str, tmp_path: Path
) -> None:
    volume = volume_of("an oblique MR", tmp_path / "source")
    export = export_of(volume, tmp_path / "out", np.full(volume.grid.shape, value, np.float32))
    assert segmentation(export) == ()
    assert segmentation_instance(export) is None
    assert segmentation_dataset(export, kind="fractional") is None
    assert words in no_region(export.heatmap)
    assert not (tmp_path / "out").exists()


def test_one_voxel_on_the_border_is_a_region(tmp_path: Path) -> None:
    volume = volume_of("an oblique MR", tmp_path / "source")
    relevance = np.full(volume.grid.shape, np.nan, np.float32)
    relevance[-1, -1, -1], relevance[0, 0, 0] = 3.5, -1
    export = export_of(volume, tmp_path, relevance)
    assert no_region(export.heatmap) == ""
    dataset, frames = stored(written(export))
    assert np.argwhere(frames).tolist() == [[0, 15, 19]]
    place = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert np.array(place) * (-1, -1, 1) == pytest.approx(volume.grid.world_mm(np.array([0, 0, 5])), abs=1e-5)


def test_the_uids_are_known_before_anything_is_written_and_are_those_of_the_file(tmp_path: Path) -> None:
    export = export_of(volume_of("an oblique MR", tmp_path / "source"), tmp_path)
    found = []
    for options in ({}, {"thresholds": 0.4}, {"thresholds": [0.4, 0.5]}, {"kind": "labelmap"}, {"kind": "fractional"}):
        instance = segmentation_instance(export, **options)  # type: ignore[arg-type]
        dataset, _ = stored(written(export, **options))
        assert instance == (dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID)
        found.append(instance)
    assert len({instance.sop_instance for instance in found if instance}) == 5
    assert segmentation_instance(export, thresholds=[0.5, 0.4]) == found[2]
    assert segmentation_instance(export, thresholds=0.5) == found[0]
    assert segmentation_instance(export, thresholds=0.50000001) not in found


def test_with_the_clock_held_two_files_are_equal_to_the_byte(tmp_path: Path) -> None:
    export = export_of(volume_of("an enhanced MR", tmp_path / "source"), tmp_path)
    first = written(export, thresholds=[0.3, 0.6]).read_bytes()
    assert written(export, thresholds=[0.3, 0.6]).read_bytes() == first


def test_identity_stays_in_the_patients_own_elements(tmp_path: Path) -> None:
    export = export_of(volume_of("an enhanced MR", tmp_path / "source"), tmp_path)
    path = written(export)
    dataset, _ = stored(path)
    assert (str(dataset.PatientName), dataset.PatientID) == MARKERS
    del dataset.PatientName, dataset.PatientID
    assert not any(marker in str(dataset) for marker in MARKERS)
    assert not any(marker in path.name for marker in MARKERS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "fuzzy"}, "kind is one of 'binary'"),
        ({"compress": "jpeg"}, "compress is one of 'rle'"),
        ({"compress": "rle"}, "one bit a voxel"),
        ({"kind": "fractional", "thresholds": 0.5}, "no thresholds"),
        ({"thresholds": 0}, "between 0 and 1"),
        ({"thresholds": [0.5, 1.2]}, "between 0 and 1"),
        ({"thresholds": []}, "between 1 and 255 thresholds"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_words(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    export = export_of(volume_of("an oblique MR", tmp_path / "source"), tmp_path)
    with pytest.raises(UsageError, match=words):
        segmentation(export, **options)
    # And before anything is computed.
    listed = ", ".join(f"{name}={value!r}" for name, value in options.items())
    with pytest.raises(UsageError, match=words):
        check_formats(f"dicom-seg({listed})", export.volume, threshold=0.5)


def test_a_heatmap_that_is_not_where_its_source_is_is_refused(tmp_path: Path) -> None:
    volume = volume_of("an enhanced MR", tmp_path / "source")
    other = volume_of("an oblique MR", tmp_path / "other")
    affine = volume.grid.affine.copy()
    affine[2, 3] += 0.4
    moved = replace(volume, grid=replace(volume.grid, affine=affine))
    turned = replace(volume, source=replace(volume.source, slices=volume.source.slices[::-1]))
    skewed = affine.copy()
    skewed[:3, 1] += 0.05 * skewed[:3, 0]
    sheared = replace(
        volume, grid=replace(volume.grid, affine=skewed), source=replace(volume.source, slices=(None,) * 6)
    )
    for wrong in (moved, turned):
        with pytest.raises(OutputError, match="from where its DICOM header says"):
            segmentation(export_of(wrong, tmp_path / "out"))
    with pytest.raises(OutputError, match="not perpendicular"):
        segmentation(export_of(sheared, tmp_path / "out"))
    with pytest.raises(OutputError, match="another"):
        segmentation(replace(export_of(moved, tmp_path / "out"), volume=other))
    assert not (tmp_path / "out").exists()


def test_a_series_without_a_frame_of_reference_gets_one_of_its_own(tmp_path: Path) -> None:
    from formats.derived_sources import series

    export = export_of(series(tmp_path / "source", "oblique", tags={"FrameOfReferenceUID": None}), tmp_path)
    path = written(export)
    assert complaints(path, "Segmentation") == []
    assert pydicom.dcmread(path).FrameOfReferenceUID.startswith("2.25.")
