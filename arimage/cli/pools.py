"""What ``--ray`` and ``--cluster`` ask for."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arimage.scale.cluster import Cluster


def check_pools(ray: str | None, cluster: Path | None) -> None:
    """Refuse ``--cluster`` alone, and ``--ray`` where Ray is not installed.

    Raises:
        UsageError, ArimageError: which it is.
    """
    from arimage.errors import UsageError
    from arimage.scale.pools import import_ray

    if ray is not None:
        import_ray()
    elif cluster is not None:
        raise UsageError("--cluster is for --ray")


def open_pools(ray: str, cluster: Path | None) -> "tuple[Any, Cluster]":
    """Ray, connected, and the workers of each stage; without a file as many as the cluster has room for."""
    from arimage.scale.cluster import Cluster, default_cluster
    from arimage.scale.pools import connect
    from arimage.yaml_files import load_yaml

    pools = None if cluster is None else load_yaml(cluster, Cluster)
    connected = connect(ray)
    if pools is None:
        import torch

        there = connected.cluster_resources()
        pools = default_cluster(there.get("CPU", 1.0), there.get("GPU", 0.0), torch.get_num_threads())
    return connected, pools


def for_workers(model: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`arimage.load` that mean the same in another folder, where workers may run."""
    from arimage.checkpoints.lora import parse_lora

    adapters = [parse_lora(one) for one in given["lora"]]
    path = None if model is None else str(model.absolute() if model.exists() else model)
    return given | {"path": path, "lora": tuple((str(path.absolute()), strength) for path, strength in adapters)}
