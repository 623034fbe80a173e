"""Maps of several layers fused into one, on the cells of the finest or at the input's size.

Maps of different layers are raw numbers in different units, so each is first divided by its own largest absolute value, sample by sample:
it then lies in [-1, 1], its sign and its zero are kept, and a map of zeros stays one. (Scaling by minimum and maximum, as other tools do,
would move the zero.) The fused map is in [-1, 1], too, and its sizes compare within a sample only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from medcam.engine.cells import Cells, resampled
from medcam.errors import UsageError

Scaled = Float[Tensor, "b *t"]

_GAMMA = 2.0


def fuse(maps: Sequence[Cells], how: str = "mean", *, input_shape: tuple[int, ...] | None = None) -> Cells:
    """Fuse maps of the same samples.

    Parameters
    ----------
    maps
        At least one, each on its own cells.
    how
        A name in `FUSIONS`.
    input_shape
        Fuse at the size of the input instead of on the cells of the finest map (the first of the finest).

    Raises
    ------
    UsageError
        If there is no map or no such fusion, or the maps are not of the same samples and axes.
    """
    if how not in FUSIONS:
        raise UsageError(f"maps are fused by {', '.join(FUSIONS)}, not by '{how}'")
    if len({(len(cells.stride), cells.values.shape[0]) for cells in maps}) != 1:
        raise UsageError("fusing needs the maps of at least one layer, all of the same samples with the same axes")
    # By the size of a cell in the input; equal ones stay in the order given.
    from_coarse = sorted(maps, key=lambda cells: -abs(prod(cells.stride)))
    finest = min(maps, key=lambda cells: abs(prod(cells.stride)))
    shape, stride, offset = finest.shape, finest.stride, finest.offset
    if input_shape is not None:
        shape, stride, offset = input_shape, (1.0,) * len(input_shape), (0.0,) * len(input_shape)
    scaled = [
        resampled(Cells(_scaled(cells.values), cells.stride, cells.offset), shape, stride=stride, offset=offset)
        for cells in from_coarse
    ]
    return Cells(FUSIONS[how](scaled), stride, offset)


def _scaled(values: Float[Tensor, "b *t"]) -> Scaled:
    largest = values.nan_to_num(0).flatten(1).abs().amax(1).reshape(-1, *(1,) * (values.ndim - 1))
    return values / torch.where(largest > 0, largest, 1)


def mean(maps: Sequence[Scaled]) -> Scaled:
    """Return the mean; evidence for and against cancels."""
    return torch.stack(list(maps)).mean(0)


def largest(maps: Sequence[Scaled]) -> Scaled:
    """Return the largest value: negative only where every layer is."""
    return torch.stack(list(maps)).amax(0)


def layer_cam_largest(maps: Sequence[Scaled], *, gamma: float = _GAMMA) -> Scaled:
    """Return the largest of tanh(gamma m), which lifts weak values, of which shallow layers have many, beside strong ones.

    References
    ----------
    Jiang et al., LayerCAM, IEEE Transactions on Image Processing 30, 2021, eq. 9 and the maximum after it, gamma = 2. Here every map is
    scaled, negative values by the same odd function.
    """
    return largest([(gamma * scaled).tanh() for scaled in maps])


def product(maps: Sequence[Scaled]) -> Scaled:
    """Return the product of the magnitudes, with their sign, where all layers agree in sign, and 0 elsewhere.

    Where all are positive this is the plain product; two layers that speak against the target do not make one that speaks for it.

    References
    ----------
    Domeniconi et al., How to evaluate and refine your CAM (RefineCAM), arXiv 2605.14641: the product over layers of maps scaled to a
    maximum of 1, there without negative values.
    """
    result, *others = maps
    for other in others:
        result = _where_they_agree(result, other.abs(), other)
    return result


def coarse_to_fine(maps: Sequence[Scaled], *, gamma: float = _GAMMA) -> Scaled:
    """Let the coarsest map say what matters and how much, and each finer one say where exactly.

    The coarsest map is multiplied by tanh(gamma |m|) of each finer map m where both have the same sign, and is 0 where they do not. The
    factor is near 1 wherever the finer map has more than weak evidence: it cuts the coarse map's soft edge to the finer one's boundary and
    does not hollow out what lies within, as the plain product does. Of two maps with cells of one size the one given first counts as
    coarser.

    References
    ----------
    medcam's own, of two published parts: the product over layers of RefineCAM (arXiv 2605.14641) with the scaling of shallow layers of
    LayerCAM (eq. 9).
    """
    result, *finer = maps
    for other in finer:
        result = _where_they_agree(result, (gamma * other.abs()).tanh(), other)
    return result


def _where_they_agree(result: Scaled, factor: Scaled, other: Scaled) -> Scaled:
    # A comparison with NaN is false, which would make 0 ("found nothing") of NaN ("not looked at").
    return torch.where(result.sign() * other.sign() < 0, 0, result * factor)


FUSIONS: dict[str, Callable[[Sequence[Scaled]], Scaled]] = {
    "mean": mean, "max": largest, "product": product, "coarse-to-fine": coarse_to_fine, "layer-cam": layer_cam_largest,
}  # fmt: skip
