"""Published ways of counting, quirks included, to stand beside medcam's own numbers. docs/protocols.md says how each differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from medcam.errors import UsageError
from medcam.validate.protocols import arun, chexlocalize, se3d, wsol


@dataclass(frozen=True)
class Protocol:
    """One published way of counting.

    Parameters
    ----------
    case
        Takes a map and a lesion mask of one case, both `i j k`, and gives what the cohort needs of it.
    cohort
        Takes these of all cases, and gives the published numbers by name.
    reference
        Where it was published.
    """

    case: Callable[[np.ndarray, np.ndarray], Any]
    cohort: Callable[[Sequence[Any]], dict[str, float]]
    reference: str


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "chexlocalize": Protocol(
            chexlocalize.case, chexlocalize.cohort, "Saporta et al., Nature Machine Intelligence 2022"
        ),
        "wsol": Protocol(wsol.case, wsol.cohort, "Choe et al., CVPR 2020 and TPAMI 2022"),
        "se3d": Protocol(
            se3d.case, se3d.cohort, "SE3D, a framework for saliency method evaluation in 3D imaging, 2024"
        ),
        "arun": Protocol(arun.case, arun.cohort, "Arun et al., Radiology: Artificial Intelligence 2021"),
    }
)


def protocol(name: str) -> Protocol:
    """Return a protocol by its name.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"there is no protocol named {name}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
