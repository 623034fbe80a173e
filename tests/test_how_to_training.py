"""The Python of how-to-training.md that other tests cannot run: Lightning's, and what a logger is told."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from medcam.lesion_net import LesionNet
from medcam.plugins.ignite import MapWatcher
from medcam.plugins.watching import Watch, look
from run_page import blocks_of

PAGE = "how-to-training.md"
TEXT = (Path(__file__).parents[1] / "docs" / PAGE).read_text()
pytestmark = pytest.mark.filterwarnings("ignore")


def blocks(language: str) -> list[str]:
    return [block.code for block in blocks_of(TEXT) if block.language == language]


@pytest.mark.slow
def test_the_example_of_lightning_trains_and_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_lightning", reason="Lightning is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("py")[0], PAGE, "exec"), {})
    assert len(list((tmp_path / "looks-lightning").glob("picture_*.png"))) == 3


def test_a_logger_is_told_numbers_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[tuple[Any, ...]] = []

    class Writer:
        def add_scalar(self, *given: Any) -> None:
            calls.append(given)

        def add_image(self, name: str, pixels: Any, step: int, dataformats: str) -> None:
            calls.append((name, pixels.ndim, step))

    shared: dict[str, Any] = {"writer": Writer(), "Watch": Watch, "x": torch.rand(2, 1, 20, 24)}
    exec(compile(blocks("py")[1], PAGE, "exec"), shared)
    look(shared["watch"], LesionNet(2, (2, 2, 2, 2)), 5)
    assert [call[0] for call in calls] == [
        "in lesion/image 0", "like the map before/image 0", "in lesion/image 1", "like the map before/image 1", "maps",
    ]  # fmt: skip
    assert calls[-1][1:] == (3, 5)


def test_monais_parser_makes_the_handler_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("yaml")
    parser = ConfigParser(
        {
            "network": {"_target_": "medcam.lesion_net.LesionNet", "spatial_dims": 2, "widths": [2, 2, 2, 2]},
            "validate": {"dataloader": "$[{'image': __import__('torch').ones(5, 1, 20, 24)}]"},
            "output_dir": "out",
            "train": {"handlers": [None]},
        }
    )
    for name, entry in yaml.safe_load(block).items():
        parser[name] = entry
    handler = parser.get_parsed_content("train#handlers#0")
    assert isinstance(handler, MapWatcher)
    assert handler.network is parser.get_parsed_content("network")
    assert handler.watch.folder == "out/looks"
    assert handler.watch.images.shape == (4, 1, 20, 24)


def test_the_table_has_the_columns_that_the_page_names(tmp_path: Path) -> None:
    look(Watch(torch.rand(1, 1, 20, 24), tmp_path, target=0), LesionNet(2, (2, 2, 2, 2)), 0)
    with (tmp_path / "numbers.csv").open() as table:
        heads = set(next(csv.reader(table)))
    rows = re.search(r"\| column \|.*?\n\n", TEXT, re.S)
    assert rows is not None
    named = set(re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in rows[0].splitlines()[2:] if row)))
    assert len(named) == 11
    assert named <= heads
