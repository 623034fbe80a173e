"""On a GPU: the same numbers as on the CPU, left on the device, with one stop of the host and few launches."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from monai.networks.nets import DenseNet121

from engine.test_contract import FEW, image, layer_of, made
from medcam.engine import EXPLAINERS, relevance
from medcam.engine.layers import feature_layers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DIMS = pytest.mark.parametrize("dims", [2, 3])
CLASSES = [2, 0, 1]


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """TF32 rounds to ten bits, which is no disagreement of medcam's."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


@DIMS
@pytest.mark.parametrize("method", sorted(EXPLAINERS))
def test_a_gpu_gives_what_a_cpu_gives_and_keeps_it(method: str, dims: int) -> None:
    network, x = made(dims, method), image(dims)
    options = {"layer": layer_of(network, method), "target": CLASSES, "method": FEW.get(method, method), "seed": 3}
    expected = relevance(network, x, **options)
    found = relevance(copy.deepcopy(network).cuda(), x.cuda(), **options)
    assert found.values.is_cuda
    scale = float(expected.values.abs().nan_to_num().max())
    torch.testing.assert_close(found.values.cpu(), expected.values, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
    torch.testing.assert_close(found.scores.cpu(), expected.scores, rtol=1e-4, atol=1e-4)
    assert (found.stride, found.offset, found.classes) == (expected.stride, expected.offset, expected.classes)


@DIMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_nearly_the_same_map(dims: int, dtype: torch.dtype) -> None:
    network, x = made(dims, "grad-cam").cuda(), image(dims).cuda()
    expected = relevance(network, x, layer="block", target=CLASSES)
    with torch.autocast("cuda", dtype):
        found = relevance(network, x, layer="block", target=CLASSES)
    assert found.values.dtype == torch.float32
    for one, other in zip(found.values.flatten(1), expected.values.flatten(1), strict=True):
        assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.95


def test_channels_last_memory_is_taken_as_it_comes() -> None:
    network, x = made(3, "grad-cam").cuda(), image(3).cuda()
    expected = relevance(network, x, layer="block", target=CLASSES)
    network, x = network.to(memory_format=torch.channels_last_3d), x.to(memory_format=torch.channels_last_3d)
    found = relevance(network, x, layer="block", target=CLASSES)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-5)


def test_a_map_stops_the_host_once_and_launches_little_beyond_the_forward() -> None:
    network = DenseNet121(spatial_dims=2, in_channels=1, out_channels=14).eval().cuda()
    x = torch.randn(1, 1, 224, 224, device="cuda")
    (layer,) = [each for each in feature_layers(network, x) if each.default]

    def launches(call: object) -> int:
        call()  # what is loaded or tuned at first does not count
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
            call()
            torch.cuda.synchronize()
        return sum(event.count for event in profiled.key_averages() if event.device_type.name == "CUDA")

    @torch.inference_mode()
    def forward() -> None:
        network(x)

    def explain() -> None:
        relevance(network, x, layer=layer, target=1)

    assert launches(explain) - launches(forward) <= 30
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as stops:
            explain()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([stop for stop in stops if "synchroniz" in str(stop.message)]) == 1
