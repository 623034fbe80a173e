"""Positions as lines, against the same operations carried out on coordinates themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets.swin_unetr import PatchMerging, PatchMergingV2, window_partition, window_reverse
from torch import Tensor, nn

from engine.toy_networks import conv
from medcam.engine.footprint import _RULES
from medcam.engine.ghosts import At, Walk, at_of
from medcam.engine.moves import POINTWISE
from medcam.engine.places import Place, of_input

SIZE = {2: (12, 16), 3: (8, 12, 4)}


def ghost_of(f: Callable[[Tensor], Any], shape: tuple[int, ...]) -> Any:
    with torch.inference_mode(), Walk(_RULES, POINTWISE) as walk:
        return f(walk.ghost(shape, torch.zeros(()), At(of_input(shape))))


def entries(place: Place, shape: tuple[int, ...]) -> np.ndarray:
    """The position of each entry of a tensor, one number an axis last; NaN for entries without a place."""
    result = np.broadcast_to(np.array(place.start), (*shape, len(place.start))).copy()
    for at, (dim, n) in enumerate(zip(place.dims, shape, strict=True)):
        if not dim.runs:
            continue
        steps = np.full((n, len(place.start)), np.nan)
        counts = [range(run.length) for run in dim.runs]
        for index, digits in enumerate(itertools.product(*counts)):
            steps[dim.lead + index] = 0
            for run, digit in zip(dim.runs, digits, strict=True):
                if run.axis >= 0:
                    steps[dim.lead + index, run.axis] += run.step * ((digit - run.roll) % run.length)
        result += steps.reshape(*[n if a == at else 1 for a in range(len(shape))], -1)
    return result


def carried_out(f: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """The same from real numbers: coordinates in homogeneous form, sample 0 their weight, so that sums become averages."""
    dims = len(shape) - 2
    ramps = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape[2:]], indexing="ij"))
    weighted = torch.cat([torch.ones_like(ramps[:1]), ramps])[:, None].expand(-1, shape[1], *shape[2:]).contiguous()
    with torch.no_grad():
        out = f(weighted).numpy()
    out = out.reshape(dims + 1, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([out[a + 1] / out[0] for a in range(dims)], -1)


def agree(
    f: Callable[[Tensor], Tensor], shape: tuple[int, ...], inner: Callable[[np.ndarray], np.ndarray] | None = None
) -> None:
    """`f` on lines and on coordinates gives the same positions (`inner` picks the cells far enough from the border)."""
    batch = (len(shape) - 1, *shape[1:])
    ghost = ghost_of(f, batch)
    place = at_of(ghost).place
    assert place is not None, "lost"
    found = entries(place, tuple(ghost.shape)).reshape(len(shape) - 1, -1, len(shape) - 2)[0]
    expected = carried_out(f, batch)
    assert found.shape == expected.shape
    if inner is not None:
        grid = (*ghost.shape[1:], len(shape) - 2)
        found, expected = inner(found.reshape(grid)), inner(expected.reshape(grid))
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def uniform(network: nn.Module) -> nn.Module:
    """Weights that average, so that coordinates come out as the centres of windows."""
    for module in network.modules():
        if isinstance(getattr(module, "weight", None), Tensor):
            nn.init.constant_(module.weight, 1.0)
        if isinstance(getattr(module, "bias", None), Tensor):
            nn.init.zeros_(module.bias)
    return network.double()


def core(margin: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda grid: grid[(slice(None), *[slice(margin, n - margin) for n in grid.shape[1:-1]])]


DIMS = pytest.mark.parametrize("dims", [2, 3])


@DIMS
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "dilation": 2, "padding": 1},
        {"kernel_size": 4, "stride": 3, "padding": 2},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
    ],
)
def test_a_convolution_is_the_centre_of_its_window(dims: int, options: dict[str, Any]) -> None:
    size = tuple(2 * n for n in SIZE[dims])
    agree(uniform(conv(dims)(2, 3, **options)), (1, 2, *size), core(1))


@DIMS
@pytest.mark.parametrize(("k", "s", "p", "o"), [(2, 2, 0, 0), (4, 4, 0, 0), (3, 1, 1, 0)])
def test_a_transposed_convolution_goes_the_way_back(dims: int, k: int, s: int, p: int, o: int) -> None:
    make = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]
    ghost = ghost_of(make(2, 3, k, s, p, o), (1, 2, *SIZE[dims]))
    place = at_of(ghost).place
    # Cell n of the input reaches cells n s - p up to n s - p + k - 1, centred on n s - p + (k - 1) / 2.
    cells = entries(place, tuple(ghost.shape))[0, 0]
    for axis in range(dims):
        line = cells[tuple(slice(None) if a == axis else 0 for a in range(dims))][:, axis]
        for n in range(1, 3):
            centre = n * s - p + (k - 1) / 2
            assert np.interp(centre, np.arange(len(line)), line) == pytest.approx(n, abs=1e-9)


@DIMS
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("avg", {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("avg", {"kernel_size": 2}),
        ("avg", {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
        ("adaptive", {"output_size": 2}),
        ("adaptive", {"output_size": 1}),
    ],
)
def test_pooling_is_the_centre_of_its_window(dims: int, kind: str, options: dict[str, Any]) -> None:
    pool = {("avg", 2): F.avg_pool2d, ("avg", 3): F.avg_pool3d, ("adaptive", 2): F.adaptive_avg_pool2d,
            ("adaptive", 3): F.adaptive_avg_pool3d}[kind, dims]  # fmt: skip
    size = tuple(2 * n for n in SIZE[dims])
    agree(lambda x: pool(x, **options), (1, 2, *size), core(1) if options.get("stride") else None)


@DIMS
@pytest.mark.parametrize(
    "options",
    [
        {"scale_factor": 2, "mode": "linear"},
        {"scale_factor": 0.5, "mode": "linear"},
        {"scale_factor": 2, "mode": "linear", "align_corners": True},
        {"scale_factor": 1.5, "mode": "linear"},
        {"scale_factor": 0.5, "mode": "nearest"},
        {"scale_factor": 0.25, "mode": "nearest-exact"},
    ],
)
def test_interpolation_reads_where_it_says(dims: int, options: dict[str, Any]) -> None:
    mode = options["mode"].replace("linear", {2: "bilinear", 3: "trilinear"}[dims])
    size = tuple(4 * n for n in SIZE[dims])
    agree(lambda x: F.interpolate(x, **{**options, "mode": mode}), (1, 2, *size), core(1))


@DIMS
def test_cells_that_copy_one_share_its_room(dims: int) -> None:
    for f in (lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), lambda x: x.repeat_interleave(2, 2)):
        place = at_of(ghost_of(f, (1, 2, *SIZE[dims]))).place
        found = ghost_of(lambda x, f=f: conv(dims)(2, 2, 1)(f(x)), (1, 2, *SIZE[dims]))
        run = at_of(found).place.dims[2].runs[0]
        assert place is not None
        assert (run.step, at_of(found).place.start[0]) == (0.5, -0.25)


def test_pixels_shuffled_out_of_channels_share_their_cell_and_go_back() -> None:
    shape = (1, 4, 6, 8)
    shuffled = ghost_of(lambda x: conv(2)(1, 1, 1)(F.pixel_shuffle(x, 2)), shape)
    assert [dim.runs[0].step for dim in at_of(shuffled).place.dims[2:]] == [0.5, 0.5]
    assert at_of(shuffled).place.start == (-0.25, -0.25)
    agree(lambda x: F.pixel_unshuffle(x, 2), (1, 2, 6, 8))
    agree(lambda x: F.pixel_unshuffle(x, 2).mean(1), (1, 2, 6, 8))
    agree(lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), (1, 2, 6, 8))


@pytest.mark.parametrize(
    ("f", "size"),
    [
        (lambda x: rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=3, q=4), (12, 16)),
        (lambda x: rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=3, q=4).mean(-1), (12, 16)),
        (lambda x: rearrange(x, "b c h w d -> b h w d c").flatten(1, 3), (4, 6, 8)),
        (lambda x: x.flatten(2).transpose(1, 2).reshape(x.shape[0], 4, 6, 8, x.shape[1]), (4, 6, 8)),
        (lambda x: x.unfold(2, 4, 4).unfold(3, 4, 2), (12, 16)),
        (lambda x: x[:, :, 1::2, 3:-1], (12, 16)),
        (lambda x: x.flip(2)[:, :, 2:], (12, 16)),
        (lambda x: F.pad(x, (0, 0, 2, 1), mode="replicate")[:, :, 2:-1], (12, 16)),
        (lambda x: torch.stack(x.chunk(2, 1), -1).sum(-1), (12, 16)),
        (lambda x: torch.cat([x[:, :, :5], x[:, :, 5:]], 2), (12, 16)),
        (lambda x: torch.cat([x[:, :, 0::2], x[:, :, 1::2]], 1).mean(1), (12, 16)),
        (lambda x: x.unbind(2)[3], (12, 16)),
        (lambda x: x.split([4, 8], 2)[1], (12, 16)),
        (lambda x: x.mean((1, 3), keepdim=True).expand(-1, 5, -1, 16), (12, 16)),
        (lambda x: torch.einsum("bchw,cd->bdhw", x, torch.ones(x.shape[1], 5, dtype=x.dtype)), (12, 16)),
        (lambda x: F.linear(x.permute(0, 2, 3, 1), torch.ones(3, x.shape[1], dtype=x.dtype)), (12, 16)),
        (lambda x: x.permute(0, 2, 3, 1).unflatten(1, (3, 4)).movedim(2, -1).sum(-1), (12, 16)),
        (lambda x: x.reshape(x.shape[0] * x.shape[1], 1, *x.shape[2:]).relu().reshape(x.shape), (12, 16)),
        (lambda x: x[:, [1, 0]], (12, 16)),
    ],
)
def test_entries_that_are_moved_about_keep_their_places(f: Callable[[Tensor], Tensor], size: tuple[int, ...]) -> None:
    agree(f, (1, 2, *size))


@DIMS
@pytest.mark.parametrize("shift", [0, 1])
def test_windows_are_rolled_cut_and_put_back(dims: int, shift: int) -> None:
    window, size = (3, 4, 2)[:dims], (7, 12, 5)[:dims]
    axes = tuple(range(1, dims + 1))

    def there(x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        pads = [n for side, w in zip(size[::-1], window[::-1], strict=True) for n in (0, -side % w)]
        x = F.pad(x, (0, 0, *pads), mode="constant")
        return torch.roll(x, shifts=(-shift,) * dims, dims=axes) if shift else x

    def round_trip(x: Tensor) -> Tensor:
        rolled = there(x)
        windows = window_partition(rolled, window)
        x = window_reverse(windows.view(-1, *window, x.shape[1]), window, list(rolled.shape[:-1]))
        x = torch.roll(x, shifts=(shift,) * dims, dims=axes) if shift else x
        return x[(slice(None), *[slice(n) for n in size])].contiguous()

    agree(round_trip, (1, 2, *size))
    if not shift:
        one = (slice(None), *[slice(w) for w in window])
        agree(lambda x: window_partition(x.movedim(1, -1)[one], window), (1, 2, *size))


@DIMS
@pytest.mark.parametrize("merging", [PatchMerging, PatchMergingV2])
def test_patch_merging_averages_what_it_takes(dims: int, merging: type[nn.Module]) -> None:
    layer = uniform(merging(3, spatial_dims=dims))
    layer.norm = nn.Identity()
    agree(lambda x: layer(x.movedim(1, -1)), (1, 3, *SIZE[dims]))


def test_class_tokens_have_no_place_and_leave_the_others_theirs() -> None:
    token = torch.zeros(1, 1, 2)

    def f(x: Tensor) -> Tensor:
        x = torch.cat([token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        return nn.LayerNorm(2)(x) + torch.zeros(1, 13, 2)

    place = at_of(ghost_of(f, (1, 2, 3, 4))).place
    found = entries(place, (1, 13, 2))
    assert np.isnan(found[0, 0]).all()
    np.testing.assert_array_equal(found[0, 1:, 0], [(i, j) for i in range(3) for j in range(4)])
    rest = at_of(ghost_of(lambda x: f(x)[:, 1:], (1, 2, 3, 4))).place
    np.testing.assert_array_equal(entries(rest, (1, 12, 2)), found[:, 1:])
    alone = at_of(ghost_of(lambda x: f(x)[:, 0], (1, 2, 3, 4))).place
    assert not any(dim.runs for dim in alone.dims)


@DIMS
def test_where_branches_meet_the_finer_one_decides_and_equals_meet_in_the_middle(dims: int) -> None:
    shape = (1, 2, *SIZE[dims])
    pool, up = {2: (F.max_pool2d, "bilinear"), 3: (F.max_pool3d, "trilinear")}[dims]

    def decoder(x: Tensor) -> Tensor:
        low = conv(dims)(2, 2, 3, 2, 1)(x)
        return torch.cat([F.interpolate(low, scale_factor=2, mode=up), x], 1)

    place = at_of(ghost_of(decoder, shape)).place
    assert (place.start, [dim.runs[0].step for dim in place.dims[2:]]) == ((0.0,) * dims, [1.0] * dims)
    # A strided convolution of 3 is centred on even voxels, a pool of 2 between them.
    place = at_of(ghost_of(lambda x: conv(dims)(2, 2, 3, 2, 1)(x) + pool(x, 2), shape)).place
    assert place.start == (0.25,) * dims
    # A gate, or what was pooled away, weighs and moves nothing.
    gate = at_of(ghost_of(lambda x: x * x.mean(tuple(range(2, x.ndim)), keepdim=True).sigmoid(), shape)).place
    assert gate == of_input(shape)


@DIMS
def test_attention_leaves_each_query_at_its_place(dims: int) -> None:
    shape = (2, 4, *SIZE[dims])

    def by_hand(x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = nn.Linear(4, 12)(tokens).reshape(*tokens.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return mixed.transpose(1, 2).reshape(tokens.shape)

    def built_in(x: Tensor) -> Tensor:
        return nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()(x.flatten(2).transpose(1, 2))

    plain = at_of(ghost_of(lambda x: x.flatten(2).transpose(1, 2), shape)).place
    for f in (by_hand, built_in):
        assert at_of(ghost_of(f, shape)).place._replace(gate=False) == plain


MOVES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "swap": lambda x, n: x.transpose(1 + n % (x.ndim - 1), x.ndim - 1),
    "break": lambda x, n: _broken(x, 1 + n % (x.ndim - 1)),
    "join": lambda x, n: x.flatten(1 + n % max(x.ndim - 2, 1), 2 + n % max(x.ndim - 2, 1)) if x.ndim > 2 else x,
    "half": lambda x, n: x.narrow(1 + n % (x.ndim - 1), 0, -(-x.shape[1 + n % (x.ndim - 1)] // 2)),
    "every second": lambda x, n: x.movedim(1 + n % (x.ndim - 1), 1)[:, n % 2 if x.shape[1 + n % (x.ndim - 1)] > 1 else 0 :: 2],
    "add an axis": lambda x, n: x.unsqueeze(1 + n % x.ndim),
    "relu": lambda x, _: x.relu(),
    "mean": lambda x, n: x.mean(1 + n % (x.ndim - 1), keepdim=True) if x.ndim > 2 else x,
}  # fmt: skip


def _broken(x: Tensor, at: int) -> Tensor:
    n = x.shape[at]
    factor = next((f for f in (2, 3, 5) if n % f == 0), max(n, 1))
    return x.unflatten(at, (n // factor, factor))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 5)), max_size=7))
def test_any_sequence_of_moves_keeps_each_entry_at_its_place(steps: list[tuple[str, int]]) -> None:
    def f(x: Tensor) -> Tensor:
        for name, n in steps:
            x = MOVES[name](x, n)
        return x

    shape = (3, 2, 6, 4)
    place = at_of(ghost_of(f, shape)).place
    if place is not None:  # what cannot be said by lines is lost, never wrong
        agree(f, (1, *shape[1:]))
