"""Maps that point at shortcuts: on the border, in a corner, outside the body, on text; found without any annotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import ndimage
from scipy.cluster.hierarchy import fcluster, linkage

from medcam.validate.body import body

# Declared before any map was seen. A band along the edges, and squares in the corners, as shares of each in-plane side.
_BAND, _CORNER = 0.1, 0.15
# Letters and markers are as bright as the brightest of the picture, small, and near its edges.
_BRIGHT, _SMALL, _NEAR = 0.97, 0.01, 0.25
# From these shares of its positive relevance a map lies there. A map that is the same everywhere has 36 % on the border and 9 % in corners.
RULES = {"text": 0.3, "corner": 0.4, "outside": 0.5, "border": 0.7}
WORDS = {
    "text": "on text or markers", "corner": "in a corner", "outside": "outside the body", "border": "on the border",
}  # fmt: skip
# A cluster is told of from so many maps, and so large a share of all, of which at least so many lie there.
_FEWEST, _LEAST_SHARE, _MOST_OF = 3, 0.05, 0.5


@dataclass(frozen=True)
class Features:
    """Where a map lies in its image: shares of its positive relevance; NaN for a map that has none.

    Parameters
    ----------
    border, corner
        In a band along the edges of the slices, and in their corners.
    outside
        Outside the body; NaN for a film, or where no air is seen.
    text
        On small bright things near the edges, such as letters and markers.
    spread
        The share of the image that the map fills: 1 if it is the same everywhere.
    asymmetry
        How much more lies in one half, along the first axis, than in the other: 0 to 1.
    """

    border: float
    corner: float
    outside: float
    text: float
    spread: float
    asymmetry: float

    def lies(self) -> tuple[str, ...]:
        """Return the rules that the map meets, the most telling first."""
        return tuple(name for name, least in RULES.items() if getattr(self, name) >= least)


@dataclass(frozen=True)
class Cluster:
    """Maps that look alike.

    Parameters
    ----------
    members
        Their places among all maps, the most typical first.
    shortcut
        The rule that most of them meet, '' if none: then nothing speaks against them.
    """

    members: tuple[int, ...]
    shortcut: str


def features(
    relevance: Num[np.ndarray, "i j k"], image: Num[np.ndarray, "i j k"] | None, *, unit: str = "a.u."
) -> Features:
    """Return where a map lies in its image; without the image nothing is known of body and text."""
    mass = np.maximum(np.nan_to_num(np.asarray(relevance, np.float64)), 0)
    if not mass.sum() > 0:
        return Features(*[float("nan")] * 6)
    mass = mass / mass.sum()
    (across, down), nothing = (_from_edge(n) for n in mass.shape[:2]), float("nan")
    near = np.minimum(across[:, None], down[None, :]) < _BAND
    corners = (across[:, None] < _CORNER) & (down[None, :] < _CORNER)
    seen = None if image is None else body(image, unit=unit)
    half = mass.shape[0] // 2
    apart = mass[:half].sum() - mass[mass.shape[0] - half :].sum()
    return Features(
        float(mass[near].sum()),
        float(mass[corners].sum()),
        nothing if seen is None else float(mass[~seen].sum()),
        nothing if image is None else float(mass[text_or_markers(image)].sum()),
        float(1 / (mass.size * (mass**2).sum())),
        float(abs(apart)),
    )


def text_or_markers(image: Num[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """Return where small things as bright as the brightest lie near the edges of a slice, and what is next to them."""
    values = np.nan_to_num(np.asarray(image, np.float32))
    low, high = float(values.min()), float(values.max())
    across, down = (_from_edge(n) for n in values.shape[:2])
    near = np.minimum(across[:, None], down[None, :]) < _NEAR
    found = np.zeros(values.shape, bool)
    if high <= low:
        return found
    bright = values >= low + _BRIGHT * (high - low)
    for k in range(values.shape[2]):
        labels, count = ndimage.label(bright[:, :, k], np.ones((3, 3)))
        inside = np.bincount(labels[near], minlength=count + 1)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        kept = (sizes <= _SMALL * near.size) & (inside == sizes)
        kept[0] = False
        found[:, :, k] = ndimage.binary_dilation(kept[labels], iterations=max(1, round(0.02 * max(near.shape))))
    return found


def _from_edge(n: int) -> Float[np.ndarray, " n"]:
    """Return how far each voxel's centre lies from the nearer end of its axis, as a share of the axis."""
    place = (np.arange(n) + 0.5) / n
    return np.asarray(np.minimum(place, 1 - place))


def clusters(low: Float[np.ndarray, "n c"], about: Sequence[Features], *, most: int = 6) -> tuple[Cluster, ...]:
    """Group maps that look alike, the largest group first; maps without positive relevance belong to none.

    Parameters
    ----------
    low
        Maps of low resolution in a shared space, positive, each of sum 1.
    about
        Where each lies in its image.
    most
        How many groups there may be.

    References
    ----------
    Ward, Hierarchical grouping to optimize an objective function, JASA 1963, on Hellinger's distance; the idea: Lapuschkin et al.,
    Unmasking Clever Hans predictors, Nature Communications 2019.
    """
    told = np.flatnonzero(low.sum(1) > 0)
    if len(told) < 2:
        return tuple(Cluster((int(n),), "") for n in told)
    points = np.sqrt(low)
    groups: Int[np.ndarray, " n"] = fcluster(
        linkage(points[told], "ward"), min(most, max(1, len(told) // 5)), "maxclust"
    )
    labels = np.zeros(len(low), np.int64)
    labels[told] = groups
    found = []
    for label in np.unique(groups):
        members = np.flatnonzero(labels == label)
        away = np.linalg.norm(points[members] - points[members].mean(0), axis=1)
        members = members[np.argsort(away, kind="stable")]
        found.append(Cluster(tuple(int(n) for n in members), _shortcut([about[int(n)] for n in members], len(told))))
    return tuple(sorted(found, key=lambda cluster: -len(cluster.members)))


def _shortcut(members: Sequence[Features], count: int) -> str:
    if len(members) < _FEWEST or len(members) < _LEAST_SHARE * count:
        return ""
    for name in RULES:
        if np.mean([name in each.lies() for each in members]) >= _MOST_OF:
            return name
    return ""


def words(found: Sequence[Cluster], about: Sequence[Features]) -> tuple[str, ...]:
    """Say which clusters point at a shortcut and how many maps lie where; one sentence if none does."""
    known = [each for each in about if each.border == each.border]
    empty = len(about) - len(known)
    blank = (f"{empty} of {len(about)} maps have no positive relevance and lie nowhere.",) if empty else ()
    told = []
    for n, cluster in enumerate(found, 1):
        if cluster.shortcut:
            count = sum(cluster.shortcut in about[member].lies() for member in cluster.members)
            told.append(
                f"Cluster {n}: {count} of its {len(cluster.members)} maps lie {WORDS[cluster.shortcut]}: look at its examples."
            )
    if not told:
        return (
            f"No cluster of the {len(known)} maps points at the border, a corner, text or what lies outside the body.",
            *blank,
        )
    counts: Mapping[str, int] = {name: sum(name in each.lies() for each in known) for name in RULES}
    told += [f"{count} of {len(known)} maps lie {WORDS[name]}." for name, count in counts.items() if count]
    return (*told, *blank)
