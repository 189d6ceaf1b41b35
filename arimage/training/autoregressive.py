"""Training of the autoregressive model: the next visual token, for pictures and edits alike.

Sequences come from the layout that generation uses, packed in one row without padding. The preview is the picture's
own view at the preview grid's size; its tokens have a weight of their own. Only visual tokens and the image end carry
loss. A sample's loss is the weighted mean over its tokens, the batch's the mean over its samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from arimage.autoregressive.layout import IGNORED_LABEL, Region, build_prompt, target_grid, training_sequence
from arimage.autoregressive.vocabulary import Vocabulary
from arimage.checkpoint import Checkpoint, Component
from arimage.data.records import EncodedRecord
from arimage.training.batches import Example
from arimage.training.config import TrainConfig
from arimage.training.objective import Losses, Objective
from arimage.training.tokens import encode_views, preview_view, reference_view
from tokenizer.image_size import SizeLimits
from tokenizer.semantic_tokenizer import half_size_pixels


class AutoregressiveObjective(Objective):
    """Cross entropy of visual tokens."""

    def __init__(self, checkpoint: Checkpoint, config: TrainConfig, device: torch.device) -> None:
        super().__init__(checkpoint, config, device)
        self.settings = config.autoregressive
        self.model = checkpoint.autoregressive(device=torch.device("cpu"), dtype=torch.float32)
        self.model.gradient_checkpointing = config.gradient_checkpointing
        self.helpers["tokenizer"] = checkpoint.semantic_tokenizer(device=device, dtype=torch.float32)
        text = checkpoint.text_tokenizer()
        self.vocabulary = Vocabulary(
            codebook_size=checkpoint.config.quantizer.num_embeddings,
            image_start=text.image_start,
            image_end=text.image_end,
            grid_start=text.sop,
            grid_end=text.eop,
            pad=text.pad,
            encode=text.encode,
            prefix=tuple(text.prefix_ids),
        )
        processor = checkpoint.config.processor
        self.limits = SizeLimits(processor.min_side, processor.max_side)
        self.model.text_rows_frozen = config.vision_rows_only

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        samples: list[dict[str, Any]] = []
        for example in examples:
            record = example.record
            if isinstance(record, EncodedRecord):
                own = [codes for codes in (record.preview, record.codes) if codes is not None]
                known = [codes for codes, _ in record.references], own
                samples.append({"text": example.caption, "size": record.size, "encoded": known})
                continue
            references = [half_size_pixels(reference_view(source, self.limits)) for source in record.sources]
            samples.append(
                {
                    "text": example.caption,
                    "size": (record.image.height, record.image.width),
                    "target": half_size_pixels(record.image),
                    "preview": None if references else preview_view(record.image),
                    "references": references,
                }
            )
        return {"samples": samples}

    def tokenize(self, batch: Mapping[str, Any]) -> list[tuple[list[Tensor], list[Tensor]]]:
        """For each sample its references' grids, and the grids to predict (preview and target, or the target)."""
        views, counts = [], []
        for sample in batch["samples"]:
            if "encoded" in sample:
                counts.append((0, 0))
                continue
            own = [view for view in (sample["preview"], sample["target"]) if view is not None]
            views += [*sample["references"], *own]
            counts.append((len(sample["references"]), len(own)))
        grids = iter(encode_views(self.helpers["tokenizer"], views, self.device))
        made = [([next(grids).cpu() for _ in range(a)], [next(grids).cpu() for _ in range(b)]) for a, b in counts]
        known = [sample.get("encoded") for sample in batch["samples"]]
        return [one if encoded is None else _on_cpu(encoded) for one, encoded in zip(made, known)]

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        grids = self.tokenize(batch)
        sequences = []
        for sample, (references, own) in zip(batch["samples"], grids):
            prompt = build_prompt(self.vocabulary, sample["text"], target_grid(*sample["size"]), references)
            sequences.append(training_sequence(prompt, own, self.vocabulary))
        lengths = [len(sequence.tokens) for sequence in sequences]
        tokens = torch.cat([sequence.tokens for sequence in sequences])[None].to(self.device)
        positions = torch.cat([sequence.positions for sequence in sequences], dim=1)[:, None].to(self.device)
        labels = torch.cat([sequence.labels for sequence in sequences]).to(self.device)
        regions = torch.cat([sequence.regions for sequence in sequences]).to(self.device)
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(self.device)
        hidden = self.model(tokens, positions, lengths)[0]
        asked = labels != IGNORED_LABEL
        scores = self.model.scores(hidden[asked]).float()
        smoothing = self.settings.label_smoothing if self.training else 0.0
        losses = F.cross_entropy(scores, labels[asked], reduction="none", label_smoothing=smoothing)
        weights = torch.ones_like(losses)
        weights[regions[asked] == Region.PREVIEW] = self.settings.preview_weight
        weights[regions[asked] == Region.END] = self.settings.end_weight
        by_sample = torch.zeros(len(lengths), device=self.device)
        totals = by_sample.index_add(0, owner[asked], losses * weights)
        loss = (totals / by_sample.index_add(0, owner[asked], weights)).mean()
        parts = {"loss": loss}
        with torch.no_grad():
            right = (scores.argmax(dim=-1) == labels[asked]).float()
            for name, region in (("preview", Region.PREVIEW), ("target", Region.TARGET)):
                inside = regions[asked] == region
                if inside.any():
                    parts[name] = losses[inside].mean().detach()
                    parts[f"{name}_accuracy"] = right[inside].mean()
        return parts

    def live_networks(self) -> dict[str, Any]:
        return {"autoregressive": self.model, "semantic_tokenizer": self.helpers["tokenizer"]}

    def states(self, weights: Mapping[str, Tensor]) -> dict[Component, dict[str, Tensor]]:
        return {"vision_language_encoder": {name.removeprefix("model."): w for name, w in weights.items()}}


def _on_cpu(grids: tuple[list[Tensor], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    references, own = grids
    return [grid.cpu() for grid in references], [grid.cpu() for grid in own]
