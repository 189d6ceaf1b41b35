"""Pictures to codes (visual tokens) in training: the target's, the preview's, and those of references."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from arimage.autoregressive.layout import preview_grid, target_grid
from arimage.images.sizes import resized
from arimage.training.objective import uniform_of
from tokenizer.image_size import PIXELS_PER_TOKEN, SizeLimits, reference_size
from tokenizer.semantic_tokenizer import SemanticTokenizer, half_size_pixels


def preview_view(image: Image.Image) -> Tensor:
    """The tokenizer's view of a picture's preview: the whole picture at the preview grid's own size."""
    grid = preview_grid(target_grid(image.height, image.width))
    size = grid.width * PIXELS_PER_TOKEN, grid.height * PIXELS_PER_TOKEN
    return half_size_pixels(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def reference_view(image: Image.Image, limits: SizeLimits) -> Image.Image:
    """A reference at the size at which both encoders see it."""
    return resized(image, reference_size(image.height, image.width, limits))


@torch.no_grad()
def encode_views(tokenizer: SemanticTokenizer, views: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Codes (h, w) of views, in one call and in the tokenizer's own precision.

    Under autocast the nearest code is looked for among rounded distances, and a third of the codes are others than
    generation finds for the same picture.
    """
    if not views:
        return []
    with torch.autocast(device.type, enabled=False):
        return tokenizer([view.to(device) for view in views])


def with_codes_renamed(
    references: Sequence[Sequence[Tensor]], targets: Tensor, num_codes: int, seeds: Sequence[int], purpose: int
) -> tuple[list[list[Tensor]], Tensor, Tensor]:
    """Codes of edits under other names, so that what they keep cannot be remembered, only looked up (random symbols,
    as in symbol tuning, Wei et al. 2023, arXiv:2305.08298).

    Args:
        references: of each edit any number, each (h', w').
        targets: (B, h, w).
        num_codes: of the codebook.
        seeds: of each edit.

    Returns:
        References and targets, in each of which a random share of the codes that they have in common are others, which
        neither had before; and which codes those are, (B, num_codes) bool.
    """
    device, count = targets.device, len(targets)
    all_codes = [(edit, codes.to(device)) for edit, row in enumerate(references) for codes in row]
    lengths = [codes.numel() for _, codes in all_codes]
    edits = torch.tensor([edit for edit, _ in all_codes], dtype=torch.long, device=device)
    owner = edits.repeat_interleave(torch.tensor(lengths, dtype=torch.long, device=device))
    flat = torch.cat([targets.new_zeros(0), *(codes.flatten() for _, codes in all_codes)])
    held, own = (torch.zeros(count, num_codes, dtype=torch.bool, device=device) for _ in range(2))
    held[owner, flat] = True
    own.scatter_(1, targets.flatten(1), True)
    chance = uniform_of(seeds, 1 + 2 * num_codes, purpose, device)
    share, among, order = chance[:, :1], chance[:, 1 : 1 + num_codes], chance[:, 1 + num_codes :]
    chosen = held & own & (among < share)
    unused = ~(held | own)
    names = order.masked_fill(~unused, 2.0).argsort(dim=1)  # unused ones first, in random order
    place = chosen.cumsum(dim=1) - 1
    chosen &= place < unused.sum(dim=1, keepdim=True)
    table = torch.where(chosen, names.gather(1, place.clamp(min=0)), torch.arange(num_codes, device=device))
    renamed = iter(table[owner, flat].split(lengths))
    rows = [[next(renamed).view_as(codes).to(codes.device) for codes in row] for row in references]
    nowhere = num_codes
    new = torch.zeros(count, num_codes + 1, dtype=torch.bool, device=device)
    new.scatter_(1, torch.where(chosen, table, nowhere), True)
    return rows, table.gather(1, targets.flatten(1)).view_as(targets), new[:, :nowhere]


@torch.no_grad()
def code_vectors(tokenizer: SemanticTokenizer, size: int, seed: int) -> Tensor:
    """A vector for each code, a random projection of the code's features: codes that look alike are alike.

    Returns:
        (codes, size) on the CPU, each column of mean 0 and a variance of about 1.
    """
    quantizer = tokenizer.model.vqmodel
    device = quantizer.quantize.embedding.weight.device
    codes = quantizer.embed(torch.arange(quantizer.config.num_embeddings, device=device))
    features = quantizer.post_quant_conv(codes[:, :, None, None])[:, :, 0, 0].float().cpu()
    features = (features - features.mean(dim=0)) / features.std(dim=0).clamp(min=1e-6)
    mixing = torch.randn(features.shape[1], size, generator=torch.Generator().manual_seed(seed))
    return features @ mixing / features.shape[1] ** 0.5
