"""`medcam doctor`: versions, device, decoders, and whether anything stands in the way."""

from __future__ import annotations

from argparse import Namespace

from medcam.commands import Result, Say
from medcam.commands.parsing import Commands, command


def add(commands: Commands) -> None:
    """Add the parser."""
    command(commands, "doctor", "versions, device, decoders; is the right medcam installed?")


def run(options: Namespace, say: Say) -> Result:
    """Say what is installed, and whether anything stands in the way."""
    from medcam.doctor import examine

    findings = examine()
    lines = [f"{'ok  ' if f.ok else 'BAD '} {f.name:<14} {f.words}" for f in findings]
    values = {"checks": [{"name": f.name, "ok": f.ok, "words": f.words} for f in findings]}
    return Result(values, lines, all(f.ok for f in findings))
