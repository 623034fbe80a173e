"""Processes that decode beside this one: the same numbers, the same refusals, and none is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from scipy.ndimage import gaussian_filter

from formats.dicom_phantom import GEOMETRIES, stored_values, write_series
from formats.dicom_phantom_frames import write_enhanced
from medcam.errors import InputError
from medcam.formats import dicom_decoding, dicom_reading, dicom_workers
from medcam.formats.dicom import read_dicom
from medcam.formats.dicom_workers import Worker, workers

OBLIQUE = GEOMETRIES["oblique"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Decode any compressed series in workers, and keep what was started."""
    monkeypatch.setattr(dicom_reading, "_WORKERS_FROM_PIXELS", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    kept: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def start(*words: object, **options: object) -> subprocess.Popen[bytes]:
        kept.append(original(*words, **options))
        return kept[-1]

    monkeypatch.setattr(dicom_workers.subprocess, "Popen", start)
    return kept


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_workers_decode_the_same_numbers_and_go(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], syntax: str
) -> None:
    voxels = stored_values((70, 66, 6)).astype(np.int16) - 1000
    write_series(tmp_path, voxels, OBLIQUE, transfer_syntax=syntax)
    np.testing.assert_array_equal(read_dicom(tmp_path).voxels, voxels)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_the_frames_of_one_file_are_decoded_side_by_side_too(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    voxels = stored_values((70, 66, 9))
    write_enhanced(tmp_path, voxels, OBLIQUE, transfer_syntax=JPEGLSLossless)
    np.testing.assert_array_equal(read_dicom(tmp_path).voxels, voxels)
    assert len(started) == 2


def test_plain_and_few_pixels_start_no_process(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "plain", stored_values(), OBLIQUE)
    read_dicom(tmp_path / "plain")
    monkeypatch.setattr(dicom_reading, "_WORKERS_FROM_PIXELS", 70 * 66 * 3 + 1)
    write_series(tmp_path / "few", stored_values((70, 66, 3)), OBLIQUE, transfer_syntax=JPEGLSLossless)
    read_dicom(tmp_path / "few")
    assert started == []


def test_a_damaged_stream_is_refused_in_the_same_words(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_series(tmp_path, stored_values((40, 30, 3)), OBLIQUE, transfer_syntax=JPEGLSLossless)
    content = bytearray(paths[1].read_bytes())
    start = content.find(b"\xff\xd8\xff")
    content[start + 40 : start + 400] = bytes(360)
    paths[1].write_bytes(content)
    with pytest.raises(InputError, match=r"^001.dcm holds pixels \(JPEG-LS Lossless") as in_workers:
        read_dicom(tmp_path)
    assert all(process.poll() is not None for process in started)
    monkeypatch.setattr(dicom_reading, "_WORKERS_FROM_PIXELS", 1 << 60)
    with pytest.raises(InputError) as here:
        read_dicom(tmp_path)
    assert str(in_workers.value) == str(here.value)


def test_a_stream_that_ends_its_decoder_ends_the_worker_only(tmp_path: Path) -> None:
    path = write_series(tmp_path, stored_values((40, 30, 1)), OBLIQUE, transfer_syntax=JPEGLSLossless)[0]
    pixels = dicom_decoding.open_pixels(pydicom.dcmread(path))
    compressed = dicom_decoding.stream(pixels, 0)
    assert compressed is not None
    with Worker() as worker:
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(InputError, match="crash their decoder"):
            worker.decoded(compressed)


def test_without_processes_frames_are_decoded_here(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(dicom_workers.subprocess, "Popen", refuse)
    voxels = stored_values((70, 66, 4))
    write_series(tmp_path, voxels, OBLIQUE, transfer_syntax=JPEGLSLossless)
    np.testing.assert_array_equal(read_dicom(tmp_path).voxels, voxels)


def test_a_users_script_is_not_run_again_and_its_folder_is_not_searched(tmp_path: Path) -> None:
    voxels = stored_values((70, 66, 4))
    write_series(tmp_path / "series", voxels, OBLIQUE, transfer_syntax=JPEGLSLossless)
    # As bad as a folder can be: a module of the name of one that the worker needs.
    (tmp_path / "pydicom.py").write_text("raise SystemExit('the wrong module')")
    script = tmp_path / "scripts" / "mine.py"
    script.parent.mkdir()
    script.write_text(
        "import os, sys\n"
        f"sys.path[:0] = {[path for path in sys.path if path]!r}\n"
        "os.cpu_count = lambda: 2\n"
        "from pathlib import Path\n"
        "from medcam.formats import dicom_reading\n"
        "from medcam.formats.dicom import read_dicom\n"
        "dicom_reading._WORKERS_FROM_PIXELS = 1\n"
        "print('once', read_dicom(Path('series')).grid.shape)\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["once (70, 66, 4)"]


def test_what_a_library_prints_does_not_come_between(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud" / "gdcm.py").write_text("print('Warning: not so quiet', flush=True)\nraise ImportError")
    monkeypatch.syspath_prepend(tmp_path / "loud")
    voxels = stored_values((70, 66, 3))
    write_series(tmp_path / "series", voxels, OBLIQUE, transfer_syntax=JPEGLSLossless)
    np.testing.assert_array_equal(read_dicom(tmp_path / "series").voxels, voxels)
    assert len(started) == 2


@pytest.mark.slow
@pytest.mark.alone
def test_a_compressed_series_decodes_on_both_cores(tmp_path: Path) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("there is one core")
    noise = np.random.default_rng(0).standard_normal((512, 512, 1))
    voxels = (gaussian_filter(noise, (3, 3, 0)) * 3000 + 1000).clip(0, 4095).astype(np.int16)
    path = write_series(tmp_path, voxels, OBLIQUE, transfer_syntax=JPEG2000Lossless)[0]
    pixels = dicom_decoding.open_pixels(pydicom.dcmread(path))
    took: dict[str, float] = {}
    with workers(2) as stored, dicom_reading.ThreadPoolExecutor(2) as pool:
        for name, decode in (("here", dicom_decoding.stored), ("workers", stored)):
            list(pool.map(lambda _, decode=decode: decode(pixels, 0), range(4)))
            runs = []
            for _ in range(8):
                start = time.perf_counter()
                list(pool.map(lambda _, decode=decode: decode(pixels, 0), range(40)))
                runs.append(time.perf_counter() - start)
            took[name] = min(runs)
    assert took["workers"] < 0.75 * took["here"], took
