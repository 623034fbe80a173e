"""The meters against what can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from benchmarks.meters import peak_bytes, peak_bytes_of_numpy, stops_on_cuda, time_beside, work

MODES = pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def flops(call: Callable[[], object]) -> int:
    return work(call).flops


@MODES
def test_a_convolution_counts_two_for_each_multiply_add(mode: Callable[[], AbstractContextManager[None]]) -> None:
    plane, volume = nn.Conv2d(3, 5, (3, 2), stride=2), nn.Conv3d(4, 6, 3, padding=1, groups=2)
    with mode():
        # Out of 9 x 12 come 4 x 6 places.
        assert flops(lambda: plane(torch.randn(2, 3, 9, 12))) == 2 * (2 * 5 * 4 * 6) * (3 * 3 * 2)
        assert flops(lambda: volume(torch.randn(1, 4, 5, 6, 7))) == 2 * (6 * 5 * 6 * 7) * (2 * 27)


@MODES
def test_a_transposed_convolution_counts_its_input_places(mode: Callable[[], AbstractContextManager[None]]) -> None:
    with mode():
        up = nn.ConvTranspose3d(4, 3, 2, stride=2)
        assert flops(lambda: up(torch.randn(1, 4, 3, 4, 5))) == 2 * (4 * 3 * 4 * 5) * (3 * 8)


@MODES
def test_products_and_attention_are_counted(mode: Callable[[], AbstractContextManager[None]]) -> None:
    head, matrix = nn.Linear(7, 3), torch.randn(4, 6)
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    with mode():
        assert flops(lambda: head(torch.randn(2, 11, 7))) == 2 * 2 * 11 * 7 * 3
        assert flops(lambda: matrix @ torch.randn(6)) == 2 * 4 * 6
        assert flops(lambda: torch.einsum("bik,bjk->bij", query[0], key[0])) == 2 * 3 * 5 * 9 * 8
        # Scores, then the weighted sum.
        both = 2 * (2 * 3) * 5 * 9 * (8 + 8)
        assert flops(lambda: F.scaled_dot_product_attention(query, key, value)) == both
        assert flops(lambda: head.weight.relu() + 1) == 0


def test_a_backward_pass_counts_what_it_is_asked_for() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1)
    forward = 2 * (5 * 8 * 9) * (3 * 9)

    def grad(*wanted: Tensor) -> int:
        return flops(lambda: torch.autograd.grad(layer(given).sum(), wanted))

    given = torch.randn(1, 3, 8, 9, requires_grad=True)
    assert grad(given) == 2 * forward
    assert grad(given, layer.weight) == 3 * forward


def test_attention_backwards_counts_five_products() -> None:
    query, key, value = (torch.randn(1, 2, n, 8, requires_grad=True) for n in (5, 9, 9))
    call = lambda: torch.autograd.grad(F.scaled_dot_product_attention(query, key, value).sum(), query)  # noqa: E731
    assert flops(call) == 2 * 2 * 5 * 9 * 8 * (2 + 5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_forward_mode_counts_all_three_convolutions_that_torch_runs() -> None:
    # The input's, its tangent's, and the input's once more with the weight's tangent of zeros.
    layer = nn.Conv3d(2, 3, 3, bias=False)
    x = torch.randn(1, 2, 5, 6, 7)

    def pushed() -> Tensor:
        with forward_ad.dual_level():
            return layer(forward_ad.make_dual(x, x))

    assert flops(pushed) == 3 * flops(lambda: layer(x))


def test_a_leaf_may_enter_a_module() -> None:
    # torch's own counter fails here.
    tail = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(24, 2))
    for parameter in tail.parameters():
        parameter.requires_grad_(False)
    leaf = torch.randn(1, 2, 3, 4, requires_grad=True)
    call = lambda: torch.autograd.grad(tail(leaf.clone())[:, 1].sum(), leaf)  # noqa: E731
    assert flops(call) == 2 * (2 * 24 * 2)


@MODES
def test_launches_are_what_computes_and_a_view_does_not(mode: Callable[[], AbstractContextManager[None]]) -> None:
    with mode():
        x = torch.randn(2, 3, 4)
        done = work(lambda: (torch.empty(5), x.reshape(2, 12).transpose(0, 1)[1:], x.relu().add_(1).flatten(1).sum(1)))
        assert dict(done.names) == {"relu": 1, "add_": 1, "sum": 1}
        assert (done.launches, done.stops) == (3, 0)


def test_resizing_is_one_launch_as_it_is_in_truth() -> None:
    with torch.inference_mode():
        x = torch.randn(1, 1, 3, 4, 5)
        assert work(lambda: F.interpolate(x, scale_factor=2, mode="trilinear")).names == {"upsample_trilinear3d": 1}


@pytest.mark.parametrize(
    ("ask", "times"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool((x > 0).any()), 1),
        (lambda x: [int(n) for n in x[0, :3]], 3),
        (lambda x: x.nonzero(), 1),
        (lambda x: torch.equal(x, x + 1), 1),
        (lambda x: x.sum(1).tolist(), 1),
        (lambda x: x.exp().cpu().numpy(), 1),
        (lambda x: [x.exp().numpy(), np.asarray(x.sin())], 2),
        (lambda x: x.relu().sum(), 0),
    ],
)
def test_the_host_stops_where_it_needs_a_value(ask: Callable[[Tensor], object], times: int) -> None:
    x = torch.randn(2, 5)
    assert work(lambda: ask(x)).stops == times


def test_peak_memory_is_exact_and_counts_neither_input_nor_what_was_released() -> None:
    x = torch.randn(1000)
    assert peak_bytes(lambda: x.view(10, 100)) == 0
    assert peak_bytes(lambda: x.exp()) == 4000
    # Each step needs its input and its output; the first temporary is gone when the third is made.
    assert peak_bytes(lambda: x.exp().neg().double()) == 4000 + 8000
    assert peak_bytes(lambda: [x.exp(), x.neg(), x.sin()]) == 12000


def test_peak_memory_sees_what_a_graph_holds() -> None:
    x = torch.randn(4096, requires_grad=True)
    kept = 4 * 4096

    def chain() -> Tensor:
        y = x
        for _ in range(5):
            y = y.tanh()
        return y

    with torch.inference_mode():
        assert peak_bytes(chain) == 2 * kept
    assert peak_bytes(chain) == 5 * kept


def test_peak_memory_is_the_same_each_time() -> None:
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 3)).eval()
    x = torch.randn(1, 1, 9, 10, 11)
    network(x)
    assert len({peak_bytes(lambda: network(x)) for _ in range(3)}) == 1


def test_peak_memory_of_numpy() -> None:
    x = np.ones(1_000_000)
    assert 0 <= peak_bytes_of_numpy(lambda: (x + 1).astype(np.float32)) - 12_000_000 < 20_000


@pytest.fixture
def busy() -> Iterator[Callable[[int], Callable[[], None]]]:
    a = torch.randn(256, 256)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def products(n: int) -> Callable[[], None]:
        def call() -> None:
            for _ in range(n):
                a @ a

        return call

    yield products
    torch.set_num_threads(threads)


def test_time_is_a_ratio(busy: Callable[[int], Callable[[], None]]) -> None:
    found = time_beside(busy(60), busy(20), rounds=5)
    assert found.low <= found.ratio <= found.high
    assert 2 < found.ratio < 4.5


@needs_cuda
def test_on_cuda_time_memory_and_stops_are_read_from_the_device() -> None:
    x = torch.randn(512, 512, device="cuda")
    assert peak_bytes(lambda: x + 1, "cuda") == 4 * 512 * 512
    assert time_beside(lambda: [x @ x for _ in range(40)], lambda: [x @ x for _ in range(10)], 5, "cuda").ratio > 1.5
    assert stops_on_cuda(lambda: x.sum().item()) == 1
    assert stops_on_cuda(lambda: x.relu().sum()) == 0
    assert work(lambda: x.cpu()).stops == 1
