"""The nodes: load a model, generate, edit with a mask.

A picture of ComfyUI is a tensor (B, H, W, C) of floats in 0 to 1, a mask (B, H, W), 1 where the picture may change.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

import arimage
from arimage.images.opening import open_mask
from arimage.options import OPTIONS

MODEL = io.Custom("ARIMAGE_MODEL")
CATEGORY = "arimage"
MOST_SEED = 2**63 - 2**16  # room for the pictures of a batch
SIDE = {"min": 32, "max": 8192, "step": 32}


def to_tensor(pictures: list[Image.Image]) -> Tensor:
    """Pictures of one size as (B, H, W, 3)."""
    return torch.stack([torch.from_numpy(np.array(one.convert("RGB"))).float() / 255 for one in pictures])


def to_arrays(images: Tensor | None) -> list[np.ndarray]:
    """A batch as arrays, one a picture."""
    return [] if images is None else [one.clamp(0, 1).cpu().float().numpy() for one in images]


def following() -> Callable[[arimage.Progress], None]:
    """Shows progress in the node, and ends the call where the queue was stopped."""
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar

    bars: dict[str, Any] = {}

    def on_progress(progress: arimage.Progress) -> None:
        throw_exception_if_processing_interrupted()
        if progress.stage not in bars:
            bars[progress.stage] = ProgressBar(progress.total)
        bars[progress.stage].update_absolute(progress.done, progress.total)

    return on_progress


def sampling_inputs() -> list[Any]:
    """What both nodes that make pictures take."""
    return [
        io.Int.Input("seed", default=0, min=0, max=MOST_SEED, control_after_generate=True),
        io.Combo.Input("tier", options=list(OPTIONS["tier"].choices), default="fast", tooltip=OPTIONS["tier"].meaning),
        io.Int.Input("steps", default=0, min=0, max=1000, tooltip="Diffusion steps; 0 takes the tier's."),
    ]


def sampling(tier: str, steps: int) -> dict[str, Any]:
    """The options of a call."""
    return {"tier": tier, "on_progress": following()} | ({"steps": steps} if steps else {})


class ArimageLoad(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArimageLoad",
            display_name="Load arimage model",
            category=CATEGORY,
            description="Opens a checkpoint folder of the GLM-Image format; weights are read when they are first used.",
            inputs=[
                io.String.Input("path", default="", tooltip="Folder, or owner/name in the hub's cache; empty: nano."),
                io.Combo.Input("placement", options=["resident", "sequential"], default="resident",
                               tooltip="Keep networks loaded, or hold one at a time."),
            ],
            outputs=[MODEL.Output(display_name="model")],
        )  # fmt: skip

    @classmethod
    def execute(cls, path: str, placement: str) -> io.NodeOutput:
        return io.NodeOutput(arimage.load(path.strip() or None, placement=placement))


class ArimageGenerate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArimageGenerate",
            display_name="Generate (arimage)",
            category=CATEGORY,
            description="Pictures from text; what stands in quotes is written into them.",
            inputs=[
                MODEL.Input("model"),
                io.String.Input("prompt", multiline=True, default="a red fox on a blue background"),
                io.Int.Input("width", default=256, **SIDE),
                io.Int.Input("height", default=256, **SIDE),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="Pictures; their seeds count on."),
                *sampling_inputs(),
                io.Image.Input("references", optional=True, tooltip="Pictures that the prompt refers to, a batch."),
                io.Image.Input("layout", optional=True, tooltip="Sketch whose composition is followed; needs a model "
                                                                "that was trained with previews."),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: arimage.ImagePipeline,
        prompt: str,
        width: int,
        height: int,
        count: int,
        seed: int,
        tier: str,
        steps: int,
        references: Tensor | None = None,
        layout: Tensor | None = None,
    ) -> io.NodeOutput:
        made = model.generate(
            prompt,
            size=(width, height),
            images_per_prompt=count,
            seed=seed,
            references=to_arrays(references),
            layout=None if layout is None else to_arrays(layout[:1])[0],
            **sampling(tier, steps),
        )
        return io.NodeOutput(to_tensor([one.image for one in made]))


class ArimageEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ArimageEdit",
            display_name="Edit (arimage)",
            category=CATEGORY,
            description="Edits every picture of a batch; what a mask protects keeps its values.",
            inputs=[
                MODEL.Input("model"),
                io.Image.Input("image"),
                io.String.Input("prompt", multiline=True, default="", tooltip="Instruction; empty: a variation."),
                io.Float.Input("strength", default=1.0, min=0.01, max=1.0, step=0.01,
                               tooltip="Below 1 the new picture starts from the old one."),
                *sampling_inputs(),
                io.Mask.Input("mask", optional=True, tooltip="1 where the picture may change."),
                io.Image.Input("references", optional=True, tooltip="Further pictures for the instruction, a batch."),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: arimage.ImagePipeline,
        image: Tensor,
        prompt: str,
        strength: float,
        seed: int,
        tier: str,
        steps: int,
        mask: Tensor | None = None,
        references: Tensor | None = None,
    ) -> io.NodeOutput:
        masks = to_arrays(mask)
        edited = []
        for number, picture in enumerate(to_arrays(image)):
            covering = masks[number % len(masks)] if masks else None
            made = model.edit(
                [picture, *to_arrays(references)],
                prompt,
                mask=covering,
                seed=seed + number,
                strength=strength,
                **sampling(tier, steps),
            )[0]
            result = to_tensor([made.image])[0]
            if covering is not None:
                editable = np.asarray(open_mask(covering, picture.shape[:2])) > 127
                result = torch.where(
                    torch.from_numpy(editable)[..., None], result, image[number, ..., :3].cpu().float()
                )
            edited.append(result)
        return io.NodeOutput(torch.stack(edited))


NODES: list[type[io.ComfyNode]] = [ArimageLoad, ArimageGenerate, ArimageEdit]
