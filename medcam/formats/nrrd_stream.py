"""Voxels as NRRD, part by part: the same voxels give the same bytes, and no copy of the whole is made.

References
----------
Gordon Kindlmann, Definition of NRRD File Format, http://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Num

Write = Callable[[bytes], object]

_LPS_FROM_RAS = np.diag((-1.0, -1.0, 1.0))
_TYPES = {"u1": "unsigned char", "i2": "short", "f4": "float"}
# Heatmaps are smooth: more effort saves a few per cent and takes several times as long.
_EFFORT = 1
_GZIP = 31


def put_nrrd(
    write: Write,
    voxels: Num[np.ndarray, "*layers i j k"],
    affine: Float[np.ndarray, "4 4"],
    fields: Mapping[str, str],
    *,
    oriented: bool = True,
) -> None:
    """Write voxels (uint8, int16 or float32) in gzip, and where they lie.

    Parameters
    ----------
    write
        What takes the file's bytes, one part after the other.
    voxels
        Layers, if any, lie on the same places.
    affine
        `world_from_index`, RAS+ mm.
    fields
        Further keys and values, of one line each.
    oriented
        Whether the axes of space are the patient's. Otherwise they have no names; ITK and 3D Slicer take them for the same.
    """
    layers = voxels.ndim - 3
    place = _LPS_FROM_RAS @ affine[:3]
    lines = [
        "NRRD0004",
        f"type: {_TYPES[voxels.dtype.str[1:]]}",
        f"dimension: {voxels.ndim}",
        "space: left-posterior-superior" if oriented else "space dimension: 3",
        f"sizes: {' '.join(map(str, voxels.shape))}",
        f"space directions: {'none ' * layers}{' '.join(_vector(column) for column in place.T[:3])}",
        f"kinds: {'list ' * layers}domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(place[:, 3])}",
        *(f"{key}:={value}" for key, value in fields.items()),
        "",
        "",
    ]
    write("\n".join(lines).encode())
    packer = zlib.compressobj(_EFFORT, zlib.DEFLATED, _GZIP)
    little = voxels.dtype.newbyteorder("<")
    for k in range(voxels.shape[-1]):
        write(packer.compress(voxels[..., k].astype(little, copy=False).tobytes(order="F")))
    write(packer.flush())


def _vector(values: Float[np.ndarray, "3"]) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"
