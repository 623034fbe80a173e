"""Targets in the words of the command line, and in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medcam
from medcam.engine import relevance, targets
from medcam.engine.targets import (
    Settled,
    as_target,
    parse_target,
)
from medcam.errors import UsageError

NAMES = ("background", "Nodule", "non-small", "a,b", "2@x")
WORDS: list[tuple[str, str, str]] = [
    # words, what they mean before and after settling on an output that predicts class 1
    ("2", "class 2", "class 2"),
    ("nodule", "Nodule (class 1)", "Nodule (class 1)"),
    ("non-small", "non-small (class 2)", "non-small (class 2)"),
    ("a,b", "a,b (class 3)", "a,b (class 3)"),
    ("2@x", "2@x (class 4)", "2@x (class 4)"),
    ("nodule-background", "Nodule (class 1) minus background (class 0)", "Nodule (class 1) minus background (class 0)"),
    ("non-small-nodule", "non-small (class 2) minus Nodule (class 1)", "non-small (class 2) minus Nodule (class 1)"),
    ("1,3", "Nodule (class 1) plus a,b (class 3)", "Nodule (class 1) plus a,b (class 3)"),
    (
        " a,b , nodule - 0,2 ",
        "a,b (class 3) plus Nodule (class 1) minus background (class 0) minus non-small (class 2)",
        "",
    ),
    ("predicted", "the predicted class", "Nodule (class 1)"),
    ("predicted-0", "the predicted class minus background (class 0)", "Nodule (class 1) minus background (class 0)"),
    ("not:0", "not background (class 0)", "not background (class 0)"),
    ("finer:2-0,1", "non-small (class 2) minus 0.6 times the mean of background (class 0) and Nodule (class 1)", ""),
    ("finer:predicted", "the predicted class minus 0.6 times the mean of its 3 most similar classes", None),
    ("1@whole", "Nodule (class 1) over the whole output", ""),
    ("1@largest", "largest component of Nodule (class 1)", ""),
    ("nodule@smallest", "smallest component of Nodule (class 1)", ""),
    ("1@component:2", "component 2 of Nodule (class 1)", None),
    ("1@boundary:2", "border of Nodule (class 1) (within 2 voxels)", ""),
    ("1@boundary:2,1", "border of Nodule (class 1) (within 2 x 1 voxels)", ""),
    ("1@voxel:1,2", "Nodule (class 1) at voxel (1, 2)", ""),
    ("1@component-at:1,2", "component of Nodule (class 1) at voxel (1, 2)", ""),
    ("not:nodule@predicted", "not Nodule (class 1)", ""),
]


@pytest.mark.parametrize(("text", "asked", "settled"), WORDS)
def test_words_of_the_command_line_name_targets(text: str, asked: str, settled: str | None) -> None:
    names = NAMES if text != "2" else ()
    target = parse_target(text, names)
    assert target.describe(names) == asked
    if settled is None:
        return
    output = torch.zeros(1, 5, 7, 9)
    output[:, 1] = 1
    assert target.settled(output).describe(names) == (settled or asked)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tumour", "the network has no class 'tumour'; its classes are background, Nodule"),
        ("1-tumour", "the network has no class 'tumour'; its classes are"),
        ("1-2-3", "'1-2-3' names no classes; a target is written 2 or by name"),
        ("-1", "'-1' names no classes"),
        ("", "'' names no classes"),
        ("1@", "there is no region ''"),
        ("1@boundary", "a region is written boundary:R with whole numbers, not 'boundary'"),
        ("1@boundary:big", "a region is written boundary:R"),
        ("1@largest:2", "a region is written largest with whole numbers"),
        ("1@voxel:1", "a region is written voxel:I,J,K"),
        ("why:1", "there is no target 'why:'; a target is written"),
        ("not:1,2", "'not:' takes one class, such as not:2, not '1,2'"),
        ("finer:1,2", "'finer:' takes one class"),
        ("not:tumour", "no class 'tumour'"),
    ],
)
def test_words_that_name_nothing_are_refused_and_what_exists_is_listed(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_target(text, NAMES)
    if "tumour" in text:
        with pytest.raises(UsageError, match="it does not name its classes, so give a number"):
            parse_target(text)


def test_words_that_mean_two_things_are_refused() -> None:
    with pytest.raises(UsageError, match="more than one difference"):
        parse_target("a-b-c", ["a", "a-b", "b-c", "c"])


def test_the_engine_explains_targets_in_words() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).relu().flatten(2).mean(2))

    network, x = Two().eval(), torch.randn(2, 1, 9, 7)
    found = relevance(network, x, layer="conv", target="2-0")
    one, other = (relevance(network, x, layer="conv", target=c).values for c in (2, 0))
    torch.testing.assert_close(found.values, one - other)
    assert isinstance(as_target("2-0").settled(network(x)), Settled)


# The documentation.

PAGE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")][
    2:
]
VESSELS = ("background", "nodule", "vessel", "node")


def words_in(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


def python(expression: str) -> Any:
    mask = np.zeros((6, 7, 5), bool)
    mask[2, 3, 4] = True
    return eval(expression, {**vars(targets), "mask": mask})


@pytest.mark.parametrize("row", [row for row in ROWS if "kept_box" not in row[2]], ids=lambda row: row[0])
def test_each_target_in_the_documentation_is_the_same_in_the_shell_and_in_python(row: list[str]) -> None:
    output: Any = torch.randn(3, 4, 6, 7, 5, generator=torch.Generator().manual_seed(1))
    output[:, 1, 2:5, 3:6, 2:] += 9
    output[:, 1, 0, 0, 0] += 9
    if "lambda" in row[2]:
        output = output[:, :, 0, 0, 0]
    asked = [parse_target(words, VESSELS) for words in words_in(row[1])]
    asked += [as_target(python(expression)) for expression in words_in(row[2])]
    settled = [target.settled(output) for target in asked]
    assert len(asked) > 0
    assert len({target.describe() for target in settled}) == 1
    for target in settled[1:]:
        torch.testing.assert_close(target(output), settled[0](output))
    assert len(row) == 3


def test_the_documentation_shows_every_target_and_region_there_is() -> None:
    vocabulary = {name for name in targets.__all__ if name[0].islower()} - {
        "kept_boxes",
        "output_tensor",
        "predicted_region",
        "parse_target",
    }
    assert {name for name in vocabulary if f"{name}(" not in PAGE and f"`{name}`" not in PAGE} == set()
    assert len(ROWS) > 20


def test_the_code_in_the_documentation_runs() -> None:
    blocks = re.findall("```python\n(.*?)```", PAGE, re.S)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    names = {"network": network, "images": torch.randn(2, 1, 9, 7), "medcam": medcam}
    for block in blocks:
        exec(block, names)
    assert names["settled"].describe() == "class 2 minus class 0"
