"""The page that works out a million studies prints what it shows, and its figures are those of the page of trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from run_page import agrees, blocks_of

PAGE = Path(__file__).parents[2] / "docs" / "million-studies.md"


def test_the_arithmetic_of_a_million_studies_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [each for each in blocks_of(PAGE.read_text()) if each.language == "python"]
    exec(compile(block.code, PAGE.name, "exec"), {})
    assert block.shown is not None
    assert agrees(block.shown, capsys.readouterr().out)
