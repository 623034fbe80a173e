"""Connections that no well-meaning DICOM peer makes: noise, cut and flipped PDUs, lengths that are lies, wrong titles, ends in the middle.

`hammer(port, count, seed=1)` makes so many of them, one after the other; a node must not notice.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator

PATIENCE_S = 10.0


def request(called: str = "MEDCAM", calling: str = "FUZZ") -> bytes:
    """Return an A-ASSOCIATE-RQ for MR images and echoes, built byte by byte (PS3.8 9.3.2)."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(content)) + content

    contexts = b"".join(
        item(0x20, bytes([number, 0, 0, 0]) + item(0x30, uid) + item(0x40, b"1.2.840.10008.1.2"))
        for number, uid in ((1, b"1.2.840.10008.5.1.4.1.1.4"), (3, b"1.2.840.10008.1.1"))
    )
    user = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3.4"))
    body = struct.pack(">HH", 1, 0) + called.ljust(16).encode() + calling.ljust(16).encode() + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user
    return struct.pack(">BBI", 1, 0, len(body)) + body


def data(fragment: bytes, *, context: int = 1, kind: int = 0, claimed: int | None = None) -> bytes:
    """Return a P-DATA-TF with one fragment; `kind` is 3 for a last command, 0 for data, 2 for last data."""
    inner = struct.pack(">IBB", len(fragment) + 2 if claimed is None else claimed, context, kind) + fragment
    return struct.pack(">BBI", 4, 0, len(inner)) + inner


def command() -> bytes:
    """Return a C-STORE-RQ, as implicit VR little endian."""

    def element(tag: int, value: bytes) -> bytes:
        return struct.pack("<HHI", 0, tag, len(value)) + value

    rest = element(2, b"1.2.840.10008.5.1.4.1.1.4\0") + element(0x100, b"\1\0") + element(0x110, b"\1\0")
    rest += element(0x700, b"\0\0") + element(0x800, b"\0\0") + element(0x1000, b"1.2.3.4.")
    return element(0, struct.pack("<I", len(rest))) + rest


def damaged(chance: random.Random) -> Iterator[tuple[bytes, ...]]:
    """Yield what is sent over one connection after the other, part by part."""
    opening, order, some = request(), data(command(), kind=3), data(b"\x08\x00\x16\x00", kind=0)
    while True:
        noise = chance.randbytes(chance.randrange(1, 400))
        cut = chance.randrange(1, len(opening))
        flipped = bytearray(opening)
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        yield (noise,)
        yield (opening[:cut],)
        yield (bytes(flipped),)
        yield (opening[:2] + struct.pack(">I", 0xFFFFFFFF) + opening[6:],)
        yield (opening, noise)
        yield (opening, order, some)  # hung up in the middle of an instance
        yield (opening, order, some[: chance.randrange(1, len(some))])
        yield (opening, order, data(b"", kind=0, claimed=chance.choice([0, 1, 2, 0xFFFFFFFF])))
        yield (opening, order, struct.pack(">BBI", 4, 0, 0xFFFFFFF0))
        yield (opening, data(noise, kind=3))
        yield (opening, data(command()[:-4], kind=3), data(noise, kind=2))
        yield (opening, data(command(), kind=3, context=77), data(noise, kind=2, context=77))
        yield (opening, order, data(noise, kind=2))
        yield (opening, opening)
        yield (opening, struct.pack(">BBIHH", 7, 0, 4, 0, 0))
        yield (request("OTHER"),)
        yield (b"GET / HTTP/1.1\r\n\r\n",)
        yield (b"\x16\x03\x01\x02\x00\x01" + noise,)


def hammer(port: int, count: int, *, seed: int) -> None:
    """Make so many connections to a port of this machine; some are reset, some closed, some wait a moment for an answer."""
    chance = random.Random(seed)
    for _, parts in zip(range(count), damaged(chance), strict=False):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
                connection.settimeout(PATIENCE_S)
                for part in parts:
                    connection.sendall(part)
                    if part[:1] == b"\x01" and len(parts) > 1:
                        connection.recv(1 << 16)
                if chance.random() < 0.3:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif chance.random() < 0.5:
                    connection.settimeout(0.2)
                    connection.recv(1 << 16)
        except OSError:
            continue
