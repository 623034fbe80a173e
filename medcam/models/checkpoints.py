"""Weights in a file: reading them, and putting them into the network they belong to.

A checkpoint is a pickle, and a pickle can run code when it is opened. So tensors are read by torch's restricted reader
(`weights_only`) or by safetensors, and anything else needs the user's explicit word.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medcam.errors import ModelError
from medcam.models.user_code import EXAMPLE, first_line, pip_hint

# The names under which training programs put the weights among optimiser state, epoch numbers and the like.
_WRAPPERS = ("state_dict", "model_state_dict", "network_weights", "model", "network", "net", "weights")
# What DataParallel, torch.compile and Lightning put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
TRUST_MEANS = "--trust-code lets code from the file run on this machine with your rights: use it only for files from people you trust"


def read_state(path: Path, *, trust_code: bool, say: Callable[[str], None]) -> dict[str, Tensor] | nn.Module:
    """Return the weights in a checkpoint by name, or the whole module that was pickled, which needs `trust_code`.

    Raises
    ------
    ModelError
        If the file is damaged, holds no weights, or would run code and `trust_code` is False.
    """
    content = _safetensors(path) if path.suffix.lower() == ".safetensors" else _unpickled(path, trust_code, say)
    if isinstance(content, nn.Module):
        return content
    for _ in range(3):
        if isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values()):
            return {str(name): value for name, value in content.items()}
        inner = [content[key] for key in _WRAPPERS if key in content] if isinstance(content, Mapping) else []
        inner = [value for value in inner if isinstance(value, (Mapping, nn.Module))]
        if not inner:
            break
        content = inner[0].state_dict() if isinstance(inner[0], nn.Module) else inner[0]
    held = (
        f"the entries {', '.join(map(str, list(content)[:5]))}"
        if isinstance(content, Mapping)
        else type(content).__name__
    )
    raise ModelError(
        f"{path.name} holds no weights by name: it holds {held}; expected a state dict, or one under {', '.join(_WRAPPERS[:4])}"
    )


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(f"{path.name} needs a package that is not here: pip install safetensors") from error
    try:
        weights: dict[str, Tensor] = load_file(path)
        return weights
    except Exception as error:
        raise ModelError(f"{path.name} is damaged or not a safetensors file: {first_line(error)}") from error


def _unpickled(path: Path, trust_code: bool, say: Callable[[str], None]) -> Any:
    refuse_text(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        globals_named = _unsafe_globals(path, error)
        if not globals_named:
            raise ModelError(
                f"{path.name} is not a checkpoint that torch can read, or is damaged: {_cause(error)}"
            ) from error
        named = ", ".join(globals_named[:8]) + (f" and {len(globals_named) - 8} more" if len(globals_named) > 8 else "")
        if not trust_code:
            raise ModelError(
                f"{path.name} is more than tensors: opening it runs {named}. Save only the weights, "
                f"torch.save(model.state_dict(), ...), and name the network with --factory; or {TRUST_MEANS}"
            ) from error
        say(f"opening {path.name} runs: {named}")
    except Exception as error:
        raise ModelError(f"{path.name} is damaged or not a checkpoint: {first_line(error)}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ModelError(
            f"{path.name} cannot be opened: {type(error).__name__}: {first_line(error)}{pip_hint(error)}"
        ) from error


def _unsafe_globals(path: Path, error: pickle.UnpicklingError) -> list[str]:
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - a file of the form before torch 1.6 cannot be listed, or is no checkpoint at all
        named = []
    return sorted(set(named) | set(re.findall(r"GLOBAL `?([\w.]+)", str(error))))


def _cause(error: pickle.UnpicklingError) -> str:
    # torch puts the reason after several lines of advice that is wrong here: to open the file without the restricted reader.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 and lines[0].startswith("Weights only load failed") else first_line(error)


def refuse_text(path: Path) -> None:
    """Raise a ModelError if the file is empty, or is text: a Git LFS pointer, a web page, a configuration."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise ModelError(f"{path.name} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path.name} is only a Git LFS pointer: fetch the weights themselves with 'git lfs pull'")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        raise ModelError(f"{path.name} is a text file, not a model")


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> tuple[str, ...]:
    """Put weights into a network, all or none, and return notes about names that were adapted.

    A prefix that every name of the file carries and the network's names do not ('module.' of DataParallel, '_orig_mod.' of torch.compile,
    'model.' of Lightning) is taken off.

    Raises
    ------
    ModelError
        If a weight is missing, is unexpected, or has another shape.
    """
    own = network.state_dict()
    notes: list[str] = []
    while prefix := next((p for p in _PREFIXES if weights and _all_carry(weights, p) and not _all_carry(own, p)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
        notes.append(f"the prefix '{prefix}' was taken off the names of the weights")
    reshaped = [
        name for name, value in weights.items() if name in own and _shape(own[name]) not in (None, _shape(value))
    ]
    try:
        result = network.load_state_dict({n: v for n, v in weights.items() if n not in reshaped}, strict=False)
    except Exception as error:
        raise ModelError(f"the weights of {what} do not fit the network: {first_line(error)}") from error
    shown = [f"{n} is {_shape(weights[n])} in the file, {_shape(own[n])} in the network" for n in reshaped]
    missing = [name for name in result.missing_keys if name not in reshaped]
    kinds = (
        ("missing from the file", missing),
        ("not in the network", result.unexpected_keys),
        ("of another shape", shown),
    )
    if wrong := [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds
        if names
    ]:
        raise ModelError(
            f"the weights of {what} do not fit the network, which has {len(own)} weights while the file has {len(weights)}: "
            f"{'; '.join(wrong)}. Check that the network is built with the arguments it was trained with"
        )
    return tuple(notes)


def _all_carry(names: Mapping[str, Any], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def _shape(value: object) -> tuple[int, ...] | None:
    # A lazy parameter takes the shape of whatever is loaded into it.
    if not isinstance(value, Tensor) or isinstance(value, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        return None
    return tuple(value.shape)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip that holds code beside its constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return any(n.endswith("/constants.pkl") for n in names) and any("/code/" in n for n in names)


def load_torchscript(path: Path, *, trust_code: bool, say: Callable[[str], None]) -> torch.jit.ScriptModule:
    """Return the program in a TorchScript file, which is code and so needs `trust_code`.

    Raises
    ------
    ModelError
        If `trust_code` is False, or the file is damaged.
    """
    if not trust_code:
        raise ModelError(
            f"{path.name} is TorchScript: a program, which can run code from the file. {TRUST_MEANS}. A torch.export file (.pt2), or the "
            "weights with --factory, needs no trust and opens the layers to the CAM methods"
        )
    say(f"{path.name} is TorchScript: the program in it will run")
    try:
        with warnings.catch_warnings():
            # torch advises against TorchScript at every load; the user has the file that they have.
            warnings.simplefilter("ignore")
            script: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")
            return script
    except Exception as error:
        raise ModelError(f"{path.name} is damaged or not TorchScript: {first_line(error)}") from error


def missing_factory(path: Path) -> ModelError:
    """Return the error for weights that came without the network they belong to."""
    return ModelError(
        f"{path.name} holds a state dict: the numbers of a network without the network itself. Name what builds it, such as {EXAMPLE} "
        "or --factory my_network.py:make; or give a MONAI bundle or a torch.export file (.pt2)"
    )
