"""A MONAI transform that writes heatmaps in medcam's own formats: DICOM objects, pictures, NIfTI with its recipe beside it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform

from medcam.errors import GeometryError, InputError, UsageError
from medcam.formats import read, write
from medcam.geometry import Grid, resample
from medcam.plugins.maps import Finding, findings_of
from medcam.volume import Heatmap, Volume

__all__ = ["WriteHeatmapd", "heatmaps_of"]


class WriteHeatmapd(MapTransform):  # type: ignore[misc]
    """Write heatmaps beside the image that they explain, on the image's own grid; the dictionary stays as it is.

    It reads the image's file once more, by medcam, for what a DICOM object must say of its patient. The heatmap goes from the network's
    voxels to the image's by its affine, in one interpolation: put it right behind `Explaind`, without `Invertd`.

    Parameters
    ----------
    keys
        Of heatmaps that `Explaind` made.
    output_dir, formats, threshold
        As `medcam.write` takes them; `medcam formats` lists the formats.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        *,
        formats: str | Iterable[str] = ("nifti", "png"),
        threshold: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir, self.threshold = Path(output_dir), threshold
        self.formats = formats if isinstance(formats, str) else tuple(formats)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write one set of files for each channel of each heatmap.

        Raises
        ------
        InputError
            If the image's file cannot be read, or its name is not known.
        UsageError
            If a format does not exist, or this is no heatmap of `Explaind`'s.
        OutputError
            If a file cannot be written.
        """
        found = dict(data)
        for key in self.key_iterator(found):
            heatmap, text = found[key], found.get(f"{key}_recipes")
            path = heatmap.meta.get("filename_or_obj") if isinstance(heatmap, MetaTensor) else None
            if text is None:
                raise UsageError(f"there is no '{key}_recipes' beside '{key}': write what Explaind made")
            if not path:
                raise InputError(
                    f"the heatmap '{key}' does not know the file of its image; read images with LoadImaged"
                )
            volume = read(str(path))
            for each in heatmaps_of(heatmap, findings_of(text), volume):
                write(each, volume, self.output_dir, formats=self.formats, threshold=self.threshold)
        return found


def heatmaps_of(values: MetaTensor, findings: Iterable[Finding], volume: Volume) -> tuple[Heatmap, ...]:
    """Return the channels of a heatmap in a MONAI tensor as medcam's own, on the grid of the image that they explain.

    Parameters
    ----------
    values
        `n i j k` with a true affine, or `n i j` on the image's own pixels.

    Raises
    ------
    GeometryError
        If the heatmap lies nowhere in the image, or a film's heatmap is not on the film's pixels.
    """
    arrays = np.asarray(values.detach().cpu().as_tensor().numpy(), np.float32)
    placed = [_placed(array, np.asarray(values.affine, np.float64), volume.grid) for array in arrays]
    return tuple(
        Heatmap(
            relevance, volume.grid, volume.source, replace(one.recipe, inputs=(volume.source.sha256,)), one.recipe.target, one.score,
            one.probability, tuple(dict.fromkeys((*volume.source.notes, *one.notes))),
        )
        for relevance, one in zip(placed, findings, strict=True)
    )  # fmt: skip


def _placed(array: Float[np.ndarray, "..."], affine: np.ndarray, grid: Grid) -> Float[np.ndarray, "i j k"]:
    if array.ndim == 2:
        # What MONAI calls a film's affine says nothing of where the film is in the patient.
        if (*array.shape, 1) != grid.shape:
            raise GeometryError(
                f"a film's heatmap of {array.shape} pixels belongs onto a film of {grid.shape[:2]}: put Invertd before it is written"
            )
        return array[:, :, None]
    i, j, k = array.shape
    placed = resample(array, Grid((i, j, k), affine), grid)
    if not np.isfinite(placed).any():
        raise GeometryError(
            "the heatmap's affine puts it nowhere in the image; a transform before it does not say where voxels went"
        )
    return placed
