"""Starting points for training: a checkpoint folder with random weights, or one that begins from GLM-4.

Weights are normal with variance 1 / inputs, biases zero; embeddings are wide enough that the norms behind them do not
blow up their gradients. GLM-4's post-norms start at 0.2, so that untrained blocks do not swamp the embeddings. Blocks
of the diffusion transformer start as the identity (AdaLN-zero, Peebles & Xie 2022, arXiv:2212.09748), the autoencoder
starts close to linear, the glyph encoder as its library initialises it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arimage.checkpoints.bpe import DEFAULT_CORPUS, shift_tokenizer, token_id, train_tokenizer
from arimage.checkpoints.checkpoint import save_checkpoint
from arimage.checkpoints.components import Component, build_autoencoder, build_glyph_encoder, meta_networks
from arimage.checkpoints.glm4 import glm4_states, glm4_text_config
from arimage.checkpoints.json_files import read_json
from arimage.checkpoints.model_config import ModelConfig
from arimage.checkpoints.text_tokenizer import text_tokenizer
from arimage.checkpoints.weights import WeightFiles
from arimage.errors import UsageError
from arimage.yaml_files import validate

EMBEDDING_DEVIATION = 0.5
POST_NORM = 0.2
POST_NORMS = (".post_self_attn_layernorm.weight", ".post_mlp_layernorm.weight")
LOG_VARIANCE = -6.0


def initialize_folder(
    config: ModelConfig,
    path: str | Path,
    *,
    seed: int = 0,
    glm4: str | Path | None = None,
    tokenizer: str | Path | None = None,
    corpus: Iterable[str] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    name: str | None = None,
) -> Path:
    """Write a checkpoint folder to start training from; it opens everywhere, and makes noise.

    Args:
        seed: the weights depend on it alone; the global random state is left as it was.
        glm4: a GLM-4 checkpoint folder; its text model and tokenizer are taken over, and the dimensions of
            ``config.text_model`` follow from it.
        tokenizer: a ``tokenizer.json`` of this format (as in another checkpoint's ``processor`` folder).
        corpus: captions to train a tokenizer on, when there is none to take over.

    Raises:
        UsageError: the sources contradict each other or the configuration.
    """
    if glm4 is not None and (tokenizer is not None or corpus is not None):
        raise UsageError("a GLM-4 checkpoint brings its own tokenizer: leave out tokenizer and corpus")
    taken: dict[str, Tensor] = {}
    if glm4 is not None:
        definition = shift_tokenizer(read_json(Path(glm4) / "tokenizer.json"), config.text_model.vision_vocab_size)
        text = glm4_text_config(
            read_json(Path(glm4) / "config.json"), config.text_model, token_id(definition, "<|endoftext|>")
        )
        config = validate({**config.model_dump(), "text_model": text.model_dump()}, ModelConfig, str(glm4))
        taken = dict(glm4_states(WeightFiles(Path(glm4)), config.text_model, seed))
    elif tokenizer is not None:
        definition = read_json(Path(tokenizer))
    else:
        definition = train_tokenizer(
            DEFAULT_CORPUS if corpus is None else corpus,
            config.text_model.vision_vocab_size,
            config.text_model.vocab_size,
        )
    config = with_pad(config, definition)
    text_tokenizer(definition, config)
    states = {component: dict(network.state_dict()) for component, network in initial_networks(config, seed).items()}
    states["vision_language_encoder"].update(taken)
    return save_checkpoint(path, config, states, definition, dtype=dtype, random=True, name=name)


def with_pad(config: ModelConfig, definition: Mapping[str, Any]) -> ModelConfig:
    highest = max(definition["model"]["vocab"].values())
    if highest >= config.text_model.vocab_size:
        raise UsageError(
            f"the tokenizer has {highest + 1} ids, text_model.vocab_size is {config.text_model.vocab_size}"
        )
    pad = token_id(definition, "<|endoftext|>")
    return config.model_copy(update={"text_model": config.text_model.model_copy(update={"pad_token_id": pad})})


def initial_networks(config: ModelConfig, seed: int) -> dict[Component, nn.Module]:
    """Freshly initialised networks of every component, fp32, on the CPU."""
    with torch.device("meta"):
        networks = meta_networks(config)
    language, transformer = networks["vision_language_encoder"], networks["transformer"]
    _initialize(language.to_empty(device="cpu"), seed)
    _initialize(transformer.to_empty(device="cpu"), seed + 1)
    for name, parameter in language.named_parameters():
        if name.endswith(POST_NORMS):
            nn.init.constant_(parameter, POST_NORM)
    for name, parameter in transformer.named_parameters():
        if ".norm1.linear." in name or name.startswith(("norm_out.linear.", "proj_out.")):
            nn.init.zeros_(parameter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks["vae"] = build_autoencoder(config)
        _initialize_autoencoder(networks["vae"], config.autoencoder.latent_channels, seed + 2)
        networks["text_encoder"] = build_glyph_encoder(config)
    return networks


def _initialize_autoencoder(network: Any, latent_channels: int, seed: int) -> None:
    """Begin close to linear: convolutions keep the variance, residual branches add nothing yet.

    With PyTorch's own initialisation the path without norms shrinks at every convolution until the colour of a flat
    picture drowns in the residual branches, and training stands still for a long time. Latents begin almost certain.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                module.weight.normal_(std=module.weight[0].numel() ** -0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
                if name.endswith(".conv2"):
                    module.weight.zero_()
        network.encoder.conv_out.bias[latent_channels:] = LOG_VARIANCE


def _initialize(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    parameter.zero_()
                elif isinstance(module, nn.Embedding):
                    parameter.normal_(std=EMBEDDING_DEVIATION, generator=generator)
                elif isinstance(module, (nn.Linear, nn.Conv2d)):
                    parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
                else:
                    parameter.fill_(1)


def read_corpus(path: str | Path) -> list[str]:
    """Captions from a text file, one a line.

    Raises:
        UsageError: it cannot be read or is empty.
    """
    try:
        lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the corpus {path}: {error}") from None
    if not lines:
        raise UsageError(f"the corpus {path} holds no text")
    return lines
