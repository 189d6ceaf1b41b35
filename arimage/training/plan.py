"""What a stage needs before a GPU is rented: memory, work and time, from the config and the meta device.

Memory of a GPU under FSDP2 with bf16 computation (``precision: auto`` on GPUs) over G GPUs, in bytes for each of P
trained parameters: 4 (weights) + 4 (gradients) + 8 (AdamW) + 4 (moving average), all divided by G; frozen parameters
2 each, divided by G where they belong to the trained network, whole otherwise; two gathered layers in bf16;
activations. With checkpointing a layer keeps its input (2 bytes x hidden x token) and one layer at a time its inside;
without, every layer its inside, about 34 bytes x hidden x token (Korthikanti et al. 2022, arXiv:2205.05198, with
attention that stores no scores). In fp32 (``precision: "no"``) what is 2 bytes in bf16 is 4, activations alike.

Work of a step: 6 FLOP for each token and parameter that multiplies it (8 with checkpointing; embeddings are only
looked up, adaptive norms multiply once a sample), 2 for each one that only encodes, and 12 x layers x hidden x token
x visible token for attention (16 with checkpointing).

A stage that learns from rewards learns from each picture of a group, or each noisy step and branch of guidance. Beside
that come a forward pass of the starting model (2 and 4 in place of 6 and 12), and the rollout: tokens are generated as
fast as the weights are read (2 bytes each at 60 % of 3.35 TB/s, once for all pictures of a group), pictures rendered at
2 FLOP for each token, parameter, step and branch. Both count once for all updates of a rollout. In memory the starting
model lies whole on each GPU (2 bytes each), and so do the weights during a rollout, when activations do not.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from arimage.autoregressive.layout import Grid, preview_grid, target_grid
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.components import meta_networks
from arimage.checkpoints.information import GB, GLYPH_TOKENS, parameter_count
from arimage.checkpoints.model_config import ModelConfig
from arimage.data.buckets import bucket_sizes
from arimage.errors import UsageError
from arimage.options import resolve
from arimage.training.config import TrainConfig
from arimage.training.prepare import smallest_integers
from arimage.yaml_files import load_yaml
from tokenizer.image_size import PIXELS_PER_TOKEN

INSIDE = 34
ON_GPUS = {"auto": "bf16", "no": "fp32"}
PROMPT_TOKENS = 80
RESERVE = 4.0
BYTES_A_SECOND = 0.6 * 3.35e12


@dataclass(frozen=True)
class Machine:
    """GPUs: how many, memory of each in GB, peak of each in TFLOP/s, and the share of it that is reached."""

    gpus: int
    memory: float
    teraflops: float
    utilisation: float


@dataclass(frozen=True)
class Plan:
    """What a stage needs.

    Attributes:
        precision: that it computes in: bf16, fp16 or fp32.
        trained, frozen: parameters.
        tokens: of the longest sample.
        weights, gradients, optimizer, average, others, activations: GB on each GPU.
        flops: of one optimiser step over all GPUs.
        seconds_a_step, hours_a_million: at the stated utilisation; of a step, and of a million samples.
        pictures, rollout_seconds: of a rollout over all GPUs, whose time is part of its steps'; 0 where there is none.
        steps: of the stage.
        prepared: bytes that ``arimage prepare`` takes for a sample's tensors, by size (width x height) of the picture;
            empty where the stage has no use for a cache.
    """

    stage: str
    machine: Machine
    precision: str
    trained: int
    frozen: int
    tokens: int
    samples_a_step: int
    weights: float
    gradients: float
    optimizer: float
    average: float
    others: float
    activations: float
    flops: float
    seconds_a_step: float
    hours_a_million: float
    pictures: int = 0
    rollout_seconds: float = 0.0
    steps: int = 0
    prepared: dict[str, int] = field(default_factory=dict)

    @property
    def memory(self) -> float:
        """GB on each GPU, with a reserve for the allocator and kernels."""
        parts = (self.weights, self.gradients, self.optimizer, self.average, self.others, self.activations)
        return sum(parts) + RESERVE

    @property
    def fits(self) -> bool:
        return self.memory <= self.machine.memory

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "memory": self.memory, "fits": self.fits}

    def lines(self) -> list[str]:
        """For people."""
        machine = self.machine
        parts = ", ".join(
            f"{name} {getattr(self, name):.1f}"
            for name in ("weights", "gradients", "optimizer", "average", "others", "activations")
        )
        verdict = "fits" if self.fits else "does NOT fit"
        hours = self.seconds_a_step * self.steps / 3600
        rollout = (
            f"a rollout: {self.pictures} pictures, {self.rollout_seconds:.1f} s without their rewards; "
            f"all {self.steps:,} steps: {hours:.1f} hours"
        )
        sizes = ", ".join(f"{size} {taken / 1e3:,.1f}" for size, taken in self.prepared.items())
        return [
            f"{self.stage}: {self.trained / 1e6:,.1f} M parameters learn, {self.frozen / 1e6:,.1f} M are frozen",
            f"memory of each of {machine.gpus} GPUs: {self.memory:.1f} GB of {machine.memory:g} GB, {verdict}",
            f"  in GB: {parts}, reserve {RESERVE:.1f}",
            f"a step: {self.samples_a_step} samples of up to {self.tokens} tokens, {self.flops / 1e15:.3f} PFLOP, "
            f"{self.seconds_a_step:.2f} s at {machine.utilisation:.0%} of {machine.teraflops:g} TFLOP/s "
            f"({self.precision})",
            *([rollout] if self.pictures else []),
            f"a million samples: {self.hours_a_million:.1f} hours",
            *([f"a million prepared samples, in GB by size: {sizes}"] if sizes else []),
        ]


def plan_stage(path: Path, overrides: Sequence[str], machine: Machine, model: Path | None = None) -> Plan:
    """The plan of a stage file.

    Raises:
        UsageError: the dimensions cannot be found.
    """
    config = load_yaml(path, TrainConfig, overrides)
    beside = path.parent / "model.yaml"
    if model is None and not beside.exists() and (Path(config.start) / "model_index.json").exists():
        return plan(config, Checkpoint.open(config.start).config, machine, path.stem)
    source = model or beside
    if not source.exists():
        raise UsageError(f"{source} does not exist; name the dimensions with --model")
    return plan(config, load_yaml(source, ModelConfig), machine, path.stem)


def plan(config: TrainConfig, model: ModelConfig, machine: Machine, name: str = "") -> Plan:
    """The plan of a stage with some dimensions."""
    with torch.device("meta"):
        networks = meta_networks(model)
    counts = {component: parameter_count(network.parameters()) for component, network in networks.items()}
    language: Any = networks["vision_language_encoder"]
    tokenizer = parameter_count(language["model"].visual.parameters()) + parameter_count(
        language["model"].vqmodel.parameters()
    )
    height, width = _largest(config)
    target = target_grid(height, width)
    if config.train == "autoregressive":
        text = model.text_model
        layers, hidden = text.num_hidden_layers, text.hidden_size
        trained, beside = counts["vision_language_encoder"] - tokenizer, tokenizer
        tokens = PROMPT_TOKENS + preview_grid(target).cells + target.cells
        blocks = parameter_count(language["model"].language_model.layers.parameters())
        new = target.cells + preview_grid(target).cells
        work = tokens * blocks + new * parameter_count(language["lm_head"].parameters())
        visible, inside = tokens / 2, INSIDE * (1 + text.intermediate_size / (4 * hidden)) / 2
        encoded = tokenizer * (target.cells + preview_grid(target).cells)
    elif config.train == "decoder":
        layers, hidden = model.transformer.num_layers, model.transformer.hidden_size
        learnt_glyphs = config.decoder.train_glyph_encoder and config.method not in ("flow_grpo", "dpo")
        glyphs = counts["text_encoder"] if learnt_glyphs else 0
        trained = counts["transformer"] + glyphs
        beside = tokenizer + counts["vae"] + counts["text_encoder"] - glyphs
        tokens = GLYPH_TOKENS + 4 * target.cells
        work = _decoder_work(networks["transformer"], target)
        work += GLYPH_TOKENS * glyphs
        visible, inside = float(tokens), float(INSIDE)
        encoded = tokenizer * target.cells + round(_convolutions(model, height * width) / 4)
    elif config.train == "tokenizer":
        layers, hidden = model.vision_encoder.depth, model.vision_encoder.hidden_size
        trained = tokenizer if not config.tokenizer.frozen_encoder else tokenizer - parameter_count(
            language["model"].visual.parameters()
        )  # fmt: skip
        beside, tokens = tokenizer - trained, target.cells
        work = tokens * tokenizer
        visible, inside, encoded = float(tokens), float(INSIDE), 0
    else:
        trained, beside, encoded = counts["vae"], 0, 0
        crop = config.autoencoder.crop or max(height, width)
        widths = model.autoencoder.block_out_channels
        layers, hidden = 4 * (2 * model.autoencoder.layers_per_block + 1), widths[0]
        tokens, visible, inside, work = crop * crop, 0.0, 8.0, 0
    frozen_inside = 0
    if config.lora is not None:
        adapters = 2 * 4 * layers * hidden * config.lora.rank
        trained, frozen_inside = adapters, trained
    elif config.vision_rows_only:
        whole = trained
        trained = 2 * model.text_model.vision_vocab_size * model.text_model.hidden_size
        frozen_inside = whole - trained
    more = _Rewarded(0, 1.0, 0.0, 0.0)
    if config.method in ("grpo", "flow_grpo", "dpo"):
        more = _rewarded(config, model, networks, target)
        beside += 0 if config.method != "grpo" else counts["transformer"] + counts["vae"] + counts["text_encoder"]
        encoded = 0 if config.method == "grpo" else encoded
    batch: float = config.batch_size * more.learnt
    samples = config.batch_size * config.accumulation * machine.gpus
    checkpointed = config.gradient_checkpointing
    kept = (2 * hidden * layers + inside * hidden) if checkpointed else inside * hidden * layers
    head = model.text_model.vision_vocab_size * 8 if config.train == "autoregressive" else 0
    precision = ON_GPUS.get(config.precision, config.precision)
    width = 4 if precision == "fp32" else 2
    activations = width / 2 * batch * tokens * (kept + head) / GB
    share = GB * machine.gpus
    layer = 2 * width * (trained + frozen_inside) / max(1, layers) / GB
    attention = (16 if checkpointed else 12) * layers * hidden * visible
    flops = samples * (more.learnt * ((8 if checkpointed else 6) * work + tokens * attention) + 2 * encoded)
    if config.train == "autoencoder":
        flops = samples * 3 * _convolutions(model, tokens)
    forward = 2 * work + tokens * 4 * layers * hidden * visible
    flops += samples * more.learnt * more.starting * forward
    speed = machine.gpus * machine.teraflops * 1e12 * machine.utilisation
    pictures = more.pictures * samples
    rollout = pictures * more.rendered / speed
    if config.method == "grpo":
        new = target.cells + preview_grid(target).cells
        groups = pictures / (machine.gpus * config.reinforcement.group)  # type: ignore[union-attr]
        rollout += groups * new * 2 * counts["vision_language_encoder"] / BYTES_A_SECOND
    updates = 1 if config.rewarded is None else config.rewarded.updates
    seconds = flops / speed + rollout / updates
    not_spread = width * (trained + frozen_inside) / GB
    if more.pictures:
        activations = max(activations, not_spread)
    start = not_spread if more.starting and config.lora is None else 0.0
    return Plan(
        stage=name,
        machine=machine,
        precision=precision,
        trained=trained,
        frozen=frozen_inside + beside,
        tokens=tokens,
        samples_a_step=samples,
        weights=(4 * trained + width * frozen_inside) / share + layer,
        gradients=4 * trained / share,
        optimizer=8 * trained / share,
        average=0.0 if config.ema is None else 4 * trained / share,
        others=width * beside / GB + start,
        activations=activations,
        flops=flops,
        seconds_a_step=seconds,
        hours_a_million=seconds * 1e6 / samples / 3600,
        pictures=round(pictures),
        rollout_seconds=rollout,
        steps=config.steps,
        prepared={f"{width}x{height}": sample_bytes(config, model, height, width) for width, height in _sides(config)}
        if config.train in ("autoregressive", "decoder") and config.method not in ("grpo", "flow_grpo", "dpo")
        else {},
    )


def sample_bytes(config: TrainConfig, model: ModelConfig, height: int, width: int) -> int:
    """Bytes of the tensors that ``arimage prepare`` keeps of a picture without sources."""
    target = target_grid(height, width)
    codes = smallest_integers(model.quantizer.num_embeddings).itemsize * (target.cells + preview_grid(target).cells)
    if config.train == "autoregressive":
        return codes
    return codes + torch.float16.itemsize * model.autoencoder.latent_channels * (height // 8) * (width // 8)


def _sides(config: TrainConfig) -> list[tuple[int, int]]:
    """Sizes (width, height) of the stage's pictures, small ones first; of buckets the square ones."""
    sizes: set[tuple[int, int]] = set()
    for source in config.data:
        if source.scenes is not None:
            sizes |= set(source.scenes.sizes)
        elif source.path is not None:
            sizes |= {(side, side) for side in source.sides}
    return sorted(sizes, key=lambda size: (size[0] * size[1], size))


@dataclass(frozen=True)
class _Rewarded:
    """What learning from rewards or pairs adds to a sample.

    Attributes:
        pictures: of a rollout, for each sample of a step.
        learnt: passes with gradient in a step.
        starting: forward passes of the starting model for each of them, spread over a rollout's updates.
        rendered: FLOP of a picture of a rollout.
    """

    pictures: float
    learnt: float
    starting: float
    rendered: float


def _rewarded(config: TrainConfig, model: ModelConfig, networks: Any, target: Grid) -> _Rewarded:
    rewarded = config.rewarded
    if rewarded is None:
        return _Rewarded(0, 2.0, 1.0, 0.0)
    values = resolve(rewarded.options, {})[1]
    branches = 1 if values["guidance"] == 1 else 2
    layers, hidden = model.transformer.num_layers, model.transformer.hidden_size
    row = GLYPH_TOKENS + 4 * target.cells
    a_pass = 2 * _decoder_work(networks["transformer"], target) + 4 * layers * hidden * row * row
    pixels = target.cells * PIXELS_PER_TOKEN**2
    rendered = values["steps"] * branches * a_pass + _convolutions(model, pixels) / 2
    policy = config.autoregressive.grpo if config.method == "grpo" else config.decoder.flow_grpo
    assert policy is not None
    walks = 1 if config.decoder.flow_grpo is None else config.decoder.flow_grpo.window * branches
    learnt = rewarded.group * (walks if config.method == "flow_grpo" else 1) / rewarded.parts
    starting = 1 / rewarded.updates if policy.kl else 0.0
    return _Rewarded(rewarded.group / rewarded.parts, learnt, starting, rendered)


def _decoder_work(network: Any, target: Grid) -> int:
    """Parameters by tokens that a pass of the diffusion transformer multiplies."""
    tokens = GLYPH_TOKENS + 4 * target.cells
    dense = [part for block in network.transformer_blocks for part in (block.attn1, block.ff)]
    a_token = sum(parameter_count(part.parameters()) for part in (*dense, network.image_projector, network.proj_out))
    a_sample = sum(parameter_count(block.norm1.parameters()) for block in network.transformer_blocks)
    work = tokens * a_token + a_sample + target.cells * parameter_count(network.prior_projector.parameters())
    return work + GLYPH_TOKENS * parameter_count(network.glyph_projector.parameters())


def _largest(config: TrainConfig) -> tuple[int, int]:
    """(height, width) of the stage's largest picture."""
    sizes: list[tuple[int, int]] = []
    for source in config.data:
        if source.scenes is not None:
            sizes += source.scenes.sizes
        else:
            sizes += [size for side in source.sides for size in bucket_sizes(side)]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return height, width


def _convolutions(model: ModelConfig, pixels: int) -> float:
    """FLOP of the autoencoder's forward pass: its 3x3 convolutions at each level."""
    total = 0.0
    for level, width in enumerate(model.autoencoder.block_out_channels):
        count = 2 * model.autoencoder.layers_per_block * 2 + 4
        total += count * 2 * 9 * width * width * pixels / 4 ** min(level, 3)
    return total
