"""The folders ``processor`` and ``tokenizer`` of a checkpoint, read and written: texts, and sizes of references."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arimage.checkpoints.json_files import read_json, require
from arimage.checkpoints.model_config import ModelConfig, ProcessorConfig
from arimage.checkpoints.text_tokenizer import TextTokenizer, text_tokenizer
from arimage.errors import CheckpointError
from backends.private import glm_image_processor_class

IMAGE = "<|image|>"
PROBE = "text of a prompt"


def read_processor(folder: Path) -> ProcessorConfig:
    """Sizes of references, as the image processor's settings say them.

    Raises:
        CheckpointError: they are missing, or the processor works in a way that is not followed here.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        if not path.exists():
            continue
        data = read_json(path)
        data = data.get("image_processor", data)
        size = data.get("size") or {}
        low, high = size.get("shortest_edge", data.get("min_pixels")), size.get("longest_edge", data.get("max_pixels"))
        if low is None or high is None:
            continue
        require(path, "", data, patch_size=16, merge_size=1, temporal_patch_size=1)
        mean_and_std = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        require(path, "", data, **mean_and_std)
        return ProcessorConfig(
            min_side=round(low**0.5), max_side=round(high**0.5), text_first=_puts_text_first(_chat_template(folder))
        )
    raise CheckpointError(f"{folder} says nothing of picture sizes (size.shortest_edge and size.longest_edge)")


def write_processor(folder: Path, config: ModelConfig, tokenizer: Mapping[str, Any]) -> None:
    """Write the folders ``processor`` and ``tokenizer`` by the classes that read them upstream.

    Args:
        tokenizer: the contents of ``tokenizer.json``.
    """
    from tokenizers import Tokenizer
    from transformers import ByT5Tokenizer, GlmImageProcessor, PreTrainedTokenizerFast

    start = f"<|dit_token_{config.image_start}|>"
    end = f"<|dit_token_{config.image_start + 1}|>"
    names = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    text = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer)),
        bos_token=start,
        eos_token=end,
        pad_token=names[config.text_model.pad_token_id],
        padding_side="left",
        extra_special_tokens={"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"},
        clean_up_tokenization_spaces=False,
    )
    images = glm_image_processor_class()(
        patch_size=16,
        merge_size=1,
        temporal_patch_size=1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": config.processor.min_side**2, "longest_edge": config.processor.max_side**2},
    )
    template = chat_template(start, end, config.processor.text_first)
    GlmImageProcessor(images, text, chat_template=template).save_pretrained(folder / "processor")
    compact = folder / "processor" / "tokenizer.json"  # transformers writes it indented, half of it blanks
    text.backend_tokenizer.save(str(compact), pretty=False)
    ByT5Tokenizer().save_pretrained(folder / "tokenizer")


def chat_template(start: str, end: str, text_first: bool) -> str:
    """A Jinja template that writes a message's pictures and texts in their order, or all its texts first.

    Args:
        start, end: the tokens around a picture.
    """
    images, texts = _of_kind("image", f"{start}{IMAGE}{end}"), _of_kind("text", "{{ item['text'] }}")
    rounds = (texts, images) if text_first else (images + texts,)
    return (
        "{%- for message in messages -%}{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
        + "".join("{%- for item in message['content'] -%}" + shown + "{%- endfor -%}" for shown in rounds)
        + "{%- endif -%}{%- endfor -%}"
    )


def _of_kind(kind: str, shown: str) -> str:
    return "{%- if item['type'] == '" + kind + "' -%}" + shown + "{%- endif -%}"


def _chat_template(folder: Path) -> str:
    """The template of a ``processor`` folder, empty where it has none."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    for name in ("processor_config.json", "tokenizer_config.json"):
        template = read_json(folder / name).get("chat_template") if (folder / name).exists() else None
        if isinstance(template, str):
            return template
    return ""


def _puts_text_first(template: str) -> bool:
    """Whether a chat template writes a text before the picture that is given before it."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    content = [{"type": "image"}, {"type": "text", "text": PROBE}]
    try:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        written = environment.from_string(template).render(messages=[{"role": "user", "content": content}])
    except (TemplateError, TypeError, ValueError):  # one that needs more than this, as no known checkpoint's does
        return False
    before, found, after = written.partition(PROBE)
    return bool(found) and IMAGE in after and IMAGE not in before


def read_text_tokenizer(folder: Path, config: ModelConfig) -> TextTokenizer:
    """Read the tokenizer of a checkpoint's ``processor`` folder.

    Raises:
        CheckpointError: the file is missing or broken, or a control token is not in it.
    """
    path = folder / "tokenizer.json"
    settings = read_json(folder / "tokenizer_config.json")
    try:
        return text_tokenizer(read_json(path), config, settings)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
