"""The artwork and its packages: what is fetched, under which licence, and how.

Everything comes through the npm registry's own client, at pinned versions whose contents are checked against the
registry's published SHA-512. A file that is there and right is not fetched again, so the second run needs no
network.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from arimage.errors import DataError

TABLE = Path(__file__).parent / "artwork.json"


@dataclass(frozen=True)
class Package:
    """A package of artwork.

    Attributes:
        name, version, sha512: what is fetched; the hash is base64, as the registry publishes it.
        kind: ``icons`` (SVG in an iconify file), ``pictures`` (WebP files by code point), ``names`` or ``font``.
        style: of the pictures, or of the font (``latin``, ``chinese``).
        licence: SPDX identifier.
        attribution: whom to name.
    """

    name: str
    version: str
    sha512: str
    kind: str
    style: str
    licence: str
    attribution: str

    @property
    def file_name(self) -> str:
        """What the client calls the file."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@cache
def packages() -> tuple[Package, ...]:
    """All packages, in the order in which they are fetched."""
    return tuple(Package(**entry) for entry in json.loads(TABLE.read_text(encoding="utf-8")))


def choose(kinds: Iterable[str], styles: Iterable[str] | None = None) -> list[Package]:
    """Packages of some kinds, and of some styles if any are named.

    Raises:
        DataError: a style is not known.
    """
    kinds = set(kinds)
    found = [package for package in packages() if package.kind in kinds]
    if styles is None:
        return found
    known = {package.style for package in found}
    for style in styles:
        if style not in known:
            raise DataError(f"there is no style {style!r}; known are {', '.join(sorted(known))}")
    return [package for package in found if package.style in set(styles)]


def fetch(package: Package, folder: Path) -> Path:
    """The package's file in ``folder``, fetched if it is not there.

    Raises:
        DataError: npm is missing, the registry cannot be reached, or the contents are not those that are pinned.
    """
    path = folder / package.file_name
    if path.exists() and _sha512(path) == package.sha512:
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("artwork is fetched with npm, which is not installed here; install Node.js")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as part:
        command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
        done = subprocess.run(command, cwd=part, capture_output=True, text=True, check=False)
        fetched = Path(part) / package.file_name
        if done.returncode or not fetched.exists():
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no reason given"]
            raise DataError(f"{package.name}@{package.version} cannot be fetched: {reason[0]}")
        if _sha512(fetched) != package.sha512:
            raise DataError(f"{package.name}@{package.version}: its contents are not those that are pinned")
        fetched.replace(path)
    return path


def fetch_all(
    chosen: Iterable[Package], folder: Path, on_progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Path]:
    """Fetch packages; files by package name."""
    chosen = list(chosen)
    files = {}
    for number, package in enumerate(chosen, 1):
        files[package.name] = fetch(package, folder)
        if on_progress is not None:
            on_progress(number, len(chosen), package.name)
    return files


def read_member(file: Path, member: str) -> bytes:
    """One file of a package, without unpacking it.

    Raises:
        DataError: it is not in there.
    """
    with tarfile.open(file) as archive:
        try:
            handle = archive.extractfile(f"package/{member}")
        except KeyError:
            handle = None
        if handle is None:
            raise DataError(f"{file.name} holds no {member}")
        return handle.read()


def _sha512(path: Path) -> str:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
