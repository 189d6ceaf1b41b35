"""Pictures to codes (visual tokens) in training: the target's, the preview's, and those of references."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from arimage.autoregressive.layout import preview_grid, target_grid
from arimage.images.sizes import resized
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
    references: Sequence[Tensor], target: Tensor, num_codes: int, stream: torch.Generator
) -> tuple[list[Tensor], Tensor, Tensor]:
    """An edit's codes under other names, so that what it keeps cannot be remembered, only looked up (random symbols, as
    in symbol tuning, Wei et al. 2023, arXiv:2305.08298).

    Args:
        references: any number, each (h', w').
        target: (h, w).
        num_codes: of the codebook.

    Returns:
        References and target in which a random share of the codes that they have in common are others, which neither
        had before, and those new codes.
    """
    held = torch.cat([codes.flatten() for codes in references]).unique()
    shared = target.unique()
    shared = shared[torch.isin(shared, held)]
    share = float(torch.rand(1, generator=stream))
    chosen = shared[torch.rand(len(shared), generator=stream) < share]
    unused = torch.randperm(num_codes, generator=stream)
    unused = unused[~torch.isin(unused, torch.cat([held, target.flatten()]))]
    chosen = chosen[: len(unused)]
    table = torch.arange(num_codes)
    table[chosen] = unused[: len(chosen)]
    return [table[codes] for codes in references], table[target], table[chosen]


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
