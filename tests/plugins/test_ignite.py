"""The Ignite handler, in Ignite's own engine and in MONAI's trainer, by really training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ignite.distributed
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedTrainer
from plugins.test_watching import rows
from plugins.training import Net, cases, seeded
from torch import Tensor, nn

from conftest import oblique_grid
from medcam.errors import UsageError
from medcam.plugins.ignite import MapWatcher
from medcam.plugins.watched_maps import steps_in
from medcam.plugins.watching import Watch


def run(network: nn.Module, attach: Callable[[Engine], object], epochs: int = 3) -> dict[str, Tensor]:
    """Train in two dimensions by a plain Ignite engine, three iterations an epoch."""
    images, labels, _ = cases(2, 12)
    optimizer = torch.optim.SGD(network.parameters(), 0.05)

    def update(engine: Engine, batch: Any) -> float:
        network.train()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    engine = Engine(update)
    attach(engine)
    data = torch.utils.data.TensorDataset(images, labels)
    engine.run(torch.utils.data.DataLoader(data, batch_size=4, shuffle=True), max_epochs=epochs)
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_every_so_many_epochs_and_before_the_first_and_training_does_not_notice(tmp_path: Path) -> None:
    alone = run(seeded(2), lambda engine: None)
    watch = Watch(cases(2, 2)[0], tmp_path, target=1)
    network = seeded(2)
    watched = run(network, MapWatcher(network, watch, every=2).attach)
    assert steps_in(tmp_path) == [0, 2]
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


def test_iterations_and_any_other_event_of_ignite_can_count(tmp_path: Path) -> None:
    images = cases(2, 1)[0]
    network = Net(2)
    run(network, MapWatcher(network, Watch(images, tmp_path / "a", target=1), every=4, unit="iterations").attach)
    assert steps_in(tmp_path / "a") == [0, 4, 8]
    watcher = MapWatcher(network, Watch(images, tmp_path / "b", target=1))
    run(network, lambda engine: watcher.attach(engine, Events.EPOCH_STARTED(once=2)))
    assert steps_in(tmp_path / "b") == [0, 2]


def test_images_from_the_engines_state_are_seen_from_the_first_event_on(tmp_path: Path) -> None:
    network = Net(2)
    watch = Watch(lambda state: state.batch[0][:2], tmp_path, target=0)
    run(network, MapWatcher(network, watch, every=3, unit="iterations").attach, epochs=1)
    assert steps_in(tmp_path) == [3]
    assert len(rows(tmp_path)) == 2


def test_a_folder_of_another_run_is_refused_before_training(tmp_path: Path) -> None:
    network, watch = Net(2), Watch(cases(2, 1)[0], tmp_path, target=0)
    run(network, MapWatcher(network, watch).attach, epochs=1)
    before = network.head.weight.clone()
    with pytest.raises(UsageError, match="give each run a folder of its own"):
        run(network, MapWatcher(network, watch).attach, epochs=1)
    assert torch.equal(network.head.weight, before)


def test_only_one_process_of_many_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ignite.distributed, "get_rank", lambda: 1)
    network = Net(2)
    run(network, MapWatcher(network, Watch(cases(2, 1)[0], tmp_path, target=0)).attach, epochs=1)
    assert not list(tmp_path.iterdir())


def test_intervals_that_are_none_are_refused(tmp_path: Path) -> None:
    watch = Watch(cases(2, 1)[0], tmp_path)
    with pytest.raises(UsageError, match="every is a whole number of at least 1"):
        MapWatcher(Net(2), watch, every=0)
    with pytest.raises(UsageError, match="unit is one of 'epochs', 'iterations'"):
        MapWatcher(Net(2), watch, unit="hours")


def test_monais_trainer_takes_it_and_its_volumes_bring_their_place_along(tmp_path: Path) -> None:
    images, labels, masks = cases(3, 6)
    affine = oblique_grid().affine
    network = seeded(3)
    watched = MetaTensor(images[:2], affine=torch.as_tensor(np.stack([affine, affine])))
    watch = Watch(watched, tmp_path, target=1, lesions=masks[:2])
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=3, network=network, optimizer=torch.optim.Adam(network.parameters(), 0.02),
        train_data_loader=DataLoader(
            [{"image": x, "label": y} for x, y in zip(images, labels, strict=True)], batch_size=3, shuffle=True
        ),
        loss_function=nn.CrossEntropyLoss(), train_handlers=[MapWatcher(network, watch)],
    )  # fmt: skip
    trainer.run()
    assert steps_in(tmp_path) == [0, 1, 2, 3]
    placed = [row for row in rows(tmp_path) if row["peak"]]
    assert placed
    for row in placed:
        expected = affine @ [*map(int, row["peak"].split()), 1]
        assert [float(row[f"peak_{axis}_mm"]) for axis in "xyz"] == pytest.approx(expected[:3], rel=1e-3)
