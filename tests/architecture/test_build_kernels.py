"""Compiling the portable kernels: nothing but their sources decides what they compute."""

import pytest

from tools import build_kernels


def test_no_flag_of_the_environment_reaches_the_compiler(monkeypatch):
    """NUM-103: the digest of the sources tells everything that can change a bit."""
    for name in ("CXXFLAGS", "LDFLAGS", "CPATH", "COMPILER_PATH", "GCC_EXEC_PREFIX"):
        monkeypatch.setenv(name, "-mfpmath=387")
    seen = build_kernels._run(["env"]).decode()
    assert "mfpmath" not in seen
    assert "-DCMAKE_CXX_FLAGS=" in build_kernels._NO_FLAGS


def test_kernels_that_print_other_hashes_are_not_installed(tmp_path):
    """NUM-86: the conformance program runs before the library gets its place."""
    vectors = tmp_path / "vectors.txt"
    vectors.write_bytes(b"gemm 1\n")
    program = tmp_path / "conformance"
    program.write_text("#!/bin/sh\necho gemm 2\n")
    program.chmod(0o755)
    with pytest.raises(SystemExit, match="do not compute"):
        build_kernels._check(program, vectors)
    vectors.write_bytes(b"gemm 2\n")
    build_kernels._check(program, vectors)


def test_a_library_that_is_in_use_is_not_written_over(tmp_path, monkeypatch):
    """A running step has it mapped, and would end with SIGBUS."""
    library = tmp_path / build_kernels.LIBRARY
    library.parent.mkdir(parents=True)
    library.write_bytes(b"old")

    def ran(command):
        if "--install" in command:
            library.write_bytes(b"new")

    monkeypatch.setattr(build_kernels, "_run", ran)
    monkeypatch.setattr(build_kernels, "_check", lambda *_: None)
    with library.open("rb") as used:
        build_kernels.build(tmp_path)
        assert used.read() == b"old"
    assert library.read_bytes() == b"new"
