"""Five models in one store: the bytes on the disk against the sum of the files.

    python tools/du_five.py [--store FOLDER] [--place FOLDER]

The five are a base model, a LoRA adapter of it, the adapter merged into the base, and two more
fine-tunes of the same base, merged. The base is the one of `examples/icd-triage`
(SmolLM2-135M-Instruct, bf16), as it lies in the store after `kolm build` there. Two ways of tuning
are measured:

  all-linear  adapters on every linear layer, kolm's default. Adapter and merged model are those
              that the example trained; the two others are not trained.
  q, v        adapters on the query and value projections, PEFT's default for Llama; none trained.

What is not trained is made from an adapter of seeded random numbers with the code of the step
`merge`, so just those tensors change that a training of these layers would change: the store sees
no difference. Each set goes into a fresh store, one root a model, and `kolm store du` measures it.
"Equal files once" is what a store of whole files (nix, dvc) needs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # from the checkout, like all that follows

from kolm_build.core.digest import Digest  # noqa: E402
from kolm_build.core.outputs import parse_outputs  # noqa: E402
from kolm_build.steps._adapter import Adapter, adapter_config  # noqa: E402
from kolm_build.steps._tensors import weight_of  # noqa: E402
from kolm_build.steps._weights import Weight, read_weights, write_weights  # noqa: E402
from kolm_build.steps.merge import WEIGHTS, merge  # noqa: E402
from kolm_build.store.local import LocalStore  # noqa: E402

OUTPUTS = ROOT / "lockfiles/icd-triage.outputs"
RANK, ALPHA = 16, 32
ATTENTION = ("q_proj", "v_proj")
LINEAR = (*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MB = 1_000_000


def trained(store: LocalStore, place: Path) -> tuple[Path, Path, Path]:
    """The example's base, adapter and merged model, as folders."""
    trees = {
        (one.target, one.output): one.tree for one in parse_outputs(OUTPUTS.read_text()).entries
    }
    folders = []
    for target, output in (("base", "out"), ("train-1", "adapter"), ("merge-1", "out")):
        tree = trees[target, output]
        if not store.has_tree(tree):
            sys.exit(f"{store.root} lacks {target}: run `kolm build -C examples/icd-triage` first")
        folders.append(place / target)
        store.materialise(tree, folders[-1])
    base, adapter, merged = folders
    return base, adapter, merged


def random_adapter(
    base: tuple[Weight, ...], layers: tuple[str, ...], seed: int, folder: Path
) -> Path:
    """An adapter of seeded random numbers on the layers of these names, as training writes one."""
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for weight in base:
        module = weight.name.removesuffix(".weight")
        if module.rpartition(".")[2] in layers:
            rows, columns = weight.shape
            name = f"base_model.model.{module}.lora_{{}}.weight"
            down = torch.randn(RANK, columns, generator=random) / columns**0.5
            tensors[name.format("A")] = down
            tensors[name.format("B")] = torch.randn(rows, RANK, generator=random) / 100
    folder.mkdir()
    weights = [weight_of(name, tensor) for name, tensor in sorted(tensors.items())]
    write_weights(folder / "adapter_model.safetensors", weights)
    config = adapter_config(rank=RANK, alpha=ALPHA, tensors=tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def write_merged(base: Path, adapter: Path, folder: Path) -> Path:
    """The base with the adapter merged in, and its other files."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns(WEIGHTS))
    write_weights(folder / WEIGHTS, merge(read_weights(base / WEIGHTS), Adapter.read(adapter)))
    return folder


def five_all_linear(base: Path, adapter: Path, merged: Path, place: Path) -> list[Path]:
    """The example's three, and two fine-tunes of every linear layer."""
    weights = read_weights(base / WEIGHTS)
    more = [
        write_merged(
            base,
            random_adapter(weights, LINEAR, seed, place / f"linear-adapter-{seed}"),
            place / f"linear-{seed}",
        )
        for seed in (2, 3)
    ]
    return [base, adapter, merged, *more]


def five_attention(base: Path, place: Path) -> list[Path]:
    """The base, and three fine-tunes of the query and value projections, one with its adapter."""
    weights = read_weights(base / WEIGHTS)
    adapters = [
        random_adapter(weights, ATTENTION, seed, place / f"attention-adapter-{seed}")
        for seed in (1, 2, 3)
    ]
    return [
        base,
        adapters[0],
        *(
            write_merged(base, adapter, place / f"attention-{number}")
            for number, adapter in enumerate(adapters, 1)
        ),
    ]


def measure(name: str, folders: list[Path], root: Path) -> None:
    """Put the five into a fresh store and print what they take."""
    with LocalStore.open(root) as store:
        for number, folder in enumerate(folders, 1):
            store.add_root(f"{number}-{folder.name}", trees=[store.ingest(folder)])
    du = [sys.executable, "-m", "kolm_build", "store", "du", "--store", str(root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    print(f"{name}:")
    subprocess.run(du, check=True, env=environment)
    said = subprocess.run([*du, "--json"], check=True, env=environment, capture_output=True)
    usage = json.loads(said.stdout)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    summed = sum(path.stat().st_size for path in files)
    if usage["logical_bytes"] != summed:
        sys.exit(f"kolm store du says {usage['logical_bytes']}, the files are {summed} bytes")
    blocks = sum(path.stat().st_blocks * 512 for path in (root / "cas").rglob("*"))
    once = {Digest.of_blob(path.read_bytes()): path.stat().st_size for path in files}
    rows = {
        "sum of the files": summed,
        "equal files once": sum(once.values()),
        "kolm store du, on disk": usage["disk_bytes"],
        "the file system's blocks below cas/": blocks,
    }
    for what, count in rows.items():
        print(f"  {what:<36}{count / MB:>8.1f} MB {count / summed:>7.1%}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure five related models in one store.")
    parser.add_argument("--store", type=Path, default=ROOT / "store", help="where the example is")
    parser.add_argument("--place", type=Path, default=None, help="where to work")
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.place) as folder:
        place = Path(folder)
        with LocalStore.open(args.store, read_only=True) as store:
            base, adapter, merged = trained(store, place)
        measure("all-linear", five_all_linear(base, adapter, merged, place), place / "store-1")
        measure("q, v", five_attention(base, place), place / "store-2")
    return 0


if __name__ == "__main__":
    sys.exit(main())
