"""A room is what its code may know: imports point downstream, and `import medcam` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import medcam

HOME = Path(medcam.__file__).parent
# What each room may import of medcam, besides itself. `errors` is open to all.
MAY_KNOW = {
    "errors": set(),
    "interpolation": set(),
    "geometry": {"interpolation"},
    "occupancy": {"geometry", "interpolation"},
    "recipe": set(),
    "whole_file": set(),
    "lesion_net": set(),
    "samples": set(),
    "steps": set(),
    "volume": {"geometry", "recipe"},
    "render": {"geometry", "volume", "recipe", "whole_file"},
    "formats": {"geometry", "volume", "recipe", "render", "whole_file", "options"},
    "report": {"geometry", "volume", "recipe", "render", "formats", "whole_file", "validate", "cohort"},
    "pacs": {"formats", "whole_file", "pipeline", "models", "engine", "volume", "workers", "options"},
    "prepare": {"geometry", "volume", "steps"},
    "validate": {"geometry", "occupancy", "volume"},
    "workers": set(),
    "options": set(),
    "engine": {"options"},
    "trials": {"engine", "options", "validate"},
    "models": {"samples", "lesion_net"},
    "cohort": {
        "occupancy",
        *("steps", "geometry", "volume", "recipe", "options", "whole_file", "formats"),
        *("engine", "models", "prepare", "pipeline", "validate", "trials", "workers"),
    },
    "pipeline": {"geometry", "volume", "recipe", "engine", "models", "prepare"},
    # What slots into somebody else's pipeline.
    "plugins": {
        "geometry",
        "volume",
        "recipe",
        "options",
        "formats",
        "render",
        "engine",
        "models",
        "prepare",
        "pipeline",
        "validate",
        "whole_file",
    },
}
TOP = {"cli", "commands", "doctor", "__init__", "__main__"}


def room_of(path: Path) -> str:
    first = path.relative_to(HOME).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medcam."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "medcam":
            found |= {alias.name for alias in node.names} - {"__version__"}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("medcam.")}
    return found


@pytest.mark.parametrize("path", sorted(HOME.rglob("*.py")), ids=lambda p: str(p.relative_to(HOME)))
def test_imports_point_downstream(path: Path) -> None:
    room = room_of(path)
    if room not in TOP:
        assert imports_of(path) <= MAY_KNOW[room] | {"errors", room}


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; sys.stderr.write(' '.join(m for m in sys.modules if '.' not in m))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code", ["import medcam", "import medcam.cli\nmedcam.cli._parsers()[1]['explain'].format_help()"]
)
def test_import_and_help_load_nothing_heavy(code: str) -> None:
    assert not modules_after(code) & {"torch", "monai", "highdicom", "numpy", "nibabel", "pydicom", "matplotlib"}


def test_what_is_promised_is_there_and_reading_needs_no_torch() -> None:
    assert [name for name in medcam.__all__ if getattr(medcam, name, None) is None] == []
    assert set(medcam.__all__) <= set(dir(medcam))
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        medcam.magic  # noqa: B018
    assert "torch" not in modules_after("import medcam; medcam.read, medcam.write, medcam.Grid")


def test_the_package_holds_no_print_bare_except_or_assert() -> None:
    for path in HOME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), path
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), path
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), path


def test_an_explanation_does_not_load_torchs_compiler() -> None:
    code = (
        "import torch, medcam\nfrom medcam.lesion_net import LesionNet\n"
        "medcam.relevance(LesionNet(2, (2, 3, 4, 4)).eval(), torch.randn(1, 1, 32, 40))\n"
        "import sys; sys.stderr.write('compiler' if 'torch._dynamo' in sys.modules else 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("none")
