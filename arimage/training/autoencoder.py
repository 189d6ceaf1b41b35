"""Training of the latent autoencoder: reconstruction, edges, a KL term, and optionally a discriminator.

Latents are sampled from the posterior, so that the decoder forgives small errors of the diffusion. At the end the mean
and deviation of every latent channel are measured and written into the checkpoint's config, where the sampler
expects them.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from arimage.checkpoints.components import Component
from arimage.checkpoints.model_config import ModelConfig
from arimage.data.records import Record
from arimage.data.scenes.spec import Box
from arimage.errors import UsageError
from arimage.training.config import AutoencoderTraining, TrainConfig
from arimage.training.examples import Example
from arimage.training.objective import Losses, Objective, generator, noise_of, under
from arimage.training.pca import PATCHES, initialize_from_pca
from tokenizer.pixels import picture, pixels

SCALES = 3
BOX_PATCHES = 64
SENSITIVITY_SAMPLES, SMALL_CHANGE = 12, 0.03


class AutoencoderObjective(Objective):
    """L1 + edges (+ perceptual) + KL (+ adversarial) of :class:`diffusers.AutoencoderKL`."""

    def __init__(self, dimensions: ModelConfig, config: TrainConfig, device: torch.device, network: Any) -> None:
        super().__init__(dimensions, config, device)
        self.settings = config.autoencoder
        self.network = network
        if self.settings.adversarial:
            self.discriminator = PatchDiscriminator()
        if self.settings.perceptual:
            self.helpers["perceptual"] = _vision_model(str(self.settings.perceptual_model), device)
        self.steps = 0
        self.statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def compiled_modules(self) -> list[nn.Module]:
        return [self.network.encoder, self.network.decoder]

    def prepare(self, batches: Any) -> None:
        """Begin with the principal components of patches of what the scenes show, if the stage says so."""
        if not self.settings.pca_init:
            return
        parts: list[Tensor] = []
        step = 0
        while sum(len(part) for part in parts) < PATCHES:
            for example in batches.examples(step)[0]:
                for left, top, right, bottom in shown_boxes(example.pictured):
                    box = (left // 8 * 8, top // 8 * 8, (right + 7) // 8 * 8, (bottom + 7) // 8 * 8)
                    part = pixels(example.pictured.image.crop(box)).unfold(1, 8, 8).unfold(2, 8, 8)
                    part = part.permute(1, 2, 0, 3, 4).flatten(0, 1)
                    parts.append(part[torch.randperm(len(part), generator=generator(example.seed, 1))[:BOX_PATCHES]])
            step += 1
        try:
            decibels = initialize_from_pca(self.network, torch.cat(parts), self.config.seed)
        except ValueError as error:
            raise UsageError(f"autoencoder.pca_init: {error}") from None
        print(f"{self.network.config.latent_channels} principal components of 8x8 patches: {decibels:.2f} dB")

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        settings, side = self.settings, self._side(examples[0].seed)
        count = len(examples) if side == settings.crop else max(1, len(examples) * settings.crop**2 // side**2)
        examples = examples[:count]
        images = [pixels(_cropped(example, settings, side)) for example in examples]
        return {"pixels": torch.stack(images), "seeds": [example.seed for example in examples]}

    def _side(self, seed: int) -> int:
        """Of the crops of a batch."""
        sides, shares = [self.settings.crop, *self.settings.crop_sizes], list(self.settings.crop_sizes.values())
        return Random(seed).choices(sides, [1 - sum(shares), *shares])[0]

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        true = batch["pixels"]
        posterior = self.network.encode(true).latent_dist
        noise = noise_of(batch["seeds"], posterior.mean.shape[1:]).to(true.device)
        made = self.network.decode(posterior.mean + posterior.std * noise).sample.float()
        parts = {
            "l1": F.l1_loss(made, true),
            "l2": F.mse_loss(made, true),
            "kl": 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean(),
        }
        loss = parts["l1"] + self.settings.l2 * parts["l2"] + self.settings.kl * parts["kl"]
        if self.settings.edges:
            parts["edges"] = edge_loss(made, true)
            loss = loss + self.settings.edges * parts["edges"]
        if self.settings.perceptual:
            features = self.helpers["perceptual"]
            parts["perceptual"] = F.mse_loss(features(made), features(true))
            loss = loss + self.settings.perceptual * parts["perceptual"]
        if self.settings.adversarial and self.steps >= self.settings.adversarial_from and self.training:
            g_loss, d_loss = self._adversarial(made, true)
            parts |= {"g_loss": g_loss, "d_loss": d_loss}
            loss = loss + self.settings.adversarial * g_loss + d_loss
        with torch.no_grad():
            parts["psnr"] = 10 * torch.log10(4 / ((made.clamp(-1, 1) - true) ** 2).mean(dim=(1, 2, 3))).mean()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def _adversarial(self, made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """What the autoencoder and what the discriminator lose (hinge); neither gets the other's gradient."""
        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(False)
        g_loss = -self.discriminator(made).mean()
        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(True)
        real, fake = self.discriminator(true), self.discriminator(made.detach())
        return g_loss, 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())

    def after_step(self) -> None:
        self.steps += 1

    def metadata(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_metadata(self, metadata: Mapping[str, Any]) -> None:
        self.steps = metadata.get("steps", 0)

    def rebuild(self, values: Tensor) -> Tensor:
        """(B, 3, H, W) through the posterior's mode and back, fp32."""
        return self.network.decode(self.network.encode(values).latent_dist.mode()).sample.float()

    def report(self, batches: Any, count: int) -> dict[str, float]:
        """Whole held-out pictures through encoder and decoder; see :mod:`arimage.training.reconstruction`."""
        from arimage.training.reconstruction import reconstruction_figures

        examples = [example for step in range(count) for example in batches.examples(step)[0]]
        return reconstruction_figures(examples, self.rebuild, self.device)

    @torch.no_grad()
    def finish(self, batches: Any) -> dict[str, float]:
        latents: list[Tensor] = []
        step = 0
        while sum(len(part) for part in latents) < self.settings.statistics_samples:
            images = [pixels(example.pictured.image) for example in batches.examples(step)[0]]
            latents += [self.network.encode(image[None].to(self.device)).latent_dist.mode().float() for image in images]
            step += 1
        columns = torch.cat([part.permute(0, 2, 3, 1).flatten(0, 2) for part in latents])
        mean, deviation = columns.mean(dim=0), columns.std(dim=0).clamp(min=1e-3)
        if self.settings.latent_scale == "pixels":
            scale = 1 / self._pixels_per_unit(latents[:SENSITIVITY_SAMPLES], deviation)
            deviation = scale * (deviation / scale).square().mean().sqrt()
        self.statistics = tuple(mean.tolist()), tuple(deviation.tolist())
        return {"latent_mean": float(mean.abs().mean()), "latent_deviation": float(deviation.mean())}

    def _pixels_per_unit(self, latents: Sequence[Tensor], deviation: Tensor) -> Tensor:
        """Root mean square by which a unit of each channel changes the decoded pixels: (C,)."""
        squares = torch.zeros_like(deviation)
        for number, part in enumerate(latents):
            plain = self.network.decode(part).sample
            noise = noise_of([number], part.shape[1:]).to(part)
            for channel, size in enumerate(SMALL_CHANGE * deviation):
                moved = part.clone()
                moved[:, channel] += size * noise[:, channel]
                squares[channel] += ((self.network.decode(moved).sample - plain) / size).float().square().mean()
        return (squares / len(latents)).sqrt()

    def model_config(self) -> ModelConfig:
        config = self.dimensions
        if self.statistics is None:
            return config
        mean, deviation = self.statistics
        measured = config.autoencoder.model_copy(update={"latents_mean": mean, "latents_std": deviation})
        return config.model_copy(update={"autoencoder": measured})

    def states(self, weights: Mapping[str, Tensor]) -> dict[Component, dict[str, Tensor]]:
        return {"vae": under("network.", weights)}

    @torch.no_grad()
    def pictures(self, examples: Sequence[Example]) -> list[tuple[str, Image.Image]]:
        shown = []
        for number, example in enumerate(examples[:6]):
            true = pixels(example.pictured.image)[None].to(self.device)
            made = self.rebuild(true)
            shown.append((f"reconstruction {number}", picture(torch.cat([true[0], made[0]], dim=-1))))
        return shown


class PatchDiscriminator(nn.Module):
    """Three strided convolutions that judge patches (Isola et al. 2016, arXiv:1611.07004)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for level in range(3):
            out = width * 2**level
            norm = nn.GroupNorm(8, out) if level else nn.Identity()
            layers += [nn.Conv2d(channels, out, 4, 2, 1), norm, nn.LeakyReLU(0.2)]
            channels = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, 1, 1))

    def forward(self, values: Tensor) -> Tensor:
        return self.layers(values)


def edge_loss(made: Tensor, true: Tensor) -> Tensor:
    """L1 between the gradients of two pictures at full, half and quarter size: sharp where the true one is."""
    total = made.new_zeros(())
    for _ in range(SCALES):
        for axis in (-1, -2):
            total = total + (made.diff(dim=axis) - true.diff(dim=axis)).abs().mean()
        made, true = F.avg_pool2d(made, 2), F.avg_pool2d(true, 2)
    return total / SCALES


def shown_boxes(record: Record) -> list[Box]:
    """The boxes of a scene's things and text in pixels; the whole picture of what is no scene, or an empty one."""
    truth = record.truth
    text = truth.get("text")
    return [*truth.get("subjects", ()), *([text] if text else [])] or [(0, 0, *record.image.size)]


def _cropped(example: Example, settings: AutoencoderTraining, crop: int) -> Image.Image:
    """A square of the picture around a random point of what it shows, or anywhere; 0 is the whole picture."""
    image = example.pictured.image
    width, height = image.size
    if not crop or (width <= crop and height <= crop):
        return image
    random = Random(example.seed)
    most = max(0, width - crop), max(0, height - crop)
    left, top = random.randint(0, most[0]), random.randint(0, most[1])
    if random.random() < settings.object_crop_prob:
        box = random.choice(shown_boxes(example.pictured))
        middle = random.randint(box[0], box[2] - 1), random.randint(box[1], box[3] - 1)
        left, top = (min(max(0, at - crop // 2), limit) for at, limit in zip(middle, most))
    if random.random() < settings.aligned:
        left, top = left // 8 * 8, top // 8 * 8
    return image.crop((left, top, left + crop, top + crop))


def _vision_model(folder: str, device: torch.device) -> Any:
    """Features of a local vision model, for the perceptual loss."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval().requires_grad_(False)
    return lambda values: model(pixel_values=values).last_hidden_state
