"""Lesion masks from whatever they were drawn in, on the right voxels, with highdicom and dcmqi as referees of DICOM."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from matplotlib.path import Path as Outline
from PIL import Image
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import JPEGLSLossless, RLELossless, generate_uid

from conftest import oblique_grid
from formats import dicom_phantom as phantom
from medcam.errors import GeometryError, InputError, UsageError
from medcam.formats import read
from medcam.formats.masks import read_mask
from medcam.geometry import Grid
from medcam.occupancy import occupancy
from medcam.volume import Volume

SHAPE = (7, 5, 6)
OBLIQUE = phantom.GEOMETRIES["oblique"]


def labels(*, overlapping: bool = False) -> np.ndarray:
    """Three segments: 1 on slices 1 and 2, 2 on slice 2 and 5, 3 on slice 4; asymmetric in each axis."""
    mask = np.zeros((3, *SHAPE), bool)
    mask[0, 1:4, 2, 1] = mask[0, 1:3, 1:4, 2] = True
    mask[1, 5, 0:2, 2] = mask[1, 6, 4, 5] = mask[1, 0, 4, 5] = True
    mask[2, 2:6, 1:3, 4] = True
    mask[1, 2, 2, 2] = overlapping
    return mask


def as_one(mask: np.ndarray) -> np.ndarray:
    return (mask * np.arange(1, len(mask) + 1)[:, None, None, None]).max(axis=0)


def source_series(folder: Path, affine: np.ndarray = OBLIQUE) -> list[pydicom.Dataset]:
    voxels = phantom.stored_values(SHAPE)
    return [pydicom.dcmread(path) for path in phantom.write_series(folder, voxels, affine, modality="CT")]


def write_seg(
    path: Path,
    sources: Sequence[Any],
    mask: np.ndarray,
    kind: str = "BINARY",
    names: Sequence[str] = ("liver", "tumour", "Vessel"),
    **more: Any,
) -> Path:
    """A segmentation as highdicom writes it, from one mask for each segment, i j k."""
    import highdicom
    from pydicom.sr.codedict import codes

    # Frames by slice, rows and columns, segments.
    frames = np.moveaxis(mask, 0, -1).transpose(2, 1, 0, 3)
    if mask.dtype == bool:
        frames = (
            frames.astype(np.uint8)
            if kind != "LABELMAP"
            else (frames * np.arange(1, len(mask) + 1)).max(-1).astype(np.uint8)
        )
    segments = [
        highdicom.seg.SegmentDescription(
            n + 1, name, codes.SCT.Tissue, codes.SCT.Tissue, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for n, name in enumerate(names[: len(mask)])
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = highdicom.seg.Segmentation(
            sources, frames, kind, segments, series_instance_uid=generate_uid(), series_number=9,
            sop_instance_uid=generate_uid(), instance_number=1, manufacturer="m", manufacturer_model_name="m",
            software_versions="1", device_serial_number="1", **more,
        )  # fmt: skip
        made.save_as(path)
    return path


def saved_again(path: Path, change: Any) -> Path:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("geometry", phantom.GEOMETRIES)
def test_segments_lie_on_the_slices_that_they_were_drawn_on(tmp_path: Path, geometry: str) -> None:
    affine = phantom.GEOMETRIES[geometry]
    sources = source_series(tmp_path / "ct", affine)
    path = write_seg(tmp_path / "seg.dcm", sources, labels())
    image = read(tmp_path / "ct")
    mask = read_mask(path, like=image)
    assert mask.grid == image.grid
    # The volume's slices are sorted along their normal.
    expected = as_one(labels()) if image.grid.affine[:3, 2] @ affine[:3, 2] > 0 else as_one(labels())[:, :, ::-1]
    np.testing.assert_array_equal(mask.voxels, expected)
    assert (mask.voxels.dtype, mask.unit, mask.source.modality) == (np.uint8, "label", "SEG")
    assert "Labels: 1 'liver', 2 'tumour', 3 'Vessel'." in mask.source.notes
    # Without the image: slices 1 to 5, with an empty one where there is no frame.
    alone = read_mask(path)
    assert alone.grid.frame_of_reference == image.grid.frame_of_reference
    index = np.argwhere(alone.voxels)
    place = image.grid.index(alone.grid.world_mm(index))
    np.testing.assert_allclose(place, np.rint(place), atol=1e-3)
    assert len(index) == (expected > 0).sum()
    np.testing.assert_array_equal(alone.voxels[tuple(index.T)], expected[tuple(np.rint(place).astype(int).T)])


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless])
def test_each_kind_and_compression_holds_the_same_labels(tmp_path: Path, kind: str, syntax: str | None) -> None:
    if kind == "BINARY" and syntax:
        pytest.skip("single bits are not compressed")
    more = {"fractional_type": "PROBABILITY"} if kind == "FRACTIONAL" else {}
    path = write_seg(tmp_path / "seg.dcm", source_series(tmp_path / "ct"), labels(), kind, **more)
    if syntax:
        # GDCM's encoder, which comes first for RLE, ends the process at odd numbers of pixels.
        plugin = "pydicom" if syntax == RLELossless else "pyjpegls"
        saved_again(path, lambda dataset: dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False))
    np.testing.assert_array_equal(read_mask(path, like=read(tmp_path / "ct")).voxels, as_one(labels()))


def test_of_a_fraction_half_counts(tmp_path: Path) -> None:
    shares = np.zeros((1, *SHAPE), np.float32)
    shares[0, :, 1, 2] = [0, 0.2, 0.45, 0.51, 0.7, 1, 0]
    path = write_seg(
        tmp_path / "seg.dcm", source_series(tmp_path / "ct"), shares, "FRACTIONAL", fractional_type="OCCUPANCY"
    )
    mask = read_mask(path, like=read(tmp_path / "ct"))
    np.testing.assert_array_equal(mask.voxels, shares[0] > 0.5)
    assert any("half of the largest fraction" in note for note in mask.source.notes)


def test_one_segment_is_chosen_by_number_or_name_and_a_wrong_one_gets_the_list(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", source_series(tmp_path / "ct"), labels())
    image = read(tmp_path / "ct")
    for label, n in ((2, 1), ("2", 1), ("tumour", 1), ("vessel", 2), ("Vessel", 2)):
        mask = read_mask(path, label=label, like=image)
        np.testing.assert_array_equal(mask.voxels, labels()[n])
        assert mask.voxels.max() == 1
    with pytest.raises(UsageError, match=r"seg\.dcm has no label 'lesion'; it has 1 'liver', 2 'tumour', 3 'Vessel'"):
        read_mask(path, label="lesion", like=image)
    twice = write_seg(tmp_path / "twice.dcm", source_series(tmp_path / "ct"), labels(), names=("a", "b", "b"))
    with pytest.raises(UsageError, match="2 labels 'b'; choose by number: 2 'b', 3 'b'"):
        read_mask(twice, label="b", like=image)


def test_segments_that_overlap_are_read_one_by_one(tmp_path: Path) -> None:
    mask = labels(overlapping=True)
    path = write_seg(tmp_path / "seg.dcm", source_series(tmp_path / "ct"), mask)
    with pytest.raises(InputError, match=r"labels 1 'liver', 2 'tumour' of seg\.dcm overlap"):
        read_mask(path, like=read(tmp_path / "ct"))
    for n in range(3):
        np.testing.assert_array_equal(read_mask(path, label=n + 1, like=read(tmp_path / "ct")).voxels, mask[n])


def test_frames_on_uneven_slices_need_the_image(tmp_path: Path) -> None:
    mask = np.zeros((1, *SHAPE), bool)
    mask[0, 2, 3, [0, 2, 5]] = True
    path = write_seg(tmp_path / "seg.dcm", source_series(tmp_path / "ct"), mask)

    def forget(dataset: Dataset) -> None:
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        if "SpacingBetweenSlices" in measures:
            del measures.SpacingBetweenSlices

    saved_again(path, forget)
    with pytest.raises(GeometryError, match="uneven"):
        read_mask(path)
    np.testing.assert_array_equal(read_mask(path, like=read(tmp_path / "ct")).voxels, mask[0])

    def tell(dataset: Dataset) -> None:
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = "2.5"

    alone = read_mask(saved_again(path, tell))
    assert alone.grid.shape[2] == 6
    np.testing.assert_array_equal(np.argwhere(alone.voxels), np.argwhere(mask[0]))


def test_a_segmentation_of_another_image_keeps_its_own_grid(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", source_series(tmp_path / "ct"), labels())
    image = read(tmp_path / "ct")
    for other in (
        image.grid.coarsened(SHAPE, (1.0, 1.0, 1.0), (0.5, 0.0, 0.0)),
        image.grid.coarsened((7, 5, 3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
        Grid(SHAPE, image.grid.affine, "1.2.3"),
    ):
        mask = read_mask(path, like=other)
        assert mask.grid.shape == (7, 5, 5)
        assert mask.grid.frame_of_reference == image.grid.frame_of_reference


def test_a_film_is_segmented_pixel_by_pixel(tmp_path: Path) -> None:
    film = phantom.write_film(
        tmp_path / "dx", phantom.stored_values((7, 5, 1))[:, :, 0], tags={"ImagerPixelSpacing": ["0.2", "0.3"]}
    )
    mask = np.zeros((1, 7, 5, 1), bool)
    mask[0, 1:3, 4] = mask[0, 6, 0] = True
    source = pydicom.dcmread(film)
    source.ImageLaterality = "U"
    path = write_seg(tmp_path / "seg.dcm", [source], mask)
    found = read_mask(path, like=read(film))
    np.testing.assert_array_equal(found.voxels, mask[0])
    assert not found.source.placed


def test_the_one_segmentation_of_a_folder_or_zip_is_found_and_of_several_none(tmp_path: Path) -> None:
    write_seg(tmp_path / "ct" / "seg.dcm", source_series(tmp_path / "ct"), labels())
    image = read(tmp_path / "ct")
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for file in (tmp_path / "ct").iterdir():
            archive.write(file, f"../{file.name}")
    for place in (tmp_path / "ct", tmp_path / "study.zip"):
        np.testing.assert_array_equal(read_mask(place, like=image).voxels, as_one(labels()))
    write_seg(tmp_path / "ct" / "other.dcm", source_series(tmp_path / "ct"), labels())
    with pytest.raises(InputError, match="ct holds 2 segmentations or structure sets; give one of"):
        read_mask(tmp_path / "ct", like=image)


def test_the_real_segmentation_is_where_dcmqi_and_highdicom_put_it(tmp_path: Path, real_data: Path) -> None:
    import highdicom

    path = real_data / "ct_dicomseg" / "liver.dcm"
    image = read(real_data / "ct_dicomseg", series=_series_of(real_data / "ct_dicomseg" / "01.dcm"))
    mask, alone = read_mask(path, like=image), read_mask(path, label="Liver")
    assert mask.grid == image.grid
    np.testing.assert_array_equal(mask.voxels, alone.voxels)
    assert alone.grid.is_close(image.grid, 1e-2)
    tool = Path(sys.executable).with_name("segimage2itkimage")
    if not tool.exists():
        pytest.skip("dcmqi is not installed")
    command = [str(tool), "--inputDICOM", str(path), "--outputDirectory", str(tmp_path), "--outputType", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    itk = sitk.ReadImage(str(tmp_path / "1.nrrd"))
    values = sitk.GetArrayFromImage(itk).T
    assert (values > 0).sum() == alone.voxels.sum() > 1000
    for index in np.argwhere(values)[[0, 500, -1]]:
        place = np.array(itk.TransformIndexToPhysicalPoint([int(n) for n in index])) * [-1, -1, 1]
        found = alone.grid.index(place)
        np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
        assert alone.voxels[tuple(np.rint(found).astype(int))] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    assert (volume.array > 0).sum() == alone.voxels.sum()


def test_the_real_lesions_of_a_patient_fill_the_same_volume_on_any_grid(real_data: Path) -> None:
    mask = read_mask(real_data / "mri_ms" / "patient26_lesions.nii.gz")
    assert (mask.voxels.sum(), mask.voxels.dtype) == (8227, np.uint8)
    drawn, grid = mask.voxels > 0, mask.grid
    coarse = grid.coarsened((46, 55, 46), (4.0, 4.0, 4.0), (1.5, 1.5, 1.5))
    assert occupancy(drawn, grid, coarse).sum() * 64 == pytest.approx(8227, rel=1e-5)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    oblique = Grid((60, 72, 60), turn @ grid.affine @ np.diag([3.0, 3, 3, 1]))
    assert occupancy(drawn, grid, oblique).sum() * 27 == pytest.approx(8227, rel=5e-3)


def _series_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID)


# Structure sets


def contour(points: np.ndarray, kind: str = "CLOSED_PLANAR") -> Dataset:
    """Points in RAS mm."""
    made = Dataset()
    made.ContourGeometricType, made.NumberOfContourPoints = kind, len(points)
    made.ContourData = phantom.decimals((np.asarray(points, float) @ phantom.LPS_FROM_RAS).ravel())
    return made


def write_structures(path: Path, structures: dict[str, list[Dataset]], frame: str | None = None) -> Path:
    dataset = phantom.image(np.zeros((1, 1), np.uint8), "RTSTRUCT", 5, "contours", None, "MONOCHROME2", "rt")
    del dataset.PixelData
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["rt"])
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Items(), Items()
    for n, (name, contours) in enumerate(structures.items()):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = n + 1, name
        roi.ReferencedFrameOfReferenceUID = frame or generate_uid(entropy_srcs=["frame of reference"])
        drawn.ReferencedROINumber = n + 1
        if contours:
            drawn.ContourSequence = Items(contours)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    return phantom.save(dataset, path)


def on_slice(grid: Grid, corners: Sequence[Sequence[float]], k: float) -> np.ndarray:
    """The place of corners that are given in indices i j of slice k."""
    return grid.world_mm(np.column_stack([np.asarray(corners, float), np.full(len(corners), k)]))


SQUARE = [[1.5, 0.5], [5.5, 0.5], [5.5, 3.5], [1.5, 3.5]]
HOLE = [[2.5, 1.5], [4.5, 1.5], [4.5, 2.5], [2.5, 2.5]]


@pytest.fixture
def image(tmp_path: Path) -> Volume:
    source_series(tmp_path / "ct")
    return read(tmp_path / "ct")


def square() -> np.ndarray:
    mask = np.zeros(SHAPE[:2], bool)
    mask[2:6, 1:4] = True
    return mask


def test_a_contour_between_the_centres_holds_the_voxels_within(tmp_path: Path, image: Volume) -> None:
    drawn = [contour(on_slice(image.grid, SQUARE, k)) for k in (1, 2, 4)]
    path = write_structures(tmp_path / "rt.dcm", {"GTV": drawn})
    mask = read_mask(path, like=image)
    expected = np.zeros(SHAPE, bool)
    expected[:, :, [1, 2, 4]] = square()[:, :, None]
    np.testing.assert_array_equal(mask.voxels, expected)
    assert mask.grid == image.grid
    assert any("1 'GTV': no contour on slices 3 between others" in note for note in mask.source.notes)


@pytest.mark.parametrize("way", ["nested", "keyhole", "CLOSEDPLANAR_XOR", "stored twice"])
def test_holes_are_holes_however_they_are_drawn(tmp_path: Path, image: Volume, way: str) -> None:
    outer, hole = on_slice(image.grid, SQUARE, 3), on_slice(image.grid, HOLE, 3)
    kind = way if way.isupper() else "CLOSED_PLANAR"
    contours = [outer, hole] if way != "keyhole" else [np.vstack([outer, outer[:1], hole[::-1], hole[-1:]])]
    if way == "stored twice":
        contours += [outer]
    path = write_structures(tmp_path / "rt.dcm", {"ring": [contour(each, kind) for each in contours]})
    expected = square()
    expected[3:5, 2] = False
    np.testing.assert_array_equal(read_mask(path, like=image).voxels[:, :, 3], expected)


def test_curved_contours_on_an_oblique_image_hold_what_matplotlib_says(tmp_path: Path) -> None:
    grid = oblique_grid((31, 37, 5))
    rng = np.random.default_rng(2)
    expected = np.zeros(grid.shape, bool)
    drawn = []
    places = np.stack(np.meshgrid(np.arange(31), np.arange(37), indexing="ij"), -1).reshape(-1, 2)
    for k in range(1, 4):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 60))
        corners = np.stack([14 + 11 * np.cos(angle) * rng.uniform(0.7, 1, 60), 17 + 13 * np.sin(angle)], axis=1)
        drawn.append(contour(on_slice(grid, corners, k)))
        # As the file rounds them.
        stored = np.array(drawn[-1].ContourData, float).reshape(-1, 3) @ phantom.LPS_FROM_RAS
        expected[:, :, k] = Outline(grid.index(stored)[:, :2]).contains_points(places).reshape(31, 37)
    mask = read_mask(write_structures(tmp_path / "rt.dcm", {"a": drawn}), like=grid)
    np.testing.assert_array_equal(mask.voxels, expected)
    assert mask.voxels.sum() > 500


def test_contours_across_the_slices_fill_their_own_planes(tmp_path: Path, image: Volume) -> None:
    corners = image.grid.world_mm(np.array([[3, 0.5, 1.5], [3, 3.5, 1.5], [3, 3.5, 4.5], [3, 0.5, 4.5]]))
    mask = read_mask(write_structures(tmp_path / "rt.dcm", {"a": [contour(corners)]}), like=image)
    expected = np.zeros(SHAPE, bool)
    expected[3, 1:4, 2:5] = True
    np.testing.assert_array_equal(mask.voxels, expected)


def test_points_mark_their_voxels(tmp_path: Path, image: Volume) -> None:
    places = image.grid.world_mm(np.array([[2.3, 1.4, 3.4], [99, 0, 0]]))
    path = write_structures(tmp_path / "rt.dcm", {"peak": [contour(place[None], "POINT") for place in places]})
    mask = read_mask(path, like=image)
    np.testing.assert_array_equal(np.argwhere(mask.voxels), [[2, 1, 3]])
    assert any("1 contours or points lie beyond the image" in note for note in mask.source.notes)


def test_structures_are_chosen_and_overlaps_named(tmp_path: Path, image: Volume) -> None:
    both = {
        "body": [contour(on_slice(image.grid, SQUARE, 3))],
        "none": [],
        "core": [contour(on_slice(image.grid, HOLE, 3))],
    }
    path = write_structures(tmp_path / "rt.dcm", both)
    with pytest.raises(InputError, match=r"labels 1 'body', 3 'core' of rt\.dcm overlap"):
        read_mask(path, like=image)
    assert read_mask(path, label="core", like=image).voxels.sum() == 2
    assert read_mask(path, label=1, like=image.grid).voxels.sum() == 12
    with pytest.raises(UsageError, match="has no label 'none'; it has 1 'body', 3 'core'"):
        read_mask(path, label="none", like=image)


def test_what_cannot_be_filled_rightly_is_refused_by_name(tmp_path: Path, image: Volume) -> None:
    grid = image.grid

    def refusing(
        contours: list[Dataset], error: type[Exception], words: str, like: Any = image, frame: str | None = None
    ) -> None:
        path = write_structures(tmp_path / "rt.dcm", {"GTV": contours}, frame)
        with pytest.raises(error, match=words) as raised:
            read_mask(path, like=like)
        assert not any(marker in str(raised.value) for marker in phantom.MARKERS)

    good = contour(on_slice(grid, SQUARE, 3))
    refusing([good], InputError, "give the image that they were drawn on", like=None)
    refusing([good], GeometryError, "another frame of reference", frame="1.2.3")
    refusing(
        [contour(on_slice(grid, SQUARE, 2.4))], GeometryError, "between slices 2 and 3 of the image .*0.40 of a step"
    )
    slope = np.array(on_slice(grid, SQUARE, 2))
    slope[:2] += grid.affine[:3, 2] * 0.7
    refusing([contour(slope)], GeometryError, "oblique to the image's slices")
    refusing([contour(on_slice(grid, SQUARE, 3), "OPEN_PLANAR")], InputError, "of the kind OPEN_PLANAR")
    refusing([contour(on_slice(grid, SQUARE, 30))], GeometryError, "the centre of no voxel")
    refusing([contour(on_slice(grid, np.array(HOLE) * 0.1 + 1.3, 3))], GeometryError, "smaller than a voxel")
    broken = contour(on_slice(grid, SQUARE, 3))
    broken.NumberOfContourPoints = 7
    refusing([broken], InputError, "12 coordinates of 7 points")
    far = contour(on_slice(grid, SQUARE, 3))
    far.ContourData = ["1e300"] * 12
    refusing([far], InputError, "is damaged")
    del far.ContourData
    refusing([far], InputError, "damaged")


# Other files


def test_labels_of_nifti_metaimage_and_nrrd_are_whole_numbers(tmp_path: Path) -> None:
    grid = oblique_grid(SHAPE)
    drawn = as_one(labels())
    for dtype in (np.float64, np.int16, np.uint8):
        nibabel.save(nibabel.Nifti1Image(drawn.astype(dtype), grid.affine), tmp_path / "m.nii.gz")
        mask = read_mask(tmp_path / "m.nii.gz")
        np.testing.assert_array_equal(mask.voxels, drawn)
        assert (mask.voxels.dtype, mask.grid.is_close(grid)) == (np.uint8, True)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", label=2).voxels, drawn == 2)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", label="3").voxels, drawn == 3)
    with pytest.raises(UsageError, match="has no label 'tumour'; it has 1, 2, 3"):
        read_mask(tmp_path / "m.nii.gz", label="tumour")
    sitk.WriteImage(sitk.GetImageFromArray(drawn.astype(np.uint16).T * 300), str(tmp_path / "m.mha"))
    mask = read_mask(tmp_path / "m.mha")
    np.testing.assert_array_equal(mask.voxels, drawn.astype(int) * 300)
    assert mask.voxels.dtype == np.uint16
    nrrd.write(str(tmp_path / "m.nrrd"), drawn.astype(np.int32))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nrrd").voxels, drawn)
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), grid.affine), tmp_path / "empty.nii")
    assert not read_mask(tmp_path / "empty.nii").voxels.any()
    four = np.stack([drawn == 1, drawn == 2], -1).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(four, grid.affine), tmp_path / "4d.nii")
    np.testing.assert_array_equal(read_mask(tmp_path / "4d.nii", volume=1).voxels, drawn == 2)


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, data, words in (
        ("soft", np.linspace(0, 1, 210).reshape(SHAPE), "values between labels"),
        ("nan", np.where(as_one(labels()) == 1, np.nan, 0), "values between labels"),
        ("negative", as_one(labels()).astype(np.int16) - 1, "an image and no mask"),
        ("image", rng.permutation(2000).reshape(20, 10, 10).astype(np.int16), "holds 1999 different values"),
    ):
        nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / f"{name}.nii")
        with pytest.raises(InputError, match=words):
            read_mask(tmp_path / f"{name}.nii")
    with pytest.raises(InputError, match="there is nothing at"):
        read_mask(tmp_path / "absent.nii")


def test_pictures_of_masks(tmp_path: Path) -> None:
    drawn = np.zeros((7, 5), np.uint8)
    drawn[2:4, 1] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png").voxels[:, :, 0].T, drawn)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", label=255).voxels[:, :, 0].T, drawn > 0)
    smooth = drawn.copy()
    smooth[4, 1], smooth[5, 1] = 120, 40
    Image.fromarray(smooth).save(tmp_path / "smooth.png")
    with pytest.raises(InputError, match="smoothed borders"):
        read_mask(tmp_path / "smooth.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "smooth.png", label=255).voxels[:, :, 0].T, drawn > 0)
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "labels.png").voxels[:, 0, 0], [0, 1, 2])
    Image.fromarray(drawn).save(tmp_path / "mask.jpg")
    with pytest.raises(InputError, match="blurs the borders of labels"):
        read_mask(tmp_path / "mask.jpg")


def slicer_fields(names: Sequence[str], **more: Sequence[str]) -> dict[str, str]:
    fields = {}
    for n, name in enumerate(names):
        fields |= {f"Segment{n}_ID": f"Segment_{n}", f"Segment{n}_Name": name}
        fields |= {f"Segment{n}_{key}": values[n] for key, values in more.items()}
    return fields


def test_segments_of_3d_slicer_have_names_and_may_lie_in_layers(tmp_path: Path) -> None:
    mask, path = labels(overlapping=True), tmp_path / "case.seg.nrrd"
    grid = oblique_grid(SHAPE)
    layered = np.stack([mask[0] + 2 * mask[2], mask[1]]).astype(np.uint8)
    space = {"space": "RAS", "space origin": grid.affine[:3, 3], "kinds": ["list", "domain", "domain", "domain"]}
    steps = np.vstack([np.full(3, np.nan), grid.affine[:3, :3].T])
    fields = slicer_fields(("liver", "tumour", "Gef"), LabelValue=("1", "1", "2"), Layer=("0", "1", "0"))
    nrrd.write(str(path), layered, {**space, "space directions": steps, **fields})
    path.write_bytes(path.read_bytes().replace(b"Gef", "Gefäß".encode()))  # pynrrd writes ASCII
    for label, n in (("liver", 0), ("tumour", 1), ("Gefäß", 2), (3, 2)):
        found = read_mask(path, label=label)
        np.testing.assert_array_equal(found.voxels, mask[n])
        assert found.grid.is_close(grid)
    assert found.source.label == "case"
    with pytest.raises(InputError, match=r"labels 1 'liver', 2 'tumour' of case\.seg\.nrrd overlap"):
        read_mask(path)
    # One layer: labels as they are stored.
    flat = {"space": "RAS", "space origin": grid.affine[:3, 3], "space directions": grid.affine[:3, :3].T}
    fields = slicer_fields(("a", "b"), LabelValue=("7", "4"), Layer=("0", "0"))
    nrrd.write(str(path), (7 * mask[0] + 4 * mask[2]).astype(np.uint8), {**flat, **fields})
    np.testing.assert_array_equal(read_mask(path).voxels, 7 * mask[0] + 4 * mask[2])
    np.testing.assert_array_equal(read_mask(path, label=4).voxels, mask[2])
    # From before 3D Slicer 4.11: a layer for each, without numbers.
    nrrd.write(str(path), mask.astype(np.uint8), {**space, "space directions": steps, **slicer_fields(("a", "b", "c"))})
    np.testing.assert_array_equal(read_mask(path, label="b").voxels, mask[1])
    fields = slicer_fields(("a",), Layer=("9",))
    nrrd.write(str(path), mask[0].astype(np.uint8), {**flat, **fields})
    with pytest.raises(InputError, match="a segment in layer 9"):
        read_mask(path)
    fields = slicer_fields(("a",), LabelValue=("one",))
    nrrd.write(str(path), mask[0].astype(np.uint8), {**flat, **fields})
    with pytest.raises(InputError, match="label or layer is no number"):
        read_mask(path)


def test_damaged_dicom_is_a_named_error_without_the_patient(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", source_series(tmp_path / "ct"), labels())
    whole = path.read_bytes()

    def no_segment(dataset: Dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[1].SegmentIdentificationSequence

    def few_frames(dataset: Dataset) -> None:
        dataset.PixelData = dataset.PixelData[:8]

    def huge(dataset: Dataset) -> None:
        dataset.Rows = dataset.Columns = 65535

    def no_number(dataset: Dataset) -> None:
        del dataset.SegmentSequence[0].SegmentNumber

    for change, words in (
        (no_segment, "does not say of which segment"),
        (few_frames, "cut short|fewer frames"),
        (huge, "GiB|cut short|fewer frames"),
        (no_number, "is damaged"),
    ):
        path.write_bytes(whole)
        with pytest.raises(InputError, match=words) as raised:
            read_mask(saved_again(path, change))
        assert "seg.dcm" in str(raised.value) or "GiB" in str(raised.value)
        assert not any(marker in str(raised.value) for marker in phantom.MARKERS)
    assert not any(marker in json.dumps(read_mask_notes(path, whole)) for marker in phantom.MARKERS)


def read_mask_notes(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    found = read_mask(path)
    return [*found.source.notes, found.source.label, repr(found.source)]
