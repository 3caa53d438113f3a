"""One commit of a repository on a Hugging Face hub."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kolm_build.errors import InvalidRecordError, NetworkError
from kolm_build.steps._files import files_of


def fetch_snapshot(
    repository: str, commit: str, *, patterns: Sequence[str], out: Path, scratch: Path
) -> None:
    """Copy the files of `repository` at `commit` to `out`.

    Args:
        repository: ``ORG/NAME``.
        commit: The full commit.
        patterns: Which files, as globs; none for all.
        out: The folder to fill.
        scratch: A folder for what is on its way.

    Raises:
        NetworkError: The hub cannot be reached, or does not give it.
        InvalidRecordError: No file matches.
    """
    name = f"hf:{repository}@{commit}"
    folder = scratch / "snapshot"
    try:
        snapshot_download(
            repository, revision=commit, allow_patterns=list(patterns) or None, local_dir=folder
        )
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise _refused(name, error, "Log in with `hf auth login` if you have access.") from None
    except RevisionNotFoundError as error:
        raise _refused(name, error, "Check the commit.") from None
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's
        raise _refused(name, error, "Check the network, or HF_ENDPOINT for a mirror.") from None
    except Exception as error:  # noqa: BLE001  # the transport below the library changes its name
        raise _refused(name, error, "Check the network, or HF_ENDPOINT for a mirror.") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's own notes
    if not folder.is_dir() or not files_of(folder):
        raise InvalidRecordError(
            "no file of the repository matches",
            where="params.files",
            expected=" or ".join(patterns) or "a file",
        )
    shutil.copytree(folder, out, dirs_exist_ok=True)


def _refused(name: str, error: Exception, advice: str) -> NetworkError:
    said = str(error).strip().splitlines() or [type(error).__name__]
    return NetworkError("the hub does not give it", file=name, actual=said[0][:200], advice=advice)
