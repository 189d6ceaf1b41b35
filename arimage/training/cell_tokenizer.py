"""Training of the semantic tokenizer by classification (``tokenizer.cell_classes``): an object has the same codes on
every background.

Cells of objects drawn on grey, and of letters without their sign, are clustered (:mod:`arimage.training.cells`); each
cluster is a code. The vision encoder sees the picture as it is, with attention but without positions, and learns by
cross-entropy which cluster each cell belongs to. The codebook's vectors are the clusters' directions and learn with it.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from arimage.checkpoints.components import Component
from arimage.checkpoints.model_config import ModelConfig
from arimage.data.assets import Assets
from arimage.data.records import Record
from arimage.data.scenes.cells import cells_of, flat
from arimage.errors import DataError
from arimage.files import write_whole
from arimage.training.cells import Classes, different_cells, neutral_view
from arimage.training.config import TrainConfig
from arimage.training.examples import Example
from arimage.training.objective import Losses, Objective, generator
from arimage.training.tokenizer import tokenizer_state
from tokenizer.pixels import picture
from tokenizer.semantic_tokenizer import SemanticTokenizer, half_size_pixels
from tokenizer.vision_encoder import Block

CLASSES = "classes.safetensors"
TEMPERATURE = 0.05
FIXED = ("visual.embeddings.*", "post_quant_conv.*")
NOISE, BLUR = 0.06, 1.2


class CellTokenizerObjective(Objective):
    """Cross-entropy between the codes of a picture's cells and the classes of its neutral view."""

    def __init__(
        self, dimensions: ModelConfig, config: TrainConfig, device: torch.device, tokenizer: SemanticTokenizer
    ) -> None:
        super().__init__(dimensions, config, device)
        self.settings = settings = config.tokenizer
        self.visual, quantizer = tokenizer.model.visual, tokenizer.model.vqmodel
        self.quant_conv, self.post_quant_conv = quantizer.quant_conv, quantizer.post_quant_conv
        self.codebook = nn.Parameter(F.normalize(quantizer.quantize.embedding.weight.detach(), dim=-1))
        self.patch = dimensions.vision_encoder.patch_size
        pixels = 3 * self.patch**2
        self.classes = Classes(pixels, min(settings.components, pixels), quantizer.config.num_embeddings)
        self.fixed = FIXED
        with torch.no_grad():
            self.visual.embeddings.position_embedding.weight.zero_()

    def sharded_modules(self) -> list[nn.Module]:
        return [module for module in self.visual.modules() if isinstance(module, Block)]

    def compiled_modules(self) -> list[nn.Module]:
        return self.sharded_modules()

    @cached_property
    def assets(self) -> Assets:
        """What the stage's scenes are composed of, to draw them again on neutral ground."""
        return Assets.open(next(str(source.assets) for source in self.config.data if source.assets is not None))

    def prepare(self, batches: Any) -> None:
        """Find the classes and begin with directions of codes that are alike where their looks are, or take them up."""
        if self.settings.classes is not None:
            self.classes.load_state_dict(read_classes(Path(self.settings.classes), self.classes))
            return
        records: list[Record] = []
        step = 0
        while len(records) < self.settings.class_samples:
            records += [example.pictured for example in batches.examples(step)[0]]
            step += 1
        cells, weights, own = different_cells(records, self.assets, self.patch, self.settings.large_cells)
        error = self.classes.fit(cells, weights, own, self.settings.class_iterations, self.config.seed)
        print(f"{len(cells)} different cells, {int(own.sum())} of them with a code of their own; rms error {error:.4f}")
        size = self.codebook.shape[1]
        whitened = F.normalize(self.classes.centers[:, :size] / self.classes.centers[:, :size].std(dim=0), dim=-1)
        with torch.no_grad():
            self.codebook[:, : whitened.shape[1]].copy_(whitened)
        write_whole(Path(self.config.output) / CLASSES, save(self.classes.state_dict()))

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        views, neutral, letters = [], [], []
        for example in examples:
            record = example.pictured
            view = half_size_pixels(record.image)
            target, places = neutral_view(record, view, self.assets, self.patch)
            views.append(_degraded(record.image, view, example.seed, self.settings.degradation_prob))
            neutral.append(target)
            letters.append(places >= 0)
        plain = torch.stack([half_size_pixels(example.pictured.image) for example in examples])
        return {
            "views": torch.stack(views), "neutral": torch.stack(neutral), "letters": torch.stack(letters),
            "plain": flat(cells_of(plain, self.patch)),
        }  # fmt: skip

    def scores(self, views: Tensor) -> Tensor:
        """Logits of every code in every cell, (B, h, w, num_embeddings)."""
        features = torch.stack(self.visual(list(views)))
        vectors = F.normalize(self.quant_conv(features).float(), dim=1).permute(0, 2, 3, 1)
        return vectors @ F.normalize(self.codebook, dim=-1).T / TEMPERATURE

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        wanted = self.classes.assign(cells_of(batch["neutral"], self.patch))
        scores, plain, letters = self.scores(batch["views"]), batch["plain"], batch["letters"]
        losses = F.cross_entropy(scores.flatten(0, 2), wanted.flatten(), reduction="none").view_as(plain)
        right = (scores.argmax(dim=-1) == wanted).float()
        weight = torch.where(plain, self.settings.flat_cell_weight, 1.0)
        parts: Losses = {"loss": (losses * weight).sum() / weight.sum()}
        for name, where in (("ground", plain), ("letters", letters), ("things", ~plain & ~letters)):
            if where.any():
                parts[f"{name}_loss"], parts[f"{name}_right"] = losses[where].mean().detach(), right[where].mean()
        return parts

    def states(self, weights: Mapping[str, Tensor]) -> dict[Component, dict[str, Tensor]]:
        return tokenizer_state(weights, weights["codebook"])

    @torch.no_grad()
    def pictures(self, examples: Sequence[Example]) -> list[tuple[str, Image.Image]]:
        """Each view beside the looks of its true and of its given codes."""
        shown = []
        for number, example in enumerate(examples[:6]):
            view = half_size_pixels(example.pictured.image)
            neutral, _ = neutral_view(example.pictured, view, self.assets, self.patch)
            true = self.classes.assign(cells_of(neutral[None].to(self.device), self.patch))
            given = self.scores(view[None].to(self.device)).argmax(dim=-1)
            rows = [view, *(self.classes.painted(codes, self.patch)[0].cpu() for codes in (true, given))]
            shown.append((f"looks of codes {number}", picture(torch.cat(rows, dim=-1))))
        return shown


def read_classes(path: Path, like: Classes) -> dict[str, Tensor]:
    """The classes that an earlier run found, ``classes.safetensors`` in its output.

    Raises:
        DataError: the file cannot be read, or belongs to another number of codes or components.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"tokenizer.classes: cannot read {path}: {error}") from None
    wanted = {name: tuple(value.shape) for name, value in like.state_dict().items()}
    if {name: tuple(value.shape) for name, value in found.items()} != wanted:
        raise DataError(f"tokenizer.classes: {path} holds classes of another tokenizer; wanted are {wanted}")
    return found


def _degraded(image: Image.Image, view: Tensor, seed: int, share: float) -> Tensor:
    """A view as it might be of a picture that was rendered: a share of them a little blurred and noisy."""
    random = generator(seed, 5)
    chance, blur, noise = torch.rand(3, generator=random).tolist()
    if chance >= share:
        return view
    worn = half_size_pixels(image.filter(ImageFilter.GaussianBlur(blur * BLUR)))
    return worn + noise * NOISE * torch.randn(view.shape, generator=random)
