"""The class-activation rules: pure functions of a layer's activation and the score's gradient at it.

A rule gives weights for the activation, one for each channel (`b c`) or one for each channel and cell (`b c *t`), and `combine` sums the
weighted channels to a signed map `b *t`; in 2D and 3D alike, each sample as if alone. No rule applies the final ReLU of its paper:
relevance stays signed until it is drawn.

A is the activation, g the gradient of the score at it, p and q are cells, Z is the number of cells. The weights of a channel depend on that
channel alone, so `cam` works through the channels in blocks and never holds all products. Half precision is cast by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from medcam.errors import UsageError

Weights = Float[Tensor, "b c"] | Float[Tensor, "b c *t"]
WeightRule = Callable[[Float[Tensor, "b c *t"], Float[Tensor, "b c *t"]], Weights]

# Products held at once, in elements: on a CPU what stays in its cache; elsewhere more, to keep the number of launches small.
_BLOCK_CPU, _BLOCK_OTHER = 2**20, 2**24
_MOST_BLOCKS = 6
# A sum this much smaller than the sum of absolute values is a difference of large numbers, and its sign means nothing.
_CROSSING = 1e-3


def cam(
    rule: WeightRule, activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]
) -> Float[Tensor, "b *t"]:
    """Return the map of a rule: its weights times the activation, summed over channels.

    The same as `combine(channel_weights(rule, activation, gradient), activation)`, without holding weights or products of all cells.
    """
    parts = (
        _weighted_sum(rule(activation[:, block], gradient[:, block]), activation[:, block])
        for block in _blocks(activation)
    )
    return _total(parts)


def channel_weights(
    rule: WeightRule, activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]
) -> Weights:
    """Return a rule's weights alone, with the rule's intermediate results bounded as in `cam`."""
    parts = [rule(activation[:, block], gradient[:, block]) for block in _blocks(activation)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def combine(weights: Weights, activation: Float[Tensor, "b c *t"]) -> Float[Tensor, "b *t"]:
    """Sum the weighted channels: sum_k w_k A_k(p), or sum_k w_k(p) A_k(p) where weights differ from cell to cell."""
    if weights.ndim == 2:
        return _weighted_sum(weights, activation)
    return _total(_weighted_sum(weights[:, block], activation[:, block]) for block in _blocks(activation))


def _weighted_sum(weights: Tensor, activation: Tensor) -> Tensor:
    if weights.ndim > 2:
        return (weights * activation).sum(1)
    # Inside a caller's autocast this product alone would be taken in half precision.
    with torch.autocast(activation.device.type, enabled=False):
        summed = torch.bmm(weights[:, None], activation.flatten(2))
    return summed.reshape(activation.shape[0], *activation.shape[2:])


def _total(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total += part
    return total


def _blocks(activation: Tensor) -> Iterator[slice]:
    """Cut the channels so that one block's products stay small beside the activation itself."""
    channels = activation.shape[1]
    elements = activation.numel()
    block = _BLOCK_CPU if activation.device.type == "cpu" else max(_BLOCK_OTHER, elements // _MOST_BLOCKS)
    step = max(1, block * channels // max(1, elements))
    return (slice(start, start + step) for start in range(0, channels, step))


def grad_cam(activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]) -> Float[Tensor, "b *t"]:
    """Return the map of Grad-CAM (`grad_cam_weights`)."""
    return cam(grad_cam_weights, activation, gradient)


def grad_cam_weights(activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]) -> Float[Tensor, "b c"]:
    """Weigh each channel by the mean of its gradient: w_k = sum_p g_k(p) / Z.

    References
    ----------
    Selvaraju et al., Grad-CAM, ICCV 2017, eqs. 1 and 2, without the ReLU of eq. 2. For a segmentation score (the sum of a class over a
    region) this is Seg-Grad-CAM: Vinogradova et al., AAAI 2020 (arXiv 2002.11434).
    """
    return gradient.flatten(2).mean(2)


def cam_weights(activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]) -> Float[Tensor, "b c"]:
    """Weigh each channel by the sum of its gradient: w_k = sum_p g_k(p).

    Behind the layer, a network of the original CAM has a global average and one linear layer: y = sum_k W_k mean_p A_k(p) + bias. Then the
    sum of the gradient is W_k itself, and the mean of the map is the score without its bias. The caller checks that the network is so.

    References
    ----------
    Zhou et al., Learning deep features for discriminative localization, CVPR 2016, eq. 2.
    """
    return gradient.flatten(2).sum(2)


def grad_cam_pp_weights(activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]) -> Float[Tensor, "b c"]:
    """Weigh each channel by its positive gradients, those of cells with larger ones damped by the channel's sum.

    w_k = sum_p alpha_k(p) relu(g_k(p)) with alpha_k(p) = g_k(p)^2 / (2 g_k(p)^2 + g_k(p)^3 sum_q A_k(q)), and alpha_k(p) = 0 where g_k(p)
    or the denominator is 0. The cube is that of the one cell p: the sum runs over A alone. Computed as 1 / (2 + g sum A), the same number,
    so that no power overflows or vanishes. The paper's factor exp(y) is one number a sample and is left out.

    Made for activations behind a ReLU. Where a channel's sum is negative the denominator passes through zero and weights can be huge;
    `negative_channels` tells. Unlike Grad-CAM, the map is not proportional to g: scores in other units give another map.

    References
    ----------
    Chattopadhyay et al., Grad-CAM++, WACV 2018, eqs. 5 and 19 (arXiv 1710.11063), for Y = exp(score).
    """
    slopes = gradient.flatten(2)
    denominator = (slopes * activation.flatten(2).sum(2, keepdim=True)).add_(2)
    weighted = slopes.clamp(min=0).div_(denominator)
    return weighted.masked_fill_(denominator == 0, 0).sum(2)


def smooth_grad_cam_pp_weights(
    activation: Float[Tensor, "b c *t"],
    first: Float[Tensor, "b c *t"],
    second: Float[Tensor, "b c *t"],
    third: Float[Tensor, "b c *t"],
    *,
    scale: Float[Tensor, " b"] | None = None,
    numerator: str = "paper",
) -> Float[Tensor, "b c"]:
    """Weigh each channel as Grad-CAM++ does, with powers of the gradient averaged over noisy copies of the input.

    w_k = sum_p alpha_k(p) relu(D1), alpha_k(p) = N / (2 D2 + D3 sum_q A_k(q)), 0 where the denominator is 0.

    Parameters
    ----------
    activation
        That of the clean input.
    first, second, third
        D1, D2, D3: the means of g, g^2 and g^3 over the noisy copies.
    scale
        What each sample's gradients were divided by before their powers were taken (`gradient_scale`), so that the cubes of small or large
        gradients survive in float32. The weights are those of the undivided gradients. None: they were not divided.
    numerator
        What N is. The paper prints D1. 'corrected' takes D2, with which one noiseless copy gives Grad-CAM++ itself, as torchcam does.

    References
    ----------
    Omeiza et al., Smooth Grad-CAM++, arXiv 1908.01224.
    """
    if numerator not in ("paper", "corrected"):
        raise UsageError(f"the numerator of Smooth Grad-CAM++ is 'paper' or 'corrected', not '{numerator}'")
    summed = activation.flatten(2).sum(2, keepdim=True)
    one = first.flatten(2)
    if scale is not None:
        scale = scale[:, None, None]
        summed = summed * scale
    # With g = scale h: D1 / (2 D2 + D3 S) relu(D1) = h1 / (2 h2 + h3 (scale S)) relu(h1), and with D2 above once more times scale.
    denominator = 2 * second.flatten(2) + third.flatten(2) * summed
    above = one if numerator == "paper" else second.flatten(2)
    if scale is not None and numerator == "corrected":
        above = above * scale
    return torch.where(denominator == 0, 0, above * one.clamp(min=0) / denominator).sum(2)


def gradient_scale(gradient: Float[Tensor, "b c *t"]) -> Float[Tensor, " b"]:
    """Return each sample's largest absolute gradient, 1 where all are zero."""
    largest = torch.linalg.vector_norm(gradient, torch.inf, dim=tuple(range(1, gradient.ndim)))
    return torch.where(largest > 0, largest, 1)


def xgrad_cam_weights(activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]) -> Float[Tensor, "b c"]:
    """Weigh each channel by the mean of its gradient, cells counted by their activation: w_k = sum_p g_k(p) A_k(p) / sum_q A_k(q).

    The map then sums to sum_k sum_p g_k(p) A_k(p): for a score linear in the activation, the score without its bias. The authors' code adds
    1e-6 to the sum of A, which has a unit; nothing is added here. Activations of both signs (behind a leaky ReLU or an instance norm) can
    sum to about 0, and there is no weighted mean then. A channel whose sum is at most a thousandth of the sum of its absolute values takes
    the plain mean of its gradient, Grad-CAM's weight, which is the same where the gradient is constant; `crossing_channels` tells.

    References
    ----------
    Fu et al., Axiom-based Grad-CAM, BMVC 2020 (arXiv 2008.02312). Respond-CAM is the same: Zhao et al., MICCAI 2018 (arXiv 1806.00102).
    """
    cells = activation.flatten(2)
    summed = cells.sum(2)
    crossing = crossing_channels(activation)
    shared = (gradient.flatten(2) * cells).sum(2) / torch.where(crossing, 1, summed)
    return torch.where(crossing, gradient.flatten(2).mean(2), shared)


def crossing_channels(activation: Float[Tensor, "b c *t"]) -> Bool[Tensor, "b c"]:
    """Tell which channels' activations sum to about 0 (or are 0), so that XGrad-CAM's weighted mean does not exist for them."""
    cells = activation.flatten(2)
    return cells.sum(2).abs() <= _CROSSING * cells.abs().sum(2)


def negative_channels(activation: Float[Tensor, "b c *t"]) -> Bool[Tensor, "b c"]:
    """Tell which channels' activations sum to less than 0, for which Grad-CAM++ is not made."""
    return activation.flatten(2).sum(2) < 0


def hires_cam_weights(
    activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]
) -> Float[Tensor, "b c *t"]:
    """Weigh each cell of each channel by its own gradient: w_k(p) = g_k(p).

    Where one linear layer follows, the map sums to the score minus its bias.

    References
    ----------
    Draelos and Carin, Use HiResCAM instead of Grad-CAM, arXiv 2011.08891. For a segmentation score this is Seg-HiRes-Grad-CAM: Rheude et
    al., arXiv 2409.20287.
    """
    return gradient


def layer_cam_weights(
    activation: Float[Tensor, "b c *t"], gradient: Float[Tensor, "b c *t"]
) -> Float[Tensor, "b c *t"]:
    """Weigh each cell of each channel by its own gradient where that is positive: w_k(p) = relu(g_k(p)).

    References
    ----------
    Jiang et al., LayerCAM, IEEE Transactions on Image Processing 30, 2021, without the final ReLU.
    """
    return gradient.clamp(min=0)


def seg_xres_cam_weights(
    activation: Float[Tensor, "b c *t"],
    gradient: Float[Tensor, "b c *t"],
    *,
    window: int | tuple[int, ...] = 2,
    pooling: str = "mean",
) -> Float[Tensor, "b c *t"]:
    """Weigh each cell by the gradient pooled over its window: between Seg-HiRes-Grad-CAM (window 1) and Seg-Grad-CAM (one window for all).

    Parameters
    ----------
    window
        Sides of the windows in cells, one for all axes or one for each. They lie side by side from the first cell on; the last of an axis
        may be smaller and pools the cells that it has.
    pooling
        'mean', or 'max' for the largest (signed) gradient.

    References
    ----------
    Hasany et al., Seg-XRes-CAM, CVPR Workshops 2023. Their code fills the last window of an axis up with zeros; here it is not filled up.
    """
    cells = gradient.shape[2:]
    sides = (window,) * len(cells) if isinstance(window, int) else window
    if len(sides) != len(cells) or min(sides) < 1:
        raise UsageError(
            f"a window of Seg-XRes-CAM has a side of at least one cell for each of the layer's {len(cells)} axes, not {window}"
        )
    if (pooling, len(cells)) not in _POOLS:
        raise UsageError(f"Seg-XRes-CAM pools 2 or 3 axes by 'mean' or 'max', not {len(cells)} axes by '{pooling}'")
    sides = tuple(min(side, n) for side, n in zip(sides, cells, strict=True))
    pooled = _POOLS[pooling, len(cells)](gradient, sides, ceil_mode=True)
    for axis, (side, n) in enumerate(zip(sides, cells, strict=True), start=2):
        pooled = pooled.repeat_interleave(side, axis).narrow(axis, 0, n)
    return pooled


def shapley_cam_weights(
    gradient: Float[Tensor, "b c *t"], product: Float[Tensor, "b c *t"], *, per_cell: bool = False
) -> Weights:
    """Weigh each channel by its gradient, corrected by what channels do together: w_k = sum_p (g_k(p) - (H A)_k(p) / 2) / Z.

    H is the Hessian of the score at the activation. In the game whose players are all cells of all channels, absent ones being 0, the score
    expanded to second order gives a cell the Shapley value A_k(p) (g - H A / 2)_k(p). For a score quadratic in the activation these values
    are exact and sum to the score minus that of an activation of zeros. Where only linear layers and ReLUs follow, H is 0, and this is
    Grad-CAM.

    Parameters
    ----------
    product
        The Hessian-vector product H A: the gradient, by the activation, of sum(gradient * activation held constant).
    per_cell
        Keep g - H A / 2 of each cell instead of its mean over the channel, as HiRes-CAM keeps g (the authors' ShapleyCAM-H).

    References
    ----------
    Cai, CAMs as Shapley value-based explainers, arXiv 2501.06261. The score that it also proposes (ReST) is a target, not a rule.
    """
    corrected = gradient - product / 2
    return corrected if per_cell else corrected.flatten(2).mean(2)


_POOLS: dict[tuple[str, int], Callable[..., Tensor]] = {
    ("mean", 2): F.avg_pool2d, ("mean", 3): F.avg_pool3d, ("max", 2): F.max_pool2d, ("max", 3): F.max_pool3d,
}  # fmt: skip
# Every rule of (activation, gradient) without options of its own.
RULES: dict[str, WeightRule] = {
    "cam": cam_weights,
    "grad-cam": grad_cam_weights,
    "grad-cam++": grad_cam_pp_weights,
    "xgrad-cam": xgrad_cam_weights,
    "hires-cam": hires_cam_weights,
    "layer-cam": layer_cam_weights,
    "seg-xres-cam": seg_xres_cam_weights,
}
