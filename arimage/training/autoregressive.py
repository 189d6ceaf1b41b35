"""Training of the autoregressive model: the next visual token, for pictures and edits alike.

Sequences come from the layout that generation uses, packed in one row without padding. The preview is the picture's
own view at the preview grid's size, or left out, or blank; its tokens have a weight of their own. Only visual tokens
and the image end carry loss. A sample's loss is the weighted mean over its tokens, the batch's the mean over its
samples.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from arimage.autoregressive.layout import (
    IGNORED_LABEL,
    Region,
    TrainingSequence,
    build_prompt,
    target_grid,
    training_sequence,
)
from arimage.autoregressive.model import AutoregressiveModel, Layer
from arimage.autoregressive.vocabulary import Vocabulary
from arimage.checkpoints.components import Component
from arimage.checkpoints.model_config import ModelConfig
from arimage.data.records import EncodedRecord
from arimage.errors import UsageError
from arimage.training.codes import code_vectors, encode_views, preview_view, reference_view, with_codes_renamed
from arimage.training.config import NamingHead, TrainConfig
from arimage.training.copy_heads import initialize_copy_heads, initialize_induction_heads
from arimage.training.examples import Example
from arimage.training.kept_codes import kept_cells, with_kept_codes
from arimage.training.naming_heads import Alignment, NamedCodes, ToldApart, align, initialize_naming_head
from arimage.training.objective import Losses, Objective, generator
from tokenizer.image_size import PIXELS_PER_TOKEN
from tokenizer.semantic_tokenizer import SemanticTokenizer, half_size_pixels

NAMES = 0
TOLD_APART = 256  # edits to which a naming head is fitted
ANOTHER_PICTURE = ("identity", "combine")  # edits whose target is no version of a reference


class SampleCodes(NamedTuple):
    """The codes (h, w) of a sample's references, and those to predict: preview and target, or the target alone."""

    references: list[Tensor]
    targets: list[Tensor]


class Packed(NamedTuple):
    """Sequences in one row, (1, L), without padding.

    Attributes:
        tokens, positions: (1, L) and (3, 1, L).
        lengths: of each sequence.
        labels, regions: (L,), see :class:`~arimage.autoregressive.layout.TrainingSequence`.
        owner: (L,) which sequence a token belongs to.
    """

    tokens: Tensor
    positions: Tensor
    lengths: list[int]
    labels: Tensor
    regions: Tensor
    owner: Tensor


def packed(sequences: Sequence[TrainingSequence], device: torch.device) -> Packed:
    """Put sequences into one row."""
    lengths = [len(sequence.tokens) for sequence in sequences]
    return Packed(
        torch.cat([sequence.tokens for sequence in sequences])[None].to(device),
        torch.cat([sequence.positions for sequence in sequences], dim=1)[:, None].to(device),
        lengths,
        torch.cat([sequence.labels for sequence in sequences]).to(device),
        torch.cat([sequence.regions for sequence in sequences]).to(device),
        torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device),
    )


class AutoregressiveObjective(Objective):
    """Cross entropy of visual tokens."""

    def __init__(
        self,
        dimensions: ModelConfig,
        config: TrainConfig,
        device: torch.device,
        model: AutoregressiveModel,
        tokenizer: SemanticTokenizer,
        vocabulary: Vocabulary,
    ) -> None:
        super().__init__(dimensions, config, device)
        self.settings = config.autoregressive
        self.model, self.vocabulary = model, vocabulary
        self.helpers["tokenizer"] = tokenizer
        self.limits = dimensions.processor.limits
        self.model.text_rows_frozen = config.vision_rows_only
        self._blanks: dict[tuple[int, int], Tensor] = {}
        self.changes: nn.Linear | None = None
        if self.settings.changes and self.settings.grpo is None and self.settings.dpo is None:
            layers = model.config.num_hidden_layers
            self.changes_layer = self.settings.changes_layer or max(1, layers // 2)
            if config.lora is not None:
                raise UsageError("autoregressive.changes goes without lora, whose adapters are all that learns")
            if self.changes_layer > layers:
                raise UsageError(f"autoregressive.changes_layer={self.changes_layer}: the model has {layers} layers")
            self.changes = nn.Linear(model.config.hidden_size, 1, device=device)
            nn.init.zeros_(self.changes.weight)
            nn.init.zeros_(self.changes.bias)
        self.alignment: Alignment | None = None
        naming = self.settings.naming_head
        if (self.settings.alignment or naming) and self.settings.grpo is None and self.settings.dpo is None:
            what = "alignment" if naming is None else "naming_head"
            if config.lora is not None:
                raise UsageError(f"autoregressive.{what} goes without lora, whose adapters are all that learns")
            if not vocabulary.text_first:
                raise UsageError(f"autoregressive.{what} needs a model that reads the text first (text_first)")
            self.alignment_layer = max(1, model.config.num_hidden_layers // 3) if naming is None else naming.layer
            free = model.config.head_dim - 2 * sum(model.config.mrope_section)
            self.alignment = Alignment(model.config.hidden_size, free - 1).to(device)

    def sharded_modules(self) -> list[nn.Module]:
        return [module for module in self.model.modules() if isinstance(module, Layer)]

    def checkpointed_networks(self) -> list[Any]:
        return [self.model]

    def compiled_modules(self) -> list[nn.Module]:
        return self.sharded_modules()

    @torch.no_grad()
    def prepare(self, batches: Any) -> None:
        """Give visual tokens rows that are as alike as their codes, in the embedding and in the head; and begin with
        heads that copy, if the stage says so."""
        embedding = self.model.model.language_model.embed_tokens.weight
        if self.settings.codes_from_codebook:
            for table in (embedding, self.model.lm_head.weight):
                rows = code_vectors(self.helpers["tokenizer"], table.shape[1], self.config.seed)
                table[: len(rows)] = rows * table.std()
        codes = embedding[: self.vocabulary.codebook_size]
        try:
            for heads in self.settings.copy_heads:
                side = heads.side or self.limits.min_side
                grid, number = target_grid(side, side), heads.key_value_head
                initialize_copy_heads(self.model, heads.layers, self.vocabulary, codes, grid, number)
            if self.settings.induction_heads is not None:
                initialize_induction_heads(self.model, self.settings.induction_heads, codes)
        except ValueError as error:
            raise UsageError(f"autoregressive.copy_heads, autoregressive.induction_heads: {error}") from None
        if self.settings.naming_head is not None:
            self._begin_with_names(self.settings.naming_head, batches)

    def _begin_with_names(self, settings: NamingHead, batches: Any) -> None:
        """Align the codes and the words of the stage's data, and let a head find the one by the other."""
        assert self.alignment is not None
        prompts: list[NamedCodes] = []
        edits: list[ToldApart] = []
        number = 0
        while len(prompts) < settings.prompts or len(edits) < TOLD_APART:
            batch = batches[number].tensors
            number += 1
            for sample, codes in zip(batch["samples"], self.encode(batch)):
                named = _named(sample, codes)
                if named is None or not len(named[0]):
                    continue
                words = torch.tensor([*self.vocabulary.prefix, *self.vocabulary.encode(sample["text"])])
                prompts.append(NamedCodes(words, *named))
                if len(edits) < TOLD_APART and _is_version(sample, codes):
                    edits.append(self._told_apart(sample, codes, len(words)))
            if number > settings.prompts + TOLD_APART:
                raise UsageError(
                    f"autoregressive.naming_head: {number} batches hold {len(edits)} edits that name a thing"
                )
        try:
            align(self.model, self.alignment, prompts, settings.layer, settings.steps, self.config.seed)
            initialize_naming_head(
                self.model, settings.layer, settings.head, self.alignment, edits, self.vocabulary.codebook_size
            )
        except ValueError as error:
            raise UsageError(f"autoregressive.naming_head: {error}") from None

    def _told_apart(self, sample: Mapping[str, Any], codes: SampleCodes, words: int) -> ToldApart:
        prompt = build_prompt(
            self.vocabulary, sample["text"], target_grid(*sample["size"]), codes.references, preview=False
        )
        source = codes.references[-1].flatten()
        changed, kept = _told_apart(codes)
        sequence = training_sequence(prompt, codes.targets[-1:], self.vocabulary)
        shown = source != source.mode().values
        return ToldApart(sequence, words, prompt.references[-1], changed & shown, kept)

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        samples: list[dict[str, Any]] = []
        for example in examples:
            record = example.record
            sample: dict[str, Any] = {"text": example.caption, "task": record.task}
            if isinstance(record, EncodedRecord):
                sample["size"], sample["encoded"] = record.size, record
                pictured = not record.references
            else:
                sample["size"] = record.image.height, record.image.width
                sample["references"] = [half_size_pixels(reference_view(one, self.limits)) for one in record.sources]
                sample["target"] = half_size_pixels(record.image)
                pictured = not record.sources
                if self.settings.kept_codes:
                    sample["kept"] = kept_cells(record, self.limits)
            if not pictured and Random(f"copy/{example.seed}").random() < self.settings.copy_task_prob:
                sample["copied"] = example.seed
                sample["text"] = ""
            elif not pictured and Random(f"rename/{example.seed}").random() < self.settings.rename_prob:
                sample["renamed"] = example.seed
            sample["preview"] = pictured and Random(f"preview/{example.seed}").random() < self.settings.preview
            if sample["preview"] and self.settings.preview_shows == "picture" and "target" in sample:
                sample["preview_view"] = preview_view(example.pictured.image)
            samples.append(sample)
        return {"samples": samples}

    def encode(self, batch: Mapping[str, Any]) -> list[SampleCodes]:
        """The codes of each sample; from a prepared cache they come encoded."""
        samples = batch["samples"]
        views = [view for sample in samples for view in _views(sample)]
        codes = iter(encode_views(self.helpers["tokenizer"], views, self.device))
        made = []
        for sample in samples:
            encoded = sample.get("encoded")
            if encoded is None:
                references = [next(codes).cpu() for _ in sample["references"]]
                own = [next(codes).cpu() for _ in range(1 + ("preview_view" in sample))]
                if "kept" in sample:
                    own[-1] = with_kept_codes(own[-1], references, sample["kept"])
            else:
                references = [reference.codes.cpu() for reference in encoded.references]
                own = [one.cpu() for one in (encoded.preview, encoded.codes) if one is not None]
            if "copied" in sample:
                references, own = self._copied(references, sample["copied"])
                sample["size"] = tuple(PIXELS_PER_TOKEN * side for side in own[0].shape)
            elif "renamed" in sample:
                given = [references], own[-1][None], self.vocabulary.codebook_size, [sample["renamed"]], NAMES
                (references,), target, new = with_codes_renamed(*given)
                sample["new_codes"], own = new[0].nonzero()[:, 0], [target[0]]
            elif not sample["preview"]:
                own = own[-1:]
            elif self.settings.preview_shows == "blank":
                own = [self._blank(sample["size"]), own[-1]]
            made.append(SampleCodes(references, own))
        return made

    def _copied(self, references: list[Tensor], seed: int) -> tuple[list[Tensor], list[Tensor]]:
        """References under other names, and the last of them as the target."""
        names = torch.randperm(self.vocabulary.codebook_size, generator=generator(seed, NAMES))
        renamed = [names[codes] for codes in references]
        return renamed, renamed[-1:]

    def _blank(self, size: tuple[int, int]) -> Tensor:
        """The preview of a white picture of ``size`` (height, width)."""
        if size not in self._blanks:
            white = preview_view(Image.new("RGB", size[::-1], "white"))
            self._blanks[size] = encode_views(self.helpers["tokenizer"], [white], self.device)[0].cpu()
        return self._blanks[size]

    def sequences(self, batch: Mapping[str, Any]) -> list[TrainingSequence]:
        """The whole sequence of each sample of a collated batch."""
        made = []
        for sample, codes in zip(batch["samples"], self.encode(batch)):
            size = target_grid(*sample["size"])
            prompt = build_prompt(self.vocabulary, sample["text"], size, codes.references, preview=sample["preview"])
            made.append(training_sequence(prompt, codes.targets, self.vocabulary))
            if self.changes is not None and _is_version(sample, codes):
                sample["changed"] = prompt.references[-1], *_told_apart(codes)
            if self.settings.alignment and self.alignment is not None and (named := _named(sample, codes)) is not None:
                sample["named"] = named
                sample["words"] = len(self.vocabulary.prefix) + len(self.vocabulary.encode(sample["text"]))
        return made

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        sequences = self.sequences(batch)
        row = packed(sequences, self.device)
        lengths, labels, regions, owner = row.lengths, row.labels, row.regions, row.owner
        states: list[Tensor] | None = None if self.changes is None and self.alignment is None else []
        hidden = self.model(row.tokens, row.positions, lengths, states)[0]
        asked = labels != IGNORED_LABEL
        scores = self.model.scores(hidden[asked]).float()
        smoothing = self.settings.label_smoothing if self.training else 0.0
        losses = F.cross_entropy(scores, labels[asked], reduction="none", label_smoothing=smoothing)
        weights = torch.ones_like(losses)
        weights[regions[asked] == Region.PREVIEW] = self.settings.preview_weight
        weights[regions[asked] == Region.END] = self.settings.end_weight
        if self.settings.focal is not None and self.training:
            weights = weights * (self.settings.focal + 1 - losses.detach().neg().exp())
        by_sample = torch.zeros(len(lengths), device=self.device)
        totals = by_sample.index_add(0, owner[asked], losses * weights)
        loss = (totals / by_sample.index_add(0, owner[asked], weights)).mean()
        parts = {"loss": loss}
        if states is not None:
            told: Losses = {}
            if self.changes is not None:
                told |= self._told_changes(batch["samples"], states[self.changes_layer - 1][0], lengths)
            if self.settings.alignment:
                told |= self._aligned(batch["samples"], states[self.alignment_layer - 1][0], lengths)
            for name in ("changes", "alignment"):
                if self.training and name in told:
                    parts["loss"] = parts["loss"] + getattr(self.settings, name) * told[name]
            parts |= {name: value.detach() for name, value in told.items()}
        with torch.no_grad():
            right = (scores.argmax(dim=-1) == labels[asked]).float()
            copied = torch.tensor(["copied" in sample for sample in batch["samples"]], device=self.device)[owner][asked]
            target = regions[asked] == Region.TARGET
            new = [sample.get("new_codes", torch.empty(0)) for sample in batch["samples"]]
            renamed = torch.cat([torch.isin(one.labels, codes) for one, codes in zip(sequences, new)]).to(self.device)
            named = {
                "preview": regions[asked] == Region.PREVIEW, "target": target & ~copied, "copy": target & copied,
                "renamed": target & renamed[asked],
            }  # fmt: skip
            for name, inside in named.items():
                if inside.any():
                    parts[name] = losses[inside].mean().detach()
                    parts[f"{name}_accuracy"] = right[inside].mean()
        return parts

    def _told_changes(self, samples: Sequence[Mapping[str, Any]], hidden: Tensor, lengths: Sequence[int]) -> Losses:
        """How well hidden states (L, hidden) at what references show tell whether an edit changes it."""
        assert self.changes is not None
        places, labels, weights, start = [], [], [], 0
        for sample, length in zip(samples, lengths):
            if "changed" in sample:
                first, changed, kept = sample["changed"]
                counted = changed | kept
                share = changed.sum() / counted.sum()
                cells = counted.nonzero()[:, 0]
                places.append(start + first + cells)
                labels.append(changed[cells])
                weights.append(torch.where(changed[cells], 0.5 / share, 0.5 / (1 - share)) / len(cells))
            start += length
        if not places:
            return {}
        told, counted = torch.cat(labels).to(self.device), torch.cat(weights).to(self.device)
        chosen = hidden[torch.cat(places).to(self.device)].float()
        scores = self.changes(F.layer_norm(chosen, chosen.shape[-1:]))[:, 0].float()
        losses = F.binary_cross_entropy_with_logits(scores, told.float(), reduction="none")
        right = ((scores.detach() > 0) == told).float()
        return {
            "changes": (losses * counted).sum() / len(samples),
            "changes_accuracy": (right * counted).sum() / len(places),
        }

    def _aligned(self, samples: Sequence[Mapping[str, Any]], hidden: Tensor, lengths: Sequence[int]) -> Losses:
        """How well texts and the codes that they name find each other in the batch."""
        assert self.alignment is not None
        starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        found = [(start, sample) for start, sample in zip(starts, samples) if "named" in sample]
        if not any(len(sample["named"][0]) for _, sample in found):
            return {}
        codes = torch.cat([torch.cat(sample["named"]) for _, sample in found]).unique()
        belongs = [torch.isin(codes, sample["named"][0]) for _, sample in found]
        texts = [hidden[start : start + sample["words"]] for start, sample in found]
        rows = self.model.model.language_model.embed_tokens.weight[codes.to(self.device)]
        return self.alignment(rows, texts, torch.stack(belongs, dim=1).to(self.device))

    def live_networks(self) -> dict[str, Any]:
        return {"autoregressive": self.model, "semantic_tokenizer": self.helpers["tokenizer"]}

    def states(self, weights: Mapping[str, Tensor]) -> dict[Component, dict[str, Tensor]]:
        own = {name: weight for name, weight in weights.items() if name.startswith("model.")}
        return {"vision_language_encoder": {name.removeprefix("model."): weight for name, weight in own.items()}}


def _told_apart(codes: SampleCodes) -> tuple[Tensor, Tensor]:
    """Which codes of the last reference an edit changes, and which it keeps: (cells,) bool each. The reference's
    commonest code, its ground, is not counted among those kept: that it is no thing tells nothing of which is meant."""
    source, target = codes.references[-1].flatten(), codes.targets[-1].flatten()
    return source != target, (source == target) & (source != source.mode().values)


def _named(sample: Mapping[str, Any], codes: SampleCodes) -> tuple[Tensor, Tensor] | None:
    """The codes that a sample's text names, and others that stand beside them; None where it names none.

    Of a picture all of its codes; of an edit those that come and go and are nowhere in what it keeps.
    """
    if not sample["text"] or "copied" in sample or "renamed" in sample or sample["task"] in ANOTHER_PICTURE:
        return None
    target = codes.targets[-1]
    if not codes.references:
        return target.unique(), target[:0, 0]
    source = codes.references[-1]
    if source.shape != target.shape:
        return None
    kept = source[source == target].unique()
    named = torch.cat([source[source != target], target[source != target]]).unique()
    return named[~torch.isin(named, kept)], kept


def _is_version(sample: Mapping[str, Any], codes: SampleCodes) -> bool:
    """Whether a sample's target is a version of its last reference in which some codes are others."""
    if not codes.references or not sample["text"] or "copied" in sample or "renamed" in sample:
        return False
    if sample["task"] in ANOTHER_PICTURE:
        return False
    if codes.references[-1].shape != codes.targets[-1].shape:
        return False
    return all(bool(part.any()) for part in _told_apart(codes))


def _views(sample: Mapping[str, Any]) -> list[Tensor]:
    """The pictures of a sample that are still to be encoded: references, preview, target."""
    if "encoded" in sample:
        return []
    preview = [sample["preview_view"]] if "preview_view" in sample else []
    return [*sample["references"], *preview, sample["target"]]
