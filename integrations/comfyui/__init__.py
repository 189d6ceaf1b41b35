"""arimage in ComfyUI: put this folder into ``custom_nodes``; see README.md."""

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES


class ArimageExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ArimageExtension:
    return ArimageExtension()
