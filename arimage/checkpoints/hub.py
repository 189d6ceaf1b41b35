"""Where the files of models come from: folders here, the local cache of the Hugging Face hub, and git.

Nothing is downloaded: what is not here is named, with the command that fetches it.
"""

import os
import re
from pathlib import Path

from arimage.errors import CheckpointError
from arimage.files import is_pointer

CACHED = "models--"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find(path: str | os.PathLike[str], what: str) -> Path:
    """A path that exists, or where the local cache of the hub has the repository ``owner/name``.

    Args:
        what: is looked for, for the message.

    Raises:
        CheckpointError: it is neither.
    """
    path = Path(path)
    if path.exists():
        return path
    name = path.as_posix()
    if not _REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{path} is not {what}; there is nothing of that name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        raise CheckpointError(
            f"{path} is not {what} here, nor a repository in the local cache of the Hugging Face hub; "
            f"if the hub has it, download it first: hf download {name}"
        ) from None


def repository(path: Path) -> str | None:
    """The name of the repository in whose cached snapshot a path lies, or None."""
    for part in path.absolute().parts:
        if part.startswith(CACHED):
            return part.removeprefix(CACHED).replace("--", "/")
    return None


def fetch_hint(path: Path) -> str:
    """How to complete what is missing at a path: words to append to a message, none outside the hub's cache."""
    name = repository(path)
    return "" if name is None else f"; the download is not complete: hf download {name}"


def refuse_pointer(path: Path) -> None:
    """Raise CheckpointError where :func:`is_pointer`."""
    if is_pointer(path):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the file itself; run 'git lfs pull' in its repository")
