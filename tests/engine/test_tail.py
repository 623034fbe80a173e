"""Re-running what follows a layer gives what the whole network gives, and only that runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import DenseNet121, SegResNet, UNet, resnet18
from torch import Tensor, nn

from engine.toy_networks import Classifier, Reused, Segmenter, Tuples, image
from medcam.engine.capture import Captured, capture
from medcam.engine.skeleton import skeleton
from medcam.engine.tail import Recorder, Tail, substituted

DIMS = pytest.mark.parametrize("dims", [2, 3])


def recorded(copied: nn.Module, x: Tensor, layer: str) -> tuple[Captured, Tail]:
    recorder = Recorder(copied, layer)
    while True:
        with recorder.watching():
            captured = capture(copied, x, [layer], graph=False)
            again = recorder.spoiled()
        if not again:
            break
    tail = recorder.tail(captured.layers[layer], x)
    assert tail is not None
    return captured, tail


def logits(output: object) -> Tensor:
    return output["logits"] if isinstance(output, dict) else output


class InPlace(nn.Module):
    """A residual sum in place behind the layer of interest, on what an earlier module gave."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.first, self.second, self.head = conv(2, 4, 3, padding=1), conv(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        skip.mul_(2.0)
        features = self.second(skip)
        skip += features
        return self.head(skip.relu_().flatten(2).mean(2))


@DIMS
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (Classifier, "block"), (Classifier, "act"), (Classifier, "stem"), (Segmenter, "deep"), (Segmenter, "up"), (Reused, "act"),
        (Tuples, "block"), (InPlace, "second"), (InPlace, "first"),
    ],
)  # fmt: skip
def test_the_tail_gives_what_the_network_gives_for_several_copies_at_once(
    dims: int, batch: int, make: Callable[[int], nn.Module], layer: str
) -> None:
    network, x = make(dims).eval(), image(dims, batch)
    expected = logits(network(x)).detach()
    with torch.no_grad(), skeleton(network) as copied:
        captured, tail = recorded(copied, x, layer)
        clean = captured.layers[layer].features
        for _ in range(2):
            torch.testing.assert_close(logits(tail.run(clean)), expected)
        changed = torch.stack([clean, clean * 0.5, clean.flip(1)])
        found = logits(tail.run(changed.flatten(0, 1)))
        brute = logits(substituted(copied, x, layer, captured.layers[layer], changed.flatten(0, 1)))
    torch.testing.assert_close(found, brute)
    torch.testing.assert_close(found[:batch], expected)
    assert not torch.allclose(found[batch : 2 * batch], expected)


@pytest.mark.parametrize(
    ("network", "layer", "shape"),
    [
        (lambda: DenseNet121(spatial_dims=2, in_channels=1, out_channels=3), "features.denseblock4", (1, 1, 64, 96)),
        (lambda: resnet18(spatial_dims=3, n_input_channels=1, num_classes=2), "layer3", (2, 1, 32, 40, 24)),
        (lambda: resnet18(spatial_dims=2, n_input_channels=1, num_classes=2), "layer4.1.bn2", (2, 1, 64, 96)),
        (
            lambda: UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2),
            "model.1.submodule.1.submodule",
            (1, 1, 16, 24, 32),
        ),
        (
            lambda: SegResNet(spatial_dims=3, in_channels=1, out_channels=2, init_filters=8),
            "down_layers.3",
            (1, 1, 32, 16, 24),
        ),
    ],
)
def test_the_tails_of_real_networks_are_exact(
    network: Callable[[], nn.Module], layer: str, shape: tuple[int, ...]
) -> None:
    net, x = network().eval(), torch.randn(shape)
    with torch.no_grad(), skeleton(net) as copied:
        captured, tail = recorded(copied, x, layer)
        clean = captured.layers[layer].features
        changed = torch.cat([clean, clean.roll(1, 1)])
        brute = substituted(copied, x, layer, captured.layers[layer], changed)
        torch.testing.assert_close(tail.run(changed), brute, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net(x), brute[: len(x)], rtol=1e-4, atol=1e-4)


def test_nothing_before_the_layer_runs_again() -> None:
    network, x, ran = Classifier(2).eval(), image(2), []
    with torch.no_grad(), skeleton(network) as copied:
        captured, tail = recorded(copied, x, "block")
        handles = [
            module.register_forward_pre_hook(lambda m, _a: ran.append(type(m).__name__))
            for module in copied.modules() if not list(module.children())
        ]  # fmt: skip
        calls = []
        for module in copied.modules():
            if isinstance(module, nn.Conv2d):
                module._conv_forward = lambda *a: calls.append(1)
        tail.run(captured.layers["block"].features)
        for handle in handles:
            handle.remove()
    assert calls == []
    assert ran == ["Conv2d", "ReLU", "AdaptiveAvgPool2d", "Linear"]
    assert [type(m).__name__ for m in tail.weighted] == ["Linear"]
