"""Peak host memory of loading a checkpoint, against the size of what is loaded.

    python benchmarks/load_memory.py --folder one-gigabyte

Writes a random checkpoint of about 1 GB there if the folder does not exist (in bf16: one file a component, and in
shards of 200 MB in FOLDER-sharded), then loads it in fresh processes. ``resident`` keeps every network, and its peak
is compared with the sum of the networks in memory; ``sequential`` frees each before the next, and its peak is compared
with the largest. The memory that imports alone take is measured first and subtracted. Bar: 1.15.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

NETWORKS = ("semantic_tokenizer", "autoregressive", "glyph_encoder", "transformer", "autoencoder")
SMALLER = ("text_model.num_hidden_layers=10", "transformer.num_layers=10")


def status(key: str) -> int:
    """Bytes from the process status file (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def write(folder: Path) -> None:
    from arimage.checkpoints.initialization import initialize_folder
    from arimage.checkpoints.model_config import ModelConfig
    from arimage.yaml_files import load_yaml

    config = load_yaml("configs/base/model.yaml", ModelConfig, SMALLER)
    initialize_folder(config, folder)
    shard(folder, folder.with_name(folder.name + "-sharded"))


def shard(folder: Path, path: Path) -> None:
    from arimage.checkpoints.checkpoint import Checkpoint, save_checkpoint
    from arimage.checkpoints.components import COMPONENTS
    from arimage.checkpoints.weights import WeightFiles

    checkpoint = Checkpoint.open(folder)
    states = {}
    for component in COMPONENTS:
        weights = WeightFiles(folder / component)
        states[component] = dict(weights.read(weights.names))
    definition = checkpoint.text_tokenizer().definition
    save_checkpoint(path, checkpoint.config, states, definition, max_shard_size="200MB", random=True)


def measure(folder: Path, placement: str, dtype_name: str) -> None:
    import diffusers  # noqa: F401
    import torch
    import transformers  # noqa: F401
    from diffusers import AutoencoderKL  # noqa: F401
    from transformers import T5EncoderModel  # noqa: F401

    from arimage.checkpoints.checkpoint import Checkpoint
    from arimage.inference.networks import Networks

    dtype = getattr(torch, dtype_name)
    networks = Networks(Checkpoint.open(folder), torch.device("cpu"), dtype, placement)
    before = status("VmRSS")
    sizes = []
    for name in NETWORKS:
        with networks.use(name) as network:
            sizes.append(sum(parameter.nbytes for parameter in network.parameters()))
        del network
    peak = status("VmHWM") - before
    size = sum(sizes) if placement == "resident" else max(sizes)
    print(
        json.dumps(
            {
                "folder": folder.name,
                "placement": placement,
                "dtype": dtype_name,
                "loaded_bytes": size,
                "peak_bytes": peak,
                "ratio": round(peak / size, 3),
                "imports_bytes": before,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--measure", nargs=2, metavar=("PLACEMENT", "DTYPE"), help="one measurement in this process")
    options = parser.parse_args()
    if options.measure:
        return measure(options.folder, *options.measure)
    if not options.folder.exists():
        write(options.folder)
    for folder in (options.folder, options.folder.with_name(options.folder.name + "-sharded")):
        for placement in ("resident", "sequential"):
            for dtype in ("bfloat16", "float32"):
                command = [sys.executable, __file__, "--folder", str(folder), "--measure", placement, dtype]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
