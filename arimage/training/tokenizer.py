"""Training of the semantic tokenizer: vision encoder and quantiser, or the quantiser alone.

From scratch, codes must tell what a caption says (contrast with a small text tower, as CLIP: Radford et al. 2021,
arXiv:2103.00020) and what the picture looks like (a throw-away decoder paints the encoder's view from them). On a
given encoder, which stays as it is, the codes must give its features back. The codebook learns in
``vector-quantize-pytorch`` and is exported into the checkpoint's plain table.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from arimage.checkpoints.components import Component
from arimage.checkpoints.model_config import ModelConfig
from arimage.checkpoints.text_tokenizer import TextTokenizer
from arimage.training.config import TrainConfig
from arimage.training.examples import Example
from arimage.training.objective import Losses, Objective
from backends.private import codebook_of
from tokenizer.pixels import picture
from tokenizer.semantic_tokenizer import SemanticTokenizer, half_size_pixels
from tokenizer.vision_encoder import Block

MAX_CAPTION = 96
TEMPERATURE = 0.07


class TokenizerObjective(Objective):
    """Caption contrast, pixel (or feature) reconstruction, commitment."""

    def __init__(
        self,
        dimensions: ModelConfig,
        config: TrainConfig,
        device: torch.device,
        tokenizer: SemanticTokenizer,
        text_tokenizer: TextTokenizer,
    ) -> None:
        super().__init__(dimensions, config, device)
        from vector_quantize_pytorch import VectorQuantize

        self.settings = settings = config.tokenizer
        self.visual, quantizer = tokenizer.model.visual, tokenizer.model.vqmodel
        self.quant_conv, self.post_quant_conv = quantizer.quant_conv, quantizer.post_quant_conv
        sizes = quantizer.config
        self.quantizer = VectorQuantize(
            dim=sizes.embed_dim,
            codebook_size=sizes.num_embeddings,
            decay=settings.codebook_decay,
            use_cosine_sim=True,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=settings.dead_below,
            rotation_trick=settings.rotation_trick,
            commitment_weight=1.0,
        )
        self.patch = dimensions.vision_encoder.patch_size
        hidden = dimensions.vision_encoder.hidden_size
        self.text = text_tokenizer
        if settings.frozen_encoder:
            self.fixed = ("visual.*",)
            self.visual.requires_grad_(False)
        else:
            self.pixel_decoder = PixelDecoder(hidden, settings.decoder_size, settings.decoder_layers, self.patch)
            self.text_tower = TextTower(dimensions.text_model.vocab_size, hidden, settings.text_layers)
            self.image_head = nn.Linear(hidden, hidden, bias=False)
            self.temperature = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    def sharded_modules(self) -> list[nn.Module]:
        return [module for module in self.visual.modules() if isinstance(module, Block)]

    def compiled_modules(self) -> list[nn.Module]:
        return self.sharded_modules()

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        views = torch.stack([half_size_pixels(example.pictured.image) for example in examples])
        captions = [self.text.encode(example.caption)[:MAX_CAPTION] for example in examples]
        longest = max(1, *(len(ids) for ids in captions))
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in captions])
        lengths = torch.tensor([len(ids) for ids in captions])
        return {"views": views, "captions": ids, "caption_lengths": lengths}

    def features(self, views: Tensor) -> Tensor:
        """The encoder's features, (B, hidden, h, w)."""
        return torch.stack(self.visual(list(views)))

    def vectors(self, features: Tensor) -> Tensor:
        """What is quantised, unit vectors (B, h*w, embed_dim)."""
        return F.normalize(self.quant_conv(features).float(), dim=1).permute(0, 2, 3, 1).flatten(1, 2)

    def decoded(self, quantized: Tensor, features: Tensor) -> Tensor:
        """Features like those of the encoder from quantised vectors, (B, hidden, h, w)."""
        grid = F.normalize(quantized, dim=-1).transpose(1, 2).unflatten(2, features.shape[-2:])
        return self.post_quant_conv(grid.to(features.dtype))

    @torch.no_grad()
    def _learn_codes(self, vectors: Tensor, codes: Tensor, few: int) -> None:
        """Move the codebook by at most ``few`` random vectors of each code."""
        shuffled = torch.randperm(len(codes), device=codes.device)
        order = shuffled[codes[shuffled].argsort(stable=True)]
        sorted_codes = codes[order]
        first = torch.searchsorted(sorted_codes, sorted_codes)
        rank = torch.arange(len(codes), device=codes.device) - first
        self.quantizer(vectors[order[rank < few]][None])

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        views = batch["views"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.settings.frozen_encoder):
            features = self.features(views)
        vectors = self.vectors(features)
        few = self.settings.max_updates_per_code if self.training else None
        quantized, codes, commitment = self.quantizer(vectors, freeze_codebook=few is not None)
        if few is not None:
            self._learn_codes(vectors.detach().flatten(0, 1), codes.flatten(), few)
        decoded = self.decoded(quantized, features)
        parts = {"commitment": commitment.sum()}
        loss = self.settings.commitment * parts["commitment"]
        if self.settings.frozen_encoder:
            parts["features"] = F.mse_loss(decoded.float(), features.float())
            loss = loss + self.settings.features * parts["features"]
        else:
            painted = self.pixel_decoder(decoded).float()
            parts["pixels"] = F.l1_loss(painted, views) + 0.5 * _edges(painted, views)
            loss = loss + self.settings.pixels * parts["pixels"]
            if self.settings.contrast:
                contrast, hits = self._contrast(decoded, batch)
                parts |= {"contrast": contrast, "retrieval": hits}
                loss = loss + self.settings.contrast * contrast
        share = codes.unique().numel() / self.quantizer.codebook_size
        parts["codes_in_batch"] = torch.tensor(share, device=views.device)
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def _contrast(self, decoded: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """InfoNCE both ways over the samples that have a caption, and the share found among the batch."""
        told = batch["caption_lengths"] > 0
        if told.sum() < 2:
            zero = decoded.sum() * 0
            return zero, zero
        pooled = self.image_head(decoded.flatten(2).mean(dim=-1))[told]
        texts = self.text_tower(batch["captions"][told], batch["caption_lengths"][told])
        images, texts = F.normalize(pooled.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        scores = images @ texts.T * self.temperature.clamp(max=math.log(100)).exp()
        true = torch.arange(len(scores), device=scores.device)
        loss = 0.5 * (F.cross_entropy(scores, true) + F.cross_entropy(scores.T, true))
        return loss, (scores.argmax(dim=1) == true).float().mean()

    @torch.no_grad()
    def report(self, batches: Any, count: int) -> dict[str, float]:
        """Use and perplexity of the codebook, and retrieval by features before and after quantisation."""
        size = self.quantizer.codebook_size
        counts = torch.zeros(size)
        before: list[Tensor] = []
        after: list[Tensor] = []
        texts: list[Tensor] = []
        for step in range(count):
            batch = {name: value.to(self.device) for name, value in batches[step].tensors.items()}
            features = self.features(batch["views"])
            vectors = self.vectors(features)
            quantized, codes, _ = self.quantizer(vectors, freeze_codebook=True)
            counts += torch.bincount(codes.flatten().cpu(), minlength=size)
            if self.settings.frozen_encoder:
                continue
            for rows, values in ((before, vectors), (after, quantized)):
                rows.append(self.image_head(self.decoded(values, features).flatten(2).mean(dim=-1)))
            texts.append(self.text_tower(batch["captions"], batch["caption_lengths"].clamp(min=1)))
        share = counts / counts.sum()
        entropy = -(share[share > 0] * share[share > 0].log()).sum()
        found = {"codes_used": float((counts > 0).float().mean()), "perplexity": float(entropy.exp())}
        if texts:
            right = F.normalize(torch.cat(texts), dim=-1)
            for name, rows in (("retrieval_before", before), ("retrieval_after", after)):
                scores = F.normalize(torch.cat(rows), dim=-1) @ right.T
                hits = scores.argmax(dim=1).cpu() == torch.arange(len(scores))
                found[name] = float(hits.float().mean())
        return found

    def states(self, weights: Mapping[str, Tensor]) -> dict[Component, dict[str, Tensor]]:
        return tokenizer_state(weights, codebook_of(weights, "quantizer"))

    @torch.no_grad()
    def pictures(self, examples: Sequence[Example]) -> list[tuple[str, Image.Image]]:
        if self.settings.frozen_encoder:
            return []
        shown = []
        for number, example in enumerate(examples[:6]):
            view = half_size_pixels(example.pictured.image)[None].to(self.device)
            features = self.features(view)
            quantized, _, _ = self.quantizer(self.vectors(features), freeze_codebook=True)
            painted = self.pixel_decoder(self.decoded(quantized, features))
            shown.append((f"painted from codes {number}", picture(torch.cat([view[0], painted[0]], dim=-1))))
        return shown


def _edges(made: Tensor, true: Tensor) -> Tensor:
    return sum((made.diff(dim=axis) - true.diff(dim=axis)).abs().mean() for axis in (-1, -2))  # type: ignore[return-value]


class PixelDecoder(nn.Module):
    """A throw-away decoder: features to the encoder's view, one patch a feature; convolutions join neighbours."""

    def __init__(self, hidden: int, size: int, layers: int, patch: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(hidden, size, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(8, size),
                nn.GELU(),
                nn.Conv2d(size, size, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(size, size, 1),
            )
            for _ in range(layers)
        )
        self.leave = nn.Sequential(
            nn.Conv2d(size, 16 * (patch // 4) ** 2, 1), nn.PixelShuffle(patch // 4),
            nn.GELU(), nn.Conv2d(16, 3 * 16, 3, padding=1), nn.PixelShuffle(4),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """(B, hidden, h, w) to (B, 3, h*patch, w*patch)."""
        hidden = self.enter(features)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.leave(hidden)


class TextTower(nn.Module):
    """A small transformer over caption tokens; its mean is the caption's vector."""

    def __init__(self, vocabulary: int, size: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, size)
        self.places = nn.Embedding(MAX_CAPTION, size)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            size, 4, 2 * size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(size, size, bias=False)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, L) ids and (B,) lengths to (B, size)."""
        columns = torch.arange(ids.shape[1], device=ids.device)
        padding = columns >= lengths[:, None]
        hidden = self.layers(self.words(ids) + self.places(columns), src_key_padding_mask=padding)
        hidden = hidden.masked_fill(padding[..., None], 0).sum(dim=1) / lengths[:, None]
        return self.head(hidden)


def tokenizer_state(weights: Mapping[str, Tensor], codebook: Tensor) -> dict[Component, dict[str, Tensor]]:
    """A trained encoder, its two convolutions and a (K, embed_dim) codebook under the checkpoint's names."""
    renamed = {"model.vqmodel.quantize.embedding.weight": codebook}
    for name, value in weights.items():
        if name.startswith("visual."):
            renamed[f"model.{name}"] = value
        elif name.startswith(("quant_conv.", "post_quant_conv.")):
            renamed[f"model.vqmodel.{name}"] = value
    return {"vision_language_encoder": renamed}
