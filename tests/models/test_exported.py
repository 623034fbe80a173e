"""Exported programs: the same answers, the same names of modules, and nothing in the file runs unasked."""

from __future__ import annotations

import contextlib
import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medcam.errors import ModelError
from medcam.models import load_model
from models.bundle_phantom import Marker, phantom_image, small_net


@pytest.fixture
def image() -> Tensor:
    return phantom_image()


@pytest.fixture(scope="module")
def exported() -> bytes:
    image = torch.zeros(2, 1, 20, 24, 28)
    sizes = {0: torch.export.Dim("batch", min=1, max=8), 2: 4 * torch.export.Dim("height", min=2, max=64)}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(small_net(), (image,), dynamic_shapes={"image": sizes}), file)
    return file.getvalue()


def test_an_exported_program_answers_as_before_and_keeps_its_module_names(
    tmp_path: Path, exported: bytes, image: Tensor
) -> None:
    (tmp_path / "net.pt2").write_bytes(exported)
    model = load_model(tmp_path / "net.pt2")
    assert torch.equal(model.network(image), small_net()(image))
    names = {name for name, _ in small_net().named_modules()}
    assert names <= {name for name, _ in model.network.named_modules()}
    assert (model.kind, model.layers_open, model.name) == ("exported program", True, "net.pt2")
    assert (model.input_channels, model.spatial_dims, model.spatial_shape) == (1, 3, None)


def test_a_program_exported_in_training_mode_is_noted(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 9, 11),)), tmp_path / "net.pt2")
    model = load_model(tmp_path / "net.pt2")
    assert any("training mode" in note for note in model.notes)
    assert any("2 x 3 x 9 x 11" in note for note in model.notes)
    assert (model.input_channels, model.spatial_dims, model.spatial_shape) == (3, 2, (9, 11))


def rewrite(content: bytes, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None) -> bytes:
    """Return a torch zip archive with its records changed; torch's own writer keeps the form that torch reads."""
    records: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            inner = name.split("/", 1)[1]
            if not inner.startswith(".data") and inner not in ("version", "byteorder"):
                records[inner] = change(inner, archive.read(name))
    file = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(file)
    for name, data in (records | (extra or {})).items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()
    return file.getvalue()


def in_graph(old: str, new: str) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        text = data.decode()
        assert old in text, f"{old} no longer stands in an exported program: this test tests nothing"
        return text.replace(old, new).encode()

    return change


def keep(name: str, data: bytes) -> bytes:
    return data


def evil_pickle(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save((Marker(marker),), file)
    return file.getvalue()


@pytest.mark.parametrize(
    "case", ["target", "size", "input name", "module path", "samples", "library", "constant", "file operator"]
)
def test_code_in_an_exported_program_does_not_run_unasked(tmp_path: Path, exported: bytes, case: str) -> None:
    marker = tmp_path / "marker"
    touch = f"open('{marker}', 'w').close()"
    symbol = "Symbol('s"
    content = {
        "target": lambda: rewrite(exported, in_graph("torch.ops.aten.logsumexp.default", "torch.os.system")),
        "size": lambda: rewrite(exported, in_graph(symbol, f"{touch} or {symbol}")),
        "input name": lambda: rewrite(exported, in_graph('"image"', f'"image={touch}"')),
        "module path": lambda: rewrite(exported, in_graph(",features,torch.nn", ',fe\\"+x+\\"s,torch.nn')),
        "samples": lambda: rewrite(
            exported, lambda n, d: evil_pickle(marker) if n.startswith("data/sample_inputs") else d
        ),
        "library": lambda: rewrite(exported, keep, {"data/aotinductor/model/a.so": b"x"}),
        "constant": lambda: rewrite(exported, keep, {"data/constants/opaque_obj_0": b"x"}),
        "file operator": lambda: rewrite(exported, in_graph("aten.logsumexp.default", "aten.from_file.default")),
    }[case]()
    (tmp_path / "evil.pt2").write_bytes(content)
    with pytest.raises(ModelError, match="--trust-code"):
        load_model(tmp_path / "evil.pt2")
    assert not marker.exists()


def test_the_attacks_on_exported_programs_are_real(tmp_path: Path, exported: bytes) -> None:
    marker = tmp_path / "marker"
    content = rewrite(exported, in_graph("Symbol('s", f"open('{marker}', 'w').close() or Symbol('s"))
    (tmp_path / "evil.pt2").write_bytes(content)
    said: list[str] = []
    with contextlib.suppress(ModelError):
        load_model(tmp_path / "evil.pt2", trust_code=True, say=said.append)
    assert marker.exists()
    assert said


def test_an_untouched_program_survives_rewriting(tmp_path: Path, exported: bytes, image: Tensor) -> None:
    (tmp_path / "same.pt2").write_bytes(rewrite(exported, keep))
    assert torch.equal(load_model(tmp_path / "same.pt2").network(image), small_net()(image))
