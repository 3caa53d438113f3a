"""The GPU's kernels without a GPU: run on the host, and compiled for the device.

To build them for the host: ``cmake -S . -B build/device -G Ninja -DKOLM_EMULATED=ON`` and
``cmake --build build/device``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "kolm_build/numerics/csrc/cuda"
CHECK = ROOT / "tools/device_check.py"
EXPECTED = ROOT / "tests/numerics/device_hashes.json"
EMULATED = "libkolm_portable_emulated.so"
FLAGS = ("-std=c++20", "-O3", "-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")


def _built(name: str) -> bool:
    places = (ROOT / "build/device", ROOT / "build/device/kolm_build/numerics/csrc/cuda")
    return any((place / name).is_file() for place in places)


def _part(name: str, device: str, folder: Path) -> dict[str, object]:
    file = folder / "result.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CHECK), name, "--device", device, "--file", str(file)]
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    found: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    return found


needs_emulation = pytest.mark.skipif(
    not _built(EMULATED), reason="the GPU's kernels are not built for the host (KOLM_EMULATED=ON)"
)
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine")


@needs_emulation
def test_every_gpu_kernel_gives_the_hash_that_the_cpu_kernels_gave(tmp_path: Path) -> None:
    """NUM-140."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["hashes"]
    assert _part("hashes", "emulated", tmp_path) == expected


@needs_emulation
def test_training_on_the_gpu_kernels_starts_with_the_losses_of_the_cpu_kernels(
    tmp_path: Path,
) -> None:
    """NUM-140."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["models"]
    for name, found in _part("models", "emulated", tmp_path).items():
        assert isinstance(found, dict)
        losses = found["losses"]
        assert losses
        assert losses == expected[name]["losses"][: len(losses)]


def test_no_committed_hash_is_an_error() -> None:
    hashes = json.loads(EXPECTED.read_text(encoding="utf-8"))["hashes"]
    assert len(hashes) > 150
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes.values())


@pytest.mark.parametrize(
    "flag", ["-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-ffp-contract=off"]
)
def test_the_gpus_code_is_compiled_as_ieee_754_says(flag: str) -> None:
    """NUM-141."""
    options = (SOURCES / "CMakeLists.txt").read_text(encoding="utf-8")
    assert flag in re.split(r"[\s()]+", options)


def test_no_kernel_uses_an_atomic_operation() -> None:
    """NUM-142."""
    sources = [path for path in SOURCES.iterdir() if path.suffix in {".cu", ".cuh", ".cpp", ".h"}]
    assert len(sources) > 10
    for source in sources:
        assert "atomic" not in source.read_text(encoding="utf-8"), source.name


@needs_nvcc
@pytest.mark.parametrize("source", ["gemm.cu", "rows.cu", "random.cu"])
def test_the_compilers_code_has_no_atomic_operation(source: str, tmp_path: Path) -> None:
    """NUM-142."""
    assert not re.search(r"^\s*(@\S+\s+)?(atom|red)\.", _ptx(source, 90, tmp_path), re.MULTILINE)


def _ptx(source: str, architecture: int, folder: Path) -> str:
    target = folder / "out.ptx"
    command = ["nvcc", *FLAGS, f"-arch=compute_{architecture}", "-ptx", str(SOURCES / source)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target.read_text(encoding="utf-8")


@needs_nvcc
@pytest.mark.parametrize("architecture", [80, 90])
def test_the_product_multiplies_and_adds_in_fused_steps_alone(
    architecture: int, tmp_path: Path
) -> None:
    """NUM-141."""
    text = _ptx("gemm.cu", architecture, tmp_path)
    assert "fma.rn.f32" in text
    assert "mul.f32" not in text.replace("mul.rn.f32", "")
    assert "fma.rn.ftz" not in text


@needs_nvcc
def test_rows_fuse_no_product_with_a_sum(tmp_path: Path) -> None:
    """NUM-141."""
    assert "fma.rn.f32" not in _ptx("rows.cu", 90, tmp_path)
