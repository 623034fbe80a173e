"""The Lightning callback, in real trainers of both packages that Lightning comes as."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from plugins.training import Net, cases, seeded
from torch import Tensor, nn

from medcam.errors import UsageError
from medcam.plugins.watched_maps import steps_in
from medcam.plugins.watching import Watch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(does not have many workers|smaller than the logging interval).*"),
    pytest.mark.filterwarnings("ignore:.*(in eval mode at the start|Be aware that when using .ckpt_path.).*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]
pl = pytest.importorskip("pytorch_lightning", reason="Lightning is not installed")
from medcam.plugins.lightning import MapWatcher  # noqa: E402  where Lightning is not installed, this raises


class Training(pl.LightningModule):
    """What a user writes: the network under a name, and steps."""

    def __init__(self, network: nn.Module, rate: float = 0.05) -> None:
        super().__init__()
        self.net, self.rate = network, rate

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.rate)


def run(network: nn.Module, dims: int, folder: Path, *callbacks: Any, **options: Any) -> dict[str, Tensor]:
    images, labels, _ = cases(dims, 12)
    data = torch.utils.data.TensorDataset(images, labels)
    checkpoint = options.pop("ckpt_path", None)
    asked = {"max_epochs": 3, "enable_checkpointing": False, "devices": 1} | options
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=list(callbacks), **asked,
    )  # fmt: skip
    trainer.fit(Training(network), torch.utils.data.DataLoader(data, 4, shuffle=True), ckpt_path=checkpoint)
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(("dims", "name"), [(2, ""), (3, "net")])
def test_it_looks_before_training_and_after_epochs_and_training_does_not_notice(
    dims: int, name: str, tmp_path: Path
) -> None:
    alone = run(seeded(dims), dims, tmp_path)
    watcher = MapWatcher(Watch(cases(dims, 2)[0], tmp_path / "looks", target=1), network=name, every=2)
    watched = run(seeded(dims), dims, tmp_path, watcher)
    assert steps_in(tmp_path / "looks") == [0, 2]
    assert all(torch.equal(alone[each], watched[each]) for each in alone)


def test_iterations_are_batches_also_where_gradients_are_gathered_over_several(tmp_path: Path) -> None:
    watcher = MapWatcher(Watch(cases(2, 1)[0], tmp_path / "looks", target=1), every=4, unit="iterations")
    run(Net(2), 2, tmp_path, watcher, accumulate_grad_batches=2)
    assert steps_in(tmp_path / "looks") == [0, 4, 8]


def test_a_run_that_goes_on_from_a_checkpoint_goes_on_with_its_looks(tmp_path: Path) -> None:
    folder = tmp_path / "looks"
    saving = pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "kept", filename="{epoch}", save_top_k=-1)
    watch = Watch(cases(2, 1)[0], folder, target=1)
    network = seeded(2)
    run(network, 2, tmp_path, MapWatcher(watch), saving, enable_checkpointing=True)
    assert steps_in(folder) == [0, 1, 2, 3]
    later = {step: (folder / f"maps_{step:08d}.npz").read_bytes() for step in (0, 1, 2)}
    run(Net(2), 2, tmp_path, MapWatcher(watch), ckpt_path=tmp_path / "kept" / "epoch=0.ckpt", max_epochs=2)
    assert steps_in(folder) == [0, 1, 2]
    assert (folder / "maps_00000001.npz").read_bytes() == later[1]
    with pytest.raises(UsageError, match="another run"):
        run(Net(2), 2, tmp_path, MapWatcher(watch), max_epochs=1)


def test_images_may_come_from_the_trainer(tmp_path: Path) -> None:
    images = cases(2, 3)[0]
    seen: list[Any] = []

    def chosen(trainer: Any) -> Tensor:
        seen.append(trainer.current_epoch)
        return images[:2]

    run(Net(2), 2, tmp_path, MapWatcher(Watch(chosen, tmp_path / "looks", target=1)), max_epochs=2)
    assert seen == [0, 1]
    assert steps_in(tmp_path / "looks") == [1, 2]


def test_a_network_of_another_name_is_refused_before_training(tmp_path: Path) -> None:
    watcher = MapWatcher(Watch(cases(2, 1)[0], tmp_path / "looks", target=1), network="model")
    with pytest.raises(UsageError, match="Training has no network 'model'"):
        run(Net(2), 2, tmp_path, watcher)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_of_two_processes_that_train_together_one_looks_and_training_does_not_notice(tmp_path: Path) -> None:
    def told(look: Any) -> None:
        with (tmp_path / "who.txt").open("a") as file:
            file.write(f"{os.getpid()} {look.step}\n")

    together = {"devices": 2, "strategy": "ddp_fork", "max_epochs": 2}
    alone = run(seeded(2), 2, tmp_path, **together)
    watch = Watch(cases(2, 2)[0], tmp_path / "looks", target=1, log=told)
    watched = run(seeded(2), 2, tmp_path, MapWatcher(watch, network="net"), **together)
    assert all(torch.equal(alone[each], watched[each]) for each in alone)
    assert not torch.equal(alone["head.weight"], seeded(2).head.weight)
    who, steps = zip(*(line.split() for line in (tmp_path / "who.txt").read_text().splitlines()), strict=True)
    assert steps == ("0", "1", "2")
    assert len(set(who)) == 1


@pytest.mark.slow
def test_the_other_package_of_lightning_is_served_too(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="the package lightning is not installed")
    # Which package is meant is known by what is loaded, so each is tried in a process of its own.
    code = (
        "import sys, pathlib, torch, lightning.pytorch as pl\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from medcam.plugins.lightning import MapWatcher\n"
        "from medcam.plugins.watching import Watch\n"
        "from plugins.training import Net, cases\n"
        "class Training(pl.LightningModule):\n"
        "    def __init__(self): super().__init__(); self.net = Net(2)\n"
        "    def training_step(self, batch, n): return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])\n"
        "    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 0.1)\n"
        "images, labels, _ = cases(2, 4)\n"
        "data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 2)\n"
        "watcher = MapWatcher(Watch(images[:1], pathlib.Path(sys.argv[2]), target=1), network='net')\n"
        "pl.Trainer(max_epochs=1, accelerator='cpu', devices=1, logger=False, enable_progress_bar=False,\n"
        "    enable_model_summary=False, enable_checkpointing=False, callbacks=[watcher]).fit(Training(), data)\n"
    )
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tests), str(tmp_path)], capture_output=True, text=True, timeout=120,
        cwd=tests.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert steps_in(tmp_path) == [0, 1]


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] in ("lightning", "pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("lightning", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "medcam.plugins.lightning")
    with pytest.raises(UsageError, match=r"pip install 'medcam-xai\[lightning\]'"):
        importlib.import_module("medcam.plugins.lightning")
