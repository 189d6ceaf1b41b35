"""The model that ships in the package.

Where the package was built without its weights a random model of the same dimensions takes their place; it is made once
in the user's cache folder, and everything made with it says so.
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
SHIPPED = PACKAGE / "models" / "nano"
CONFIG = PACKAGE / "configs" / "nano" / "model.yaml"


def cache_folder() -> Path:
    """Where this user's rebuildable files are kept; ``ARIMAGE_CACHE`` overrides the platform's place."""
    if chosen := os.environ.get("ARIMAGE_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "arimage"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "arimage" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arimage"


def embedded_folder() -> Path:
    """The checkpoint folder of the embedded model."""
    if (SHIPPED / "model_index.json").exists():
        return SHIPPED
    key = hashlib.sha256(CONFIG.read_bytes())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        key.update(source.read_bytes())
    name = f"random-nano-{key.hexdigest()[:12]}"
    for parent in (cache_folder(), Path(tempfile.gettempdir()) / "arimage"):
        if (parent / name / "model_index.json").exists():
            return parent / name
        try:
            parent.mkdir(parents=True, exist_ok=True)
            return _build(parent / name)
        except OSError:
            continue
    raise OSError(f"neither {cache_folder()} nor the temporary folder can be written; set ARIMAGE_CACHE")


def _build(path: Path) -> Path:
    from arimage.checkpoints.initialization import initialize_folder
    from arimage.checkpoints.model_config import ModelConfig
    from arimage.yaml_files import load_yaml

    return initialize_folder(load_yaml(CONFIG, ModelConfig), path, seed=0, name="arimage-nano (random weights)")
