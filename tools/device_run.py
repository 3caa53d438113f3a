"""A run of every part of `tools/device_check.py`: what is started, compared and reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.device_libraries import BUILT, LIBRARIES, ROOT, library
from tools.device_parts import OTHER_BITS, Json

PROGRAM = ROOT / "tools" / "device_check.py"
EXPECTED = ROOT / "tests" / "numerics" / "device_hashes.json"
TOTAL_SECONDS = 470.0


class Run:
    """One run of every part.

    Args:
        out: Where results and logs go.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.deadline = time.monotonic() + TOTAL_SECONDS
        self.results: Json = {}
        self.lines: list[str] = []
        self.failed = False

    def say(self, line: str) -> None:
        """Add a line to the report."""
        print(line, flush=True)
        self.lines.append(line)
        (self.out / "report.txt").write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def verdict(self, name: str, detail: str, *, passed: bool) -> None:
        """Say whether a check passed."""
        self.failed |= not passed
        self.say(f"{'PASS' if passed else 'FAIL'}  {name}: {detail}")

    def keep(self, name: str, value: Any) -> None:
        """Write a result down at once."""
        self.results[name] = value
        text = json.dumps(self.results, indent=1, sort_keys=True)
        (self.out / "results.json").write_text(text + "\n", encoding="utf-8")

    def limit(self, seconds: float) -> float:
        """`seconds`, or what is left of the whole."""
        return max(1.0, min(seconds, self.deadline - time.monotonic()))

    def start(self, name: str, device: str) -> subprocess.Popen[str]:
        """Start a part beside others; its output goes to the common log."""
        file = self.out / f".{name}-{device}.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, str(PROGRAM), name, "--device", device, "--file", str(file)]
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"\n==== {name} {device}\n")
            log.flush()
            return subprocess.Popen(command, stdout=log, stderr=log, text=True, cwd=ROOT)

    def finish(
        self, process: subprocess.Popen[str], name: str, device: str, seconds: float
    ) -> Json:
        """The part's result; empty where it failed, which is a failed check."""
        file = self.out / f".{name}-{device}.json"
        try:
            status = process.wait(self.limit(seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.verdict(f"{name} on {device}", f"not done in {seconds:.0f} s", passed=False)
            return {}
        if status != 0 or not file.is_file():
            self.verdict(f"{name} on {device}", f"exit status {status}, see log.txt", passed=False)
            return {}
        value: Json = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return value


def build(run: Run) -> bool:
    """Builds both libraries, unless they lie in build/device already."""
    if all(library(name) for name in LIBRARIES):
        facts = run.finish(run.start("load", "cuda"), "load", "cuda", 60)
        run.keep("load", facts)
        if facts:
            run.say(f"note  build: libraries found in build/device; {json.dumps(facts)}")
            return True
        run.say("note  build: the libraries found do not load; building them anew")
        for name in LIBRARIES:
            found = library(name)
            if found is not None:
                found.unlink()
    begin = time.monotonic()
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(BUILT), "-G", "Ninja", "-DKOLM_CUDA=ON",
        "-DKOLM_TESTING=OFF", "-DKOLM_CUDA_ARCHITECTURES=90",
    ]  # fmt: skip
    commands = (
        configure,
        [
            "ninja", "-C", str(BUILT), "-k", "0", f"-j{os.cpu_count()}", "kolm_portable_cuda",
            "kolm_portable",
        ],
    )  # fmt: skip
    with (run.out / "build.log").open("w", encoding="utf-8") as log:
        for command in commands:
            try:
                subprocess.run(command, stdout=log, stderr=log, timeout=run.limit(200), check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                log.write(f"{error}\n")
    for name in LIBRARIES:
        found = library(name)
        took = f"{time.monotonic() - begin:.0f} s"
        run.verdict(f"build {name}", took, passed=found is not None)
    return library("libkolm_portable_cuda.so") is not None


def differences(a: Json, b: Json) -> list[str]:
    """The names whose values differ, are missing or are errors."""
    return [
        name for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name) or str(a.get(name)).startswith("error")
    ]  # fmt: skip


def compare(run: Run, name: str, cpu: Json, gpu: Json) -> None:
    """Say whether a CPU and the GPU gave the same, and as much as the committed file has."""
    if not cpu or not gpu:
        run.verdict(f"{name}: CPU = GPU", "nothing to compare", passed=False)
        return
    other = differences(cpu, gpu)
    equal = f"{len(cpu) - len(other)} of {len(cpu)} equal"
    run.verdict(f"{name}: CPU = GPU", equal, passed=not other)
    for item in other[:40]:
        run.say(f"      {item}: {str(cpu.get(item))[:140]} / {str(gpu.get(item))[:140]}")


def against_committed(run: Run, name: str, found: Json) -> None:
    """The same against the hashes that another machine made."""
    expected = json.loads(EXPECTED.read_text(encoding="utf-8")).get(name, {})
    if not expected or not found:
        run.verdict(f"{name}: GPU = committed", "nothing to compare", passed=False)
        return
    other = differences(expected, {key: found.get(key) for key in expected})
    equal = f"{len(expected) - len(other)} of {len(expected)}"
    run.verdict(f"{name}: GPU = committed", equal, passed=not other)
    for item in other[:10]:
        run.say(f"      {item}")


def on_both(run: Run, part: str, seconds: float) -> dict[str, Json]:
    """A part's results on the CPU and on the GPU, which work at the same time."""
    processes = {device: run.start(part, device) for device in ("cuda", "cpu")}
    found = {
        device: run.finish(process, part, device, seconds) for device, process in processes.items()
    }
    run.keep(part, found)
    return found


def check_hashes(run: Run) -> None:
    """Every family of kernels: a CPU's hashes and the GPU's."""
    for part, name in (("hashes", "kernels"), ("hashes-big", "kernels, larger sizes")):
        found = on_both(run, part, 80)
        compare(run, name, found["cpu"], found["cuda"])
        if part == "hashes":
            against_committed(run, part, found["cuda"])


def check_models(run: Run) -> None:
    """Training and generation."""
    found = on_both(run, "models", 90)
    compare(run, "models", found["cpu"], found["cuda"])
    against_committed(run, "models", found["cuda"])


def check_products(run: Run) -> None:
    """Speed of the product; the bits of every tile shape."""
    found = run.finish(run.start("products", "cuda"), "products", "cuda", 100)
    run.keep("products", found)
    wrong = [name for name, row in found.items() if OTHER_BITS in row.values()]
    run.verdict(
        "products: every tile shape has the same bits", str(wrong), passed=bool(found) and not wrong
    )
    run.say("      TFLOP/s, float32            stock    ours   ratio   each tile shape")
    for name, row in found.items():
        speeds = [row.get(f"variant {number}") for number in range(5)]
        tiles = " ".join(f"{s:7.2f}" if isinstance(s, float) else f"{'-':>7}" for s in speeds)
        stock, ours, ratio = row["stock"], row["ours"], row["ratio"]
        run.say(f"      {name:24} {stock:8.2f}{ours:8.2f}{ratio:8.3f}   {tiles}")


def check_step(run: Run) -> None:
    """Speed of a training step."""
    found = run.finish(run.start("step", "cuda"), "step", "cuda", 90)
    run.keep("step", found)
    run.verdict("training step of SmolLM2-135M's shape", json.dumps(found), passed=bool(found))


def check_native(run: Run) -> None:
    """native-1 twice."""
    first = run.finish(run.start("native", "cuda"), "native", "cuda", 60)
    second = run.finish(run.start("native", "cuda"), "native", "cuda", 60)
    run.keep("native", [first, second])
    told = first.get("accelerators")
    run.verdict("native-1: NVML tells the GPU", str(told), passed=bool(told))
    same = bool(first) and first == second
    run.verdict("native-1: two runs give the same weights", json.dumps(first), passed=same)


def run_all(out: Path) -> int:
    """Every part in order of importance; 0 where all passed."""
    run = Run(out)
    if not build(run):
        run.say("the GPU's kernels are not built: only native-1 can be checked")
        check_native(run)
        return 1
    for check in (check_hashes, check_models, check_products, check_step, check_native):
        begin = time.monotonic()
        try:
            check(run)
        except Exception as error:  # noqa: BLE001 -- one part never stops the next
            run.verdict(check.__name__, repr(error), passed=False)
        run.say(f"note  {check.__name__}: {time.monotonic() - begin:.0f} s")
    return 1 if run.failed else 0
