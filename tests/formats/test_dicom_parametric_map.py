"""Relevance as DICOM Parametric Maps: valid, bit for bit, and in its place for every reader, never mirrored."""

from __future__ import annotations

import json
import tracemalloc
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
    UNMAPPABLE,
    blob,
    by_dcm2niix,
    by_dcmqi,
    complaints,
    disagreements,
    export_of,
    real_volume,
    series,
    volume_of,
)
from formats.dicom_phantom import OBLIQUE, affine_of
from medcam.engine.methods import EXPLAINERS
from medcam.errors import OutputError
from medcam.formats import check_formats, dicom_algorithm, write
from medcam.formats.dicom_algorithm import explanation
from medcam.formats.dicom_parametric_map import (
    check_parametric_map,
    parametric_map,
    parametric_map_dataset,
    parametric_map_instance,
)
from medcam.formats.dicom_slices import picture_header
from medcam.formats.exporting import Export
from medcam.geometry import Grid
from medcam.volume import Source, Volume


def written(export: Export, **options: Any) -> Path:
    (path,) = parametric_map(export, **options)
    return path


def values(dataset: pydicom.Dataset) -> np.ndarray:
    """Return the stored numbers, indexed frame, row, column."""
    shape = dataset.NumberOfFrames, dataset.Rows, dataset.Columns
    return np.frombuffer(dataset.FloatPixelData, "<f4").reshape(shape)


@pytest.mark.parametrize("case", [*PLACED, *ODD])
def test_the_validator_has_nothing_against_a_map_of(case: str, tmp_path: Path) -> None:
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    found = complaints(written(export), "ParametricMap")
    assert found == []


@pytest.mark.parametrize("name", [name for name in REAL if name not in UNMAPPABLE])
def test_the_validator_complains_of_real_maps_only_about_the_sources_own_words(
    name: str, real_data: Path, tmp_path: Path
) -> None:
    export = export_of(real_volume(name, real_data, tmp_path / "source"), tmp_path)
    path = written(export)
    found = complaints(path, "ParametricMap")
    assert [line for line in found if not any(f"/{keyword}(" in line for keyword in REAL[name])] == []
    image = SimpleITK.ReadImage(str(by_dcmqi("paramap2itkimage", path, tmp_path / "out") / "pmap.nrrd"))
    array = SimpleITK.GetArrayFromImage(image)
    np.testing.assert_array_equal(array, export.heatmap.relevance.T)
    k, j, i = (int(n) for n in np.unravel_index(np.argmax(array), array.shape))
    x, y, z = image.TransformIndexToPhysicalPoint((i, j, k))
    peak = export.heatmap.peak()
    assert peak is not None
    assert np.linalg.norm(np.array((-x, -y, z)) - peak.world_mm) < 1e-3


@pytest.mark.parametrize("case", ["a CT", "an oblique MR", "an enhanced MR", "latin letters"])
def test_source_and_map_are_one_study_of_one_patient(case: str, tmp_path: Path) -> None:
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    assert disagreements(tmp_path / "source", written(export)) == []


@pytest.mark.parametrize("case", PLACED)
def test_dcmqi_finds_every_value_in_its_place(case: str, tmp_path: Path) -> None:
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    heat = export.heatmap
    found = by_dcmqi("paramap2itkimage", written(export), tmp_path / "out")
    image = SimpleITK.ReadImage(str(found / "pmap.nrrd"))
    array = SimpleITK.GetArrayFromImage(image)
    assert array.dtype == np.float32
    k, j, i = (int(n) for n in np.unravel_index(np.argmax(array), array.shape))
    x, y, z = image.TransformIndexToPhysicalPoint((i, j, k))
    peak = heat.peak()
    assert peak is not None
    assert np.linalg.norm(np.array((-x, -y, z)) - peak.world_mm) < 1e-4
    # The other slices too: the same numbers at the same corners.
    order = -1 if case == "another grid" else 1
    np.testing.assert_array_equal(array, heat.relevance.T[::order])
    first = image.TransformIndexToPhysicalPoint((0, 0, 0))
    corner = heat.grid.world_mm(np.array([0, 0, 0 if order == 1 else heat.grid.shape[2] - 1]))
    assert np.array(first) * (-1, -1, 1) == pytest.approx(corner, abs=1e-4)
    meta = json.loads((found / "meta.json").read_text())
    assert meta["QuantityValueCode"]["CodeValue"] == "130403"
    assert meta["MeasurementUnitsCode"]["CodeValue"] == "1"


@pytest.mark.parametrize("case", PLACED)
def test_dcm2niix_and_highdicom_find_every_value_in_its_place(case: str, tmp_path: Path) -> None:
    export = export_of(volume_of(case, tmp_path / "source"), tmp_path)
    heat, path = export.heatmap, written(export)
    peak = heat.peak()
    assert peak is not None
    nifti = nibabel.load(by_dcm2niix(path, tmp_path / "nifti"))
    found = [(np.asarray(nifti.dataobj), nifti.affine, (1, 1, 1))]
    volume = highdicom.imread(path).get_volume(dtype=np.float32)
    found.append((volume.array, volume.affine, (-1, -1, 1)))
    for array, affine, ras in found:
        at = np.unravel_index(np.argmax(array), array.shape)
        place = (affine @ (*at, 1))[:3] * ras
        assert np.linalg.norm(place - peak.world_mm) < 1e-3
        assert array.dtype == np.float32
        np.testing.assert_array_equal(np.sort(array, axis=None), np.sort(heat.relevance, axis=None))


@pytest.mark.parametrize("case", PLACED)
def test_frames_lie_with_the_normal_and_hold_the_heatmap_bit_for_bit(case: str, tmp_path: Path) -> None:
    volume = volume_of(case, tmp_path / "source")
    relevance = blob(volume.grid)
    relevance[2:4, :, 1] = np.nan
    export = export_of(volume, tmp_path, relevance)
    dataset = pydicom.dcmread(written(export))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    frames = dataset.PerFrameFunctionalGroupsSequence
    places = np.array([item.PlanePositionSequence[0].ImagePositionPatient for item in frames], float)
    steps = np.diff(places @ np.cross(*directions))
    assert (steps > 0).all()
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == pytest.approx(steps.mean(), abs=1e-5)
    assert [item.FrameContentSequence[0].DimensionIndexValues for item in frames] == list(range(1, len(frames) + 1))
    stored = values(dataset)
    for n, place in enumerate(places):
        index = volume.grid.index(place * (-1, -1, 1))
        assert index == pytest.approx([0, 0, round(index[2])], abs=1e-4)
        np.testing.assert_array_equal(
            stored[n].view(np.uint32), relevance[:, :, round(index[2])].T.astype("<f4").view(np.uint32)
        )


@pytest.mark.parametrize("case", ["an oblique MR", "a sagittal MR", "an enhanced MR"])
def test_places_are_the_sources_own_numbers_digit_by_digit(case: str, tmp_path: Path) -> None:
    # Cornerstone takes a map for oblique to its source if a direction cosine differs in the last digit.
    volume = volume_of(case, tmp_path / "source")
    dataset = pydicom.dcmread(written(export_of(volume, tmp_path)))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    headers = [picture_header(volume.source, k) for k in range(6)]
    assert headers[0] is not None
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == headers[0].get("ImageOrientationPatient")
    assert shared.PixelMeasuresSequence[0].PixelSpacing == headers[0].get("PixelSpacing")
    for header, item in zip(headers, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        assert header is not None
        assert item.PlanePositionSequence[0].ImagePositionPatient == header.get("ImagePositionPatient")


def test_slices_that_drift_are_put_on_the_regular_grid_that_readers_take_for_granted(tmp_path: Path) -> None:
    drift = {1: 0.014, 2: 0.028, 3: 0.014, 4: 0.004}
    positions = {k: [-90, -110.5, -40 + 3 * k + drift.get(k, 0)] for k in range(6)}
    volume = series(
        tmp_path / "source", "axial", slice_tags=lambda k: {"ImagePositionPatient": positions[k]}, allow_gaps=True
    )
    dataset = pydicom.dcmread(written(export_of(volume, tmp_path)))
    places = [
        item.PlanePositionSequence[0].ImagePositionPatient[2] for item in dataset.PerFrameFunctionalGroupsSequence
    ]
    assert places == pytest.approx([-40, -37, -34, -31, -27.996, -25], abs=1e-6)
    found = by_dcmqi("paramap2itkimage", tmp_path / "map_pm.dcm", tmp_path / "out")
    assert SimpleITK.ReadImage(str(found / "pmap.nrrd")).GetSpacing()[2] == pytest.approx(3, abs=0.005)


def test_what_was_not_looked_at_is_not_a_number_or_what_was_asked_for(tmp_path: Path) -> None:
    volume = volume_of("an oblique MR", tmp_path / "source")
    relevance = blob(volume.grid)
    relevance[:, :5] = np.nan
    export = export_of(volume, tmp_path, relevance)
    dataset = pydicom.dcmread(written(export))
    assert np.isnan(values(dataset)).sum() == np.isnan(relevance).sum() == 20 * 5 * 6
    mapping = dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert "NaN: not looked at" in mapping.LUTExplanation
    low, high = float(np.nanmin(relevance)), float(np.nanmax(relevance))
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == low
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == high
    found = by_dcmqi("paramap2itkimage", export.path("_pm.dcm"), tmp_path / "out")
    array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(found / "pmap.nrrd")))
    np.testing.assert_array_equal(array, relevance.T)
    other = pydicom.dcmread(written(export, unseen=-7))
    np.testing.assert_array_equal(values(other), np.nan_to_num(relevance, nan=-7).T)
    mapping = other.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == -7
    assert "-7: or not looked at" in mapping.LUTExplanation
    assert complaints(export.path("_pm.dcm"), "ParametricMap") == []
    assert other.SOPInstanceUID != dataset.SOPInstanceUID


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.5])
def test_a_map_without_evidence_is_written_and_says_so(value: float, tmp_path: Path) -> None:
    volume = volume_of("a CT", tmp_path / "source")
    export = export_of(volume, tmp_path, np.full(volume.grid.shape, value, np.float32))
    dataset = pydicom.dcmread(written(export))
    assert complaints(export.path("_pm.dcm"), "ParametricMap") == []
    np.testing.assert_array_equal(values(dataset), export.heatmap.relevance.T)
    assert "no positive evidence" in dataset.SeriesDescription
    assert "FrameVOILUTSequence" not in dataset.SharedFunctionalGroupsSequence[0]


def test_it_says_what_it_is_and_how_it_was_made(tmp_path: Path) -> None:
    volume = volume_of("a right knee", tmp_path / "source")
    dataset = pydicom.dcmread(written(export_of(volume, tmp_path)))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    quantity, *algorithm = mapping.QuantityDefinitionSequence
    assert quantity.ConceptCodeSequence[0].CodeMeaning == "Gradient-weighted class activation"
    said = {item.ConceptNameCodeSequence[0].CodeMeaning: item.TextValue for item in algorithm}
    assert json.loads(said["Algorithm Parameters"]) == RECIPE.to_json()
    assert said["Algorithm Name"] == "medcam grad-cam"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    anatomy = shared.FrameAnatomySequence[0]
    assert (anatomy.FrameLaterality, anatomy.AnatomicRegionSequence[0].CodeMeaning) == ("R", "Knee")
    assert (dataset.ContentQualification, dataset.ImageType) == (
        "RESEARCH",
        ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"],
    )
    assert (dataset.BurnedInAnnotation, dataset.RecognizableVisualFeatures) == ("NO", "NO")
    assert (dataset.SeriesNumber, dataset.BitsAllocated) == (9003, 32)
    assert dataset.SeriesDescription == "grad-cam map: lesion (class 0) NOT FOR DIAGNOSTIC USE"
    assert "ab" * 32 in dataset.DerivationDescription
    assert dataset.FrameOfReferenceUID == volume.grid.frame_of_reference
    (reference,) = dataset.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == volume.source.instances[0].SeriesInstanceUID
    assert len(reference.ReferencedInstanceSequence) == len(dataset.SourceImageSequence) == 6


def test_every_method_is_one_kind_of_explanation(tmp_path: Path) -> None:
    assert set(dicom_algorithm._KIND_OF) == set(EXPLAINERS)
    volume = volume_of("a CT", tmp_path / "source")

    def kind_of(method: str) -> str:
        return explanation(export_of(volume, tmp_path, recipe=replace(RECIPE, method=method)).heatmap)[2]

    assert kind_of("grad-cam") == "Gradient-weighted class activation"
    assert kind_of("seg-xres-cam(window=3)") == "Gradient-weighted class activation"
    assert kind_of("score-cam") == "Class activation"
    assert kind_of("integrated-gradients(steps=8)") == "Saliency"
    assert kind_of("rise(masks=20)") == kind_of("somebody-elses") == "Visual explanation"


@pytest.mark.parametrize("case", FILMS)
def test_a_film_is_refused_before_anything_is_computed(case: str, tmp_path: Path) -> None:
    volume = volume_of(case, tmp_path / "source")
    with pytest.raises(OutputError, match=r"does not say where it lies.*dicom-seg"):
        check_parametric_map(volume)
    with pytest.raises(OutputError, match="does not say where it lies"):
        check_formats("dicom-seg,dicom-pm(unseen=0)", volume, threshold=0.5)
    assert len(check_formats("dicom-seg(thresholds=[0.2,0.6])", volume, threshold=0.5)) == 1
    export = export_of(volume, tmp_path / "out")
    assert parametric_map_instance(export) is None
    with pytest.raises(OutputError, match="does not say where it lies"):
        parametric_map(export)
    assert not (tmp_path / "out").exists()


def test_both_are_written_by_name_with_their_options(tmp_path: Path) -> None:
    volume = volume_of("a CT", tmp_path / "source")
    heat = export_of(volume, tmp_path).heatmap
    files = write(heat, volume, tmp_path / "out", formats="dicom-seg(kind='labelmap'),dicom-pm", label="x")
    assert [file.name for file in files] == ["x_seg.dcm", "x_pm.dcm"]
    assert pydicom.dcmread(files[0]).SegmentationType == "LABELMAP"


def test_a_series_without_a_frame_of_reference_is_refused_in_words(tmp_path: Path) -> None:
    volume = series(tmp_path / "source", "oblique", tags={"FrameOfReferenceUID": None})
    with pytest.raises(OutputError, match=r"frame of reference.*dicom-seg"):
        check_parametric_map(volume)
    assert parametric_map_instance(export_of(volume, tmp_path)) is None
    with pytest.raises(OutputError, match="read from nifti"):
        check_parametric_map(replace(volume, source=Source("nifti", "")))


def test_tilted_slices_are_refused_since_readers_straighten_them_in_silence(tmp_path: Path) -> None:
    volume = volume_of("a tilted gantry", tmp_path / "source")
    assert parametric_map_instance(export_of(volume, tmp_path)) is None
    for early in (
        lambda: check_formats("dicom-pm", volume, threshold=0.5),
        lambda: parametric_map(export_of(volume, tmp_path)),
    ):
        with pytest.raises(OutputError, match=r"tilted: the last lies 5\.5 mm off.*--regrid"):
            early()


def test_the_uids_are_known_before_anything_is_written_and_are_those_of_the_file(tmp_path: Path) -> None:
    export = export_of(volume_of("an enhanced MR", tmp_path / "source"), tmp_path)
    for options in ({}, {"unseen": 0}):
        dataset = pydicom.dcmread(written(export, **options))
        instance = parametric_map_instance(export, **options)
        assert instance == (dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID)
    first = written(export).read_bytes()
    assert written(export).read_bytes() == first


def test_a_large_map_takes_one_copy_of_its_own_size(tmp_path: Path) -> None:
    small = volume_of("another grid", tmp_path / "source")
    grid = Grid((256, 200, 40), small.grid.affine, small.grid.frame_of_reference)
    source = replace(small.source, slices=(None,) * 40)
    volume = Volume(np.zeros(grid.shape, np.uint8), grid, "a.u.", source)
    relevance = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    export = export_of(volume, tmp_path, relevance)
    parametric_map_dataset(export)
    tracemalloc.start()
    path = written(export)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.2 * relevance.nbytes
    np.testing.assert_array_equal(values(pydicom.dcmread(path)), relevance.T[::-1])


def test_a_map_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    small = volume_of("another grid", tmp_path / "source")
    huge = np.broadcast_to(np.float32(1), (2048, 2048, 300))
    grid = Grid(huge.shape, small.grid.affine, small.grid.frame_of_reference)
    source = replace(small.source, slices=(None,) * 300)
    volume = Volume(np.broadcast_to(np.uint8(0), huge.shape), grid, "a.u.", source)
    with pytest.raises(OutputError, match=r"4\.7 GiB"):
        parametric_map(export_of(volume, tmp_path, huge))


@pytest.mark.parametrize("spacing", [(1.6, 1.6, 3.2), (0.7, 0.9, -3)])
def test_the_plane_is_told_in_the_sources_own_digits(spacing: tuple[float, float, float], tmp_path: Path) -> None:
    """OHIF 3.13 compares the cosines of map and source without any tolerance."""
    volume = series(tmp_path / "source", affine_of(OBLIQUE, spacing, (60, 70, -30)))
    dataset = parametric_map_dataset(export_of(volume, tmp_path))
    found = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    own = volume.source.instances[0].ImageOrientationPatient
    assert [float(each) for each in found] == [float(each) for each in own]
