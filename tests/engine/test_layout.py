"""How layers hold their cells, and how that is told."""

from __future__ import annotations

import pytest
import torch

from medcam.engine.layout import Layout, from_channels_first, guess, to_channels_first

GRIDS = pytest.mark.parametrize("grid", [(3, 5), (3, 5, 2)])


def laid_out(kind: str, grid: tuple[int, ...], extra: int = 0) -> tuple[torch.Tensor, Layout]:
    """A tensor of 2 samples and 4 channels whose numbers count its cells in order, and its layout."""
    cells = torch.arange(2 * 4 * torch.Size(grid).numel(), dtype=torch.float32).reshape(2, 4, *grid)
    if kind == "channels first":
        return cells, Layout(kind, grid)
    last = cells.movedim(1, -1).contiguous()
    if kind == "channels last":
        return last, Layout(kind, grid)
    tokens = torch.cat([-torch.ones(2, extra, 4), last.flatten(1, -2)], 1)
    return tokens, Layout(kind, grid, extra)


@GRIDS
@pytest.mark.parametrize(("kind", "extra"), [("channels first", 0), ("channels last", 0), ("tokens", 0), ("tokens", 2)])
def test_channels_come_first_as_a_view_and_go_back(kind: str, extra: int, grid: tuple[int, ...]) -> None:
    tensor, layout = laid_out(kind, grid, extra)
    assert layout.fits(tensor)
    features = to_channels_first(tensor, layout)
    torch.testing.assert_close(features, laid_out("channels first", grid)[0])
    assert features.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    torch.testing.assert_close(from_channels_first(features, layout, tensor), tensor)


@GRIDS
def test_tokens_without_a_place_come_from_the_layer_once_for_each_batch(grid: tuple[int, ...]) -> None:
    tensor, layout = laid_out("tokens", grid, 1)
    tensor = torch.cat([tensor, torch.full((2, 1, 4), 9.0)], 1)  # and one behind the cells
    copies = to_channels_first(tensor, layout).repeat(3, *[1] * (len(grid) + 1))
    torch.testing.assert_close(from_channels_first(copies, layout, tensor), tensor.repeat(3, 1, 1))
    without = from_channels_first(copies, layout)
    assert not without[:, 0].any()
    torch.testing.assert_close(without[:, 1:], tensor[:, 1:-1].repeat(3, 1, 1))


@GRIDS
def test_another_grid_does_not_fit(grid: tuple[int, ...]) -> None:
    for kind in ("channels first", "channels last", "tokens"):
        tensor, _ = laid_out(kind, grid)
        assert not Layout(kind, tuple(n + 1 for n in grid)).fits(tensor)
        assert not Layout(kind, grid).fits(tensor[0])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 8, 16, 24, 8), Layout("channels first", (16, 24, 8))),
        ((2, 16, 24, 8, 8), Layout("channels last", (16, 24, 8))),
        ((2, 96, 4, 6, 2), Layout("channels first", (4, 6, 2))),
        ((2, 4, 6, 2, 96), Layout("channels last", (4, 6, 2))),
        ((2, 5, 32, 48, 16), Layout("channels first", (32, 48, 16))),
        ((2, 48, 12), Layout("tokens", (4, 6, 2))),
        ((2, 49, 12), Layout("tokens", (4, 6, 2), 1)),
        ((2, 100, 12), None),
        ((2, 3), None),
        ((2, 2, 49, 12), None),
    ],
)
def test_a_shape_suggests_a_layout(shape: tuple[int, ...], expected: Layout | None) -> None:
    assert guess(shape, (2, 1, 32, 48, 16)) == expected
