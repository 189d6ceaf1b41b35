"""ComfyUI's interface as far as nodes of the V3 schema use it: same names, same arguments, same rules."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

WIDGET = ("default", "socketless", "force_input", "extra_dict", "raw_link")
PLAIN = ("display_name", "optional", "tooltip", "lazy")
# Arguments of the inputs of comfy_api/latest/_io.py, by type.
ARGUMENTS = {
    "INT": (*PLAIN, *WIDGET, "min", "max", "step", "control_after_generate", "display_mode"),
    "FLOAT": (*PLAIN, *WIDGET, "min", "max", "step", "round", "display_mode"),
    "STRING": (*PLAIN, *WIDGET, "multiline", "placeholder", "dynamic_prompts"),
    "COMBO": (*PLAIN, *WIDGET, "options", "control_after_generate", "upload", "image_folder", "remote"),
    "IMAGE": (*PLAIN, "extra_dict", "raw_link"),
    "MASK": (*PLAIN, "extra_dict", "raw_link"),
}


def comfy_type(io_type: str) -> type:
    """A type with its ``Input`` and ``Output``."""
    allowed = ARGUMENTS.get(io_type, (*PLAIN, "extra_dict", "raw_link"))

    class Input:
        def __init__(self, id: str, **options: Any) -> None:
            assert set(options) <= set(allowed), (io_type, set(options) - set(allowed))
            self.id, self.io_type, self.options = id, io_type, options
            self.optional = options.get("optional", False)

    class Output:
        def __init__(self, id: str | None = None, display_name: str | None = None, tooltip: str | None = None,
                     is_output_list: bool = False) -> None:  # fmt: skip
            self.id, self.io_type, self.display_name = id, io_type, display_name

    return type(io_type, (), {"Input": Input, "Output": Output, "io_type": io_type})


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False


class ComfyNode:
    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def execute(cls, **given: Any) -> Any:
        raise NotImplementedError


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args = args


class ComfyExtension:
    async def on_load(self) -> None:
        return None


class ProgressBar:
    seen: list[tuple[int, int]] = []  # noqa: RUF012

    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        self.seen.append((value, total or self.total))


@contextmanager
def comfy(interrupted: Any = lambda: None) -> Iterator[None]:
    """ComfyUI's modules, importable meanwhile."""
    io = ModuleType("comfy_api.latest.io")
    kinds = {"Int": "INT", "Float": "FLOAT", "String": "STRING", "Combo": "COMBO", "Image": "IMAGE", "Mask": "MASK"}
    for name, io_type in kinds.items():
        setattr(io, name, comfy_type(io_type))
    io.Custom, io.Schema, io.ComfyNode, io.NodeOutput = comfy_type, Schema, ComfyNode, NodeOutput
    latest, utils = ModuleType("comfy_api.latest"), ModuleType("comfy.utils")
    latest.io, latest.ComfyExtension = io, ComfyExtension
    utils.ProgressBar = ProgressBar
    management = ModuleType("comfy.model_management")
    management.throw_exception_if_processing_interrupted = interrupted
    modules = {
        "comfy_api": ModuleType("comfy_api"), "comfy_api.latest": latest, "comfy": ModuleType("comfy"),
        "comfy.utils": utils, "comfy.model_management": management,
    }  # fmt: skip
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
