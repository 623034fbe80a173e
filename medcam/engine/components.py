"""Principal components of a layer's channels: Eigen-CAM, EigenGrad-CAM, and eigen smoothing of any rule.

All of them take the matrix of terms T_k(p) = w_k(p) A_k(p), a row for each cell and a column for each channel, and give its first component
T v, v being the first right singular vector. It comes from the smaller of the two Gram matrices, channels x channels or cells x cells, and
products are held in blocks.

A singular vector has no sign of its own. Here T v takes the sign in which it agrees (has a positive inner product) with the plain sum of
the terms, which is the map without smoothing, so evidence for the target stays positive. Where all terms are positive (Eigen-CAM behind a
ReLU) so is the component. Where that inner product is zero to rounding, the value of largest magnitude is positive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from medcam.engine.cams import Weights

_BLOCK = 2**22
# An agreement below this share of what it could be is rounding noise, and decides nothing.
_NO_AGREEMENT = 1e-5


def eigen_cam(activation: Float[Tensor, "b c *t"], *, centred: bool = False) -> Float[Tensor, "b *t"]:
    """Return the first component of the activation itself. It knows no target: any class has the same map.

    Parameters
    ----------
    centred
        Subtract each channel's mean over the cells first, as pytorch-grad-cam does. The map then has mean zero, and zero means average
        rather than absent.

    References
    ----------
    Muhammad and Yeasin, Eigen-CAM, IJCNN 2020 (arXiv 2008.00299): the activation, as it is, projected on its first right singular vector.
    """
    return first_component(None, activation, centred=centred)


def eigengrad_cam(
    activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"], *, centred: bool = False
) -> Float[Tensor, "b *t"]:
    """Return the first component of activation times gradient: Eigen-CAM that knows the target.

    References
    ----------
    Without a paper: defined by pytorch-grad-cam's EigenGradCAM, which centres (`centred=True`) and leaves the sign open.
    """
    return first_component(gradient, activation, centred=centred)


def eigen_smooth(
    weights: Weights, activation: Float[Tensor, "b c *t"], *, centred: bool = False
) -> Float[Tensor, "b *t"]:
    """Return the first component of the weighted channels in place of their sum: less noise, and less of what few channels say.

    Takes the weights of any rule (`cams.channel_weights`), also those of methods that need no gradient.

    References
    ----------
    Without a paper: the option of this name in pytorch-grad-cam, which centres (`centred=True`) and leaves the sign open.
    """
    return first_component(weights, activation, centred=centred)


def first_component(
    weights: Weights | None, activation: Float[Tensor, "b c *t"], *, centred: bool = False
) -> Float[Tensor, "b *t"]:
    """Return T v for T = weights times activation (the activation alone if None); NaN for samples with values that are not finite."""
    cells = activation.flatten(2)
    factors = None if weights is None else weights.flatten(2) if weights.ndim > 2 else weights[..., None]
    terms = _Terms(cells, factors, _size(cells), None if factors is None else _size(factors))
    if centred:
        terms = replace(terms, means=torch.cat([part.mean(2, keepdim=True) for part, _ in terms.blocks(1)], 1))
    over_channels = cells.shape[1] <= cells.shape[2]
    gram = _gram(terms, over_channels)
    finite = gram.isfinite().flatten(1).all(1)[:, None]
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None], gram, 0))
    # Of the right singular vector v, T v; of the left one u, which is T v divided by the singular value, that times u.
    component = (
        terms.times(vectors[..., -1]) if over_channels else vectors[..., -1] * values[:, -1:].clamp(min=0).sqrt()
    )
    component = component * _sign(component, terms.times(torch.ones_like(cells[:, :, 0])))
    for size in (terms.cell_size, terms.factor_size):
        component = component if size is None else component * size[:, 0]
    return torch.where(finite, component, torch.nan).reshape(activation.shape[0], *activation.shape[2:])


@dataclass(frozen=True, eq=False)
class _Terms:
    """T of `first_component` as `b c n`, made block by block; each factor divided by its largest value, each channel's mean taken off.

    The squares in a Gram matrix would vanish or overflow long before the terms do.
    """

    cells: Tensor
    factors: Tensor | None
    cell_size: Tensor
    factor_size: Tensor | None
    means: Tensor | None = None

    def blocks(self, axis: int) -> Iterator[tuple[Tensor, slice]]:
        """Yield all terms in parts cut along channels (axis 1) or cells (axis 2), with where each lies on that axis."""
        n = self.cells.shape[axis]
        step = max(1, _BLOCK * n // max(1, self.cells.numel()))
        for start in range(0, n, step):
            part = slice(start, start + step)
            terms = _cut(self.cells, axis, part) / self.cell_size
            if self.factors is not None and self.factor_size is not None:
                terms = terms * (_cut(self.factors, axis, part) / self.factor_size)
            if self.means is not None:
                terms = terms - _cut(self.means, axis, part)
            yield terms, part

    def times(self, vector: Tensor) -> Tensor:
        """Return T v, `b n`, for v `b c`."""
        total = torch.zeros_like(self.cells[:, 0])
        for terms, part in self.blocks(1):
            total += (terms * vector[:, part, None]).sum(1)
        return total


def _cut(values: Tensor, axis: int, part: slice) -> Tensor:
    # What is the same for all cells has one.
    return values if values.shape[axis] == 1 else values[(slice(None),) * axis + (part,)]


def _size(values: Tensor) -> Tensor:
    largest = torch.linalg.vector_norm(values, torch.inf, dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, largest, 1)


def _gram(terms: _Terms, over_channels: bool) -> Tensor:
    n = terms.cells.shape[1 if over_channels else 2]
    gram = terms.cells.new_zeros(terms.cells.shape[0], n, n)
    # The products are summed over the other axis, so the blocks are cut along that. In place, so autocast does not touch them.
    for part, _ in terms.blocks(2 if over_channels else 1):
        turned = part.transpose(1, 2)
        gram.baddbmm_(part, turned) if over_channels else gram.baddbmm_(turned, part)
    return gram


def _sign(component: Tensor, plain: Tensor) -> Tensor:
    agreement = (component * plain).sum(1, keepdim=True)
    could_be = component.norm(dim=1, keepdim=True) * plain.norm(dim=1, keepdim=True)
    peak = component.gather(1, component.abs().argmax(1, keepdim=True))
    return torch.where(torch.where(agreement.abs() > _NO_AGREEMENT * could_be, agreement, peak) < 0, -1, 1)
