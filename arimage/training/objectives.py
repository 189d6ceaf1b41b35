"""The objective of a stage, with the networks of the checkpoint that it starts from, and which parameters learn."""

import fnmatch

import torch

from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.components import build_autoencoder
from arimage.errors import UsageError
from arimage.training.config import TrainConfig
from arimage.training.objective import Objective

CPU, FULL = torch.device("cpu"), torch.float32


def build_objective(checkpoint: Checkpoint, config: TrainConfig, device: torch.device) -> Objective:
    """The objective of a stage. What learns is on the CPU, what only serves on ``device``; all is fp32."""
    objective = _opened(checkpoint, config, device)
    for network in objective.checkpointed_networks():
        network.gradient_checkpointing = config.gradient_checkpointing
    return objective


def _opened(checkpoint: Checkpoint, config: TrainConfig, device: torch.device) -> Objective:
    given = checkpoint.config, config, device
    if config.train == "tokenizer" and config.tokenizer.cell_classes:
        from arimage.training.cell_tokenizer import CellTokenizerObjective

        return CellTokenizerObjective(*given, checkpoint.semantic_tokenizer(CPU, FULL))
    if config.train == "tokenizer":
        from arimage.training.tokenizer import TokenizerObjective

        return TokenizerObjective(*given, checkpoint.semantic_tokenizer(CPU, FULL), checkpoint.text_tokenizer())
    if config.train == "autoencoder":
        from arimage.training.autoencoder import AutoencoderObjective

        network = build_autoencoder(
            checkpoint.config
        )  # a learning one, also where the folder's asks for half precision
        network.load_state_dict(checkpoint.autoencoder(CPU, FULL).network.state_dict())
        return AutoencoderObjective(*given, network)
    if config.train == "autoregressive":
        from arimage.training.autoregressive import AutoregressiveObjective

        network, tokenizer = checkpoint.autoregressive(CPU, FULL), checkpoint.semantic_tokenizer(device, FULL)
        networks = network, tokenizer, checkpoint.vocabulary()
        if config.method == "grpo":
            from arimage.training.reinforcement.tokens import TokenPolicyObjective

            return TokenPolicyObjective(*given, *networks, checkpoint=checkpoint)
        if config.method == "dpo":
            from arimage.training.reinforcement.preferences import TokenPreferenceObjective

            return TokenPreferenceObjective(*given, *networks)
        return AutoregressiveObjective(*given, *networks)
    from arimage.training.decoder import DecoderObjective
    from arimage.training.distillation import Teacher

    teacher = None
    if config.decoder.distillation is not None:
        transformer, glyph_encoder = checkpoint.transformer(device, FULL), checkpoint.glyph_encoder(device, FULL)
        teacher = Teacher(transformer, glyph_encoder, checkpoint.config.scheduler, config.decoder.distillation)
    transformer, glyph_encoder = checkpoint.transformer(CPU, FULL), checkpoint.glyph_encoder(CPU, FULL)
    semantic_tokenizer, autoencoder = checkpoint.semantic_tokenizer(device, FULL), checkpoint.autoencoder(device, FULL)
    parts = transformer, glyph_encoder, semantic_tokenizer, autoencoder
    if config.method == "flow_grpo":
        from arimage.training.reinforcement.flow import FlowPolicyObjective

        return FlowPolicyObjective(*given, *parts, checkpoint=checkpoint)
    if config.method == "dpo":
        from arimage.training.reinforcement.preferences import FlowPreferenceObjective

        return FlowPreferenceObjective(*given, *parts)
    return DecoderObjective(*given, transformer, glyph_encoder, semantic_tokenizer, autoencoder, teacher)


def choose_trainable(objective: Objective, config: TrainConfig) -> list[str]:
    """Freeze what the patterns say; the names of what learns.

    Raises:
        UsageError: a pattern matches no parameter, or nothing is left to learn.
    """
    names = [name for name, _ in objective.named_parameters()]
    for pattern in (*config.trainable, *config.frozen):
        if not fnmatch.filter(names, pattern):
            raise UsageError(f"the pattern {pattern!r} matches no parameter; they are called like {names[0]!r}")
    learning = []
    for name, parameter in objective.named_parameters():
        wanted = any(fnmatch.fnmatch(name, pattern) for pattern in config.trainable)
        wanted = wanted and not any(fnmatch.fnmatch(name, pattern) for pattern in (*config.frozen, *objective.fixed))
        if config.lora is not None:
            wanted = wanted and ".lora_" in name
        parameter.requires_grad_(wanted)
        if parameter.requires_grad:
            learning.append(name)
    if not learning:
        raise UsageError("the patterns of trainable and frozen leave nothing to learn")
    return learning
