"""Made-up DICOM that holds many pictures in one file: enhanced multi-frame images and Siemens mosaics, by pydicom."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from formats.dicom_phantom import LPS_FROM_RAS, MARKERS, change, decimals, image, save

ENHANCED = {
    "MR": "1.2.840.10008.5.1.4.1.1.4.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "PT": "1.2.840.10008.5.1.4.1.1.130",
    "legacy MR": "1.2.840.10008.5.1.4.1.1.4.4",
    "legacy CT": "1.2.840.10008.5.1.4.1.1.2.2",
    # Multi-frame Grayscale Word Secondary Capture.
    "OT": "1.2.840.10008.5.1.4.1.1.7.3",
}


def item(**elements: Any) -> Dataset:
    """Return a dataset with these elements."""
    made = Dataset()
    change(made, elements)
    return made


def write_enhanced(
    folder: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    *,
    kind: str = "MR",
    order: Sequence[int] | None = None,
    frame_groups: Callable[[int], Mapping[str, Dataset]] | None = None,
    shared_groups: Mapping[str, Dataset] | None = None,
    positions: Sequence[int] | None = None,
    rescale: Callable[[int], tuple[float, float]] = lambda n: (1, 0),
    oriented_per_frame: bool = False,
    tags: Mapping[str, Any] | None = None,
    number: int = 6,
    name: str = "enhanced.dcm",
    uid_seed: str = "enhanced",
    instance: int = 1,
    transfer_syntax: str = ExplicitVRLittleEndian,
) -> Path:
    """Write one file whose frame n holds voxels[:, :, n] and lies at slice `positions[n]` of the grid (n by default).

    Parameters
    ----------
    order
        In which order frames are stored; everything else is told by n.
    frame_groups, shared_groups
        More functional groups, by the keyword of their sequence.
    rescale
        Slope and intercept of frame n.
    oriented_per_frame
        Tell orientation and pixel measures of each frame, not of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = LPS_FROM_RAS @ np.asarray(affine, float)[:3]
    spacing = np.linalg.norm(columns[:, :3], axis=0)
    directions = columns[:, :2] / spacing[:2]
    modality = kind.rpartition(" ")[2]
    frames = list(range(voxels.shape[2])) if order is None else list(order)
    dataset = image(voxels[:, :, 0], modality, number, "enhanced", None, "MONOCHROME2", f"{uid_seed}/{name}")
    dataset.SOPClassUID = ENHANCED[kind]
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[uid_seed])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame of reference"])
    dataset.InstanceNumber = instance
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.Manufacturer = "Siemens"
    dataset.NumberOfFrames = len(frames)
    dataset.PixelData = np.ascontiguousarray(voxels.transpose(2, 1, 0)[frames]).tobytes()
    plane = {
        "PlaneOrientationSequence": item(ImageOrientationPatient=decimals([*directions[:, 0], *directions[:, 1]])),
        "PixelMeasuresSequence": item(
            PixelSpacing=decimals([spacing[1], spacing[0]]),
            SliceThickness=decimals([spacing[2]])[0],
            SpacingBetweenSlices=decimals([spacing[2]])[0],
        ),
    }
    shared = {**({} if oriented_per_frame else plane), **(shared_groups or {})}
    dataset.SharedFunctionalGroupsSequence = [_groups(shared)]
    per_frame = []
    for n in frames:
        k = n if positions is None else positions[n]
        slope, intercept = decimals(rescale(n))
        own = {
            "FrameContentSequence": item(
                StackID="1", InStackPositionNumber=k + 1, TemporalPositionIndex=1, DimensionIndexValues=[1, k + 1]
            ),
            "PlanePositionSequence": item(ImagePositionPatient=decimals(columns @ (0, 0, k, 1))),
            "PixelValueTransformationSequence": item(
                RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU" if modality == "CT" else "US"
            ),
            "FrameVOILUTSequence": item(WindowCenter=str(100 + n), WindowWidth=str(400 + n)),
            **(plane if oriented_per_frame else {}),
        }
        for keyword, group in (frame_groups(n) if frame_groups else {}).items():
            own[keyword] = item(**{each.keyword: each.value for each in (*own.get(keyword, Dataset()), *group)})
        per_frame.append(_groups(own))
    dataset.PerFrameFunctionalGroupsSequence = per_frame
    change(dataset, tags or {})
    return save(dataset, folder / name, transfer_syntax=transfer_syntax)


def _groups(groups: Mapping[str, Dataset]) -> Dataset:
    return item(**{keyword: [group] for keyword, group in groups.items()})


def write_mosaic(
    folder: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    *,
    csa: Mapping[str, tuple[str, Sequence[str]]] | None = None,
    with_csa: bool = True,
    tags: Mapping[str, Any] | None = None,
    name: str = "mosaic.dcm",
    uid_seed: str = "mosaic",
    instance: int = 1,
    transfer_syntax: str = ExplicitVRLittleEndian,
) -> Path:
    """Write the slices of voxels (stored integers, i j k) as tiles of one picture, row after row, as Siemens does.

    Parameters
    ----------
    csa
        More elements of the private header, or others in their place: VR and values by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns, rows, count = voxels.shape
    across = math.ceil(math.sqrt(count))
    mosaic = np.zeros((columns * across, rows * across), voxels.dtype)
    for k in range(count):
        i, j = k % across * columns, k // across * rows
        mosaic[i : i + columns, j : j + rows] = voxels[:, :, k]
    lps = LPS_FROM_RAS @ np.asarray(affine, float)[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    # The header places a slice of the mosaic's size about the centre of the first tile.
    half = (np.array(mosaic.shape) - (columns, rows)) / 2
    corner = lps @ (-half[0], -half[1], 0, 1)
    dataset = image(mosaic, "MR", 9, "mosaic", 12, "MONOCHROME2", f"{uid_seed}/{name}")
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[uid_seed])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame of reference"])
    dataset.InstanceNumber = dataset.AcquisitionNumber = instance
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    dataset.Manufacturer = "SIEMENS"
    dataset.ImageOrientationPatient = decimals([*lps[:, 0] / spacing[0], *lps[:, 1] / spacing[1]])
    dataset.ImagePositionPatient = decimals(corner)
    dataset.PixelSpacing = decimals([spacing[1], spacing[0]])
    dataset.SliceThickness = decimals([spacing[2] * 0.9])[0]
    dataset.SpacingBetweenSlices = decimals([spacing[2]])[0]
    dataset.RepetitionTime, dataset.EchoTime = "2000", "30"
    if with_csa:
        told = {
            "EchoLinePosition": ("IS", [str(rows // 2)]),
            "NumberOfImagesInMosaic": ("US", [str(count)]),
            "SliceNormalVector": ("FD", [f"{each:.8f}" for each in lps[:, 2] / spacing[2]]),
            "AcquisitionMatrixText": ("SH", [f"{columns}*{rows}"]),
            "ProtocolSliceNumber": ("IS", ["0"]),
            **(csa or {}),
        }
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x08, "CS", "IMAGE NUM 4")
        block.add_new(0x10, "OB", csa_header(told))
    change(dataset, tags or {})
    return save(dataset, folder / name, transfer_syntax=transfer_syntax)


def csa_header(elements: Mapping[str, tuple[str, Sequence[str]]]) -> bytes:
    """Return a Siemens CSA header of the second kind ('SV10')."""
    made = b"SV10\4\3\2\1" + struct.pack("<2I", len(elements), 77)
    for name, (vr, values) in elements.items():
        made += struct.pack("<64si4s3i", name.encode(), len(values), vr.encode(), 6, len(values), 77)
        for value in values:
            text = value.encode() + b"\0"
            made += struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)
    return made


__all__ = ["MARKERS", "csa_header", "item", "write_enhanced", "write_mosaic"]
