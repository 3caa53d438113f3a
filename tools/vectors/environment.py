"""Environments and machines."""

from kolm_build.core import cbor
from kolm_build.core.digest import Digest
from kolm_build.core.environment import Distribution, Environment
from kolm_build.core.machine import Accelerator, Machine
from kolm_build.core.numerics import Platform
from tools.vectors._notation import record


def _digest(text: str) -> Digest:
    return Digest.of_blob(text.encode())


def vectors() -> dict[str, object]:
    bare = Environment.of(python="3.11.7", interpreter=_digest("python"), distributions=())
    full = Environment.of(
        python="3.11.7",
        interpreter=_digest("python"),
        distributions=[
            Distribution(name=name, version=version, content=_digest(name))
            for name, version in (("torch", "2.13.0+cpu"), ("blake3", "1.0.11"), ("a-b", "1!2rc1"))
        ],
    )
    machine = Machine(
        platform=Platform(isa="x86_64-v4", vendor="GenuineIntel", accel="sm_90"),
        cpu="A processor",
        cores=16,
        memory_bytes=1 << 37,
        kernel="Linux 6.1.0",
        libc="glibc 2.36",
        accelerators=(
            Accelerator(
                name="An accelerator", architecture="sm_90", driver="580.1", memory_bytes=1 << 37
            ),
        ),
    )
    return {
        "environments": [
            record(one.to_value(), one.encode(), digest=one.digest) for one in (bare, full)
        ],
        "machines": [
            record(machine.to_value(), cbor.encode(machine.to_value()), digest=machine.digest)
        ],
    }
