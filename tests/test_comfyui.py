"""The nodes for ComfyUI, against a stub of its interface."""

import asyncio
import importlib.util
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from arimage.errors import UsageError
from tests.comfy_stub import ProgressBar, comfy
from tests.conftest import photo

FOLDER = Path(__file__).parent.parent / "integrations" / "comfyui"
QUICK = {"seed": 3, "tier": "fast", "steps": 1}


@pytest.fixture(scope="module")
def nodes():
    """The node classes by their ids, as ComfyUI finds them in its folder of custom nodes."""
    name = "custom_nodes_arimage"
    with comfy():
        spec = importlib.util.spec_from_file_location(
            name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)

        async def listed():
            extension = await module.comfy_entrypoint()
            await extension.on_load()
            return await extension.get_node_list()

        yield {node.define_schema().node_id: node for node in asyncio.run(listed())}
        for imported in [one for one in sys.modules if one.startswith(name)]:
            del sys.modules[imported]


def batch(*pictures):
    return torch.stack([torch.from_numpy(np.array(one)).float() / 255 for one in pictures])


def test_schemas_and_arguments_fit(nodes):
    assert list(nodes) == ["ArimageLoad", "ArimageGenerate", "ArimageEdit"]
    for node in nodes.values():
        schema = node.define_schema()
        taken = inspect.signature(node.execute).parameters
        assert [one.id for one in schema.inputs] == list(taken)
        for one in schema.inputs:
            assert one.optional == (taken[one.id].default is None), one.id
        assert (schema.category, len(schema.outputs)) == ("arimage", 1)
    load, generate = nodes["ArimageLoad"].define_schema(), nodes["ArimageGenerate"].define_schema()
    assert load.outputs[0].io_type == generate.inputs[0].io_type == "ARIMAGE_MODEL"
    tier = next(one for one in generate.inputs if one.id == "tier")
    assert tier.options["options"] == ["reference", "fast"]


def test_pictures_are_those_of_the_library(nodes, pipeline, checkpoint_folder):
    (model,) = nodes["ArimageLoad"].execute(path=str(checkpoint_folder), placement="resident").args
    assert model.checkpoint.path == checkpoint_folder
    sketch, size = photo(64, 64), {"width": 64, "height": 96}
    ProgressBar.seen.clear()
    (images,) = (
        nodes["ArimageGenerate"]
        .execute(model=pipeline, prompt="a fox", count=2, layout=batch(sketch), **size, **QUICK)
        .args
    )
    assert images.shape == (2, 96, 64, 3)
    assert images.dtype == torch.float32
    made = pipeline.generate("a fox", size=(64, 96), images_per_prompt=2, layout=sketch, **QUICK)
    assert torch.equal(images, batch(*[one.image for one in made]))
    assert ProgressBar.seen[-1] == (2, 2)
    references = batch(photo(64, 64, 1), photo(64, 64, 2))
    (images,) = (
        nodes["ArimageGenerate"]
        .execute(model=pipeline, prompt="both", count=1, references=references, **size, **QUICK)
        .args
    )
    made = pipeline.generate("both", size=(64, 96), references=[photo(64, 64, 1), photo(64, 64, 2)], **QUICK)
    assert torch.equal(images, batch(made[0].image))


def test_what_a_mask_protects_keeps_its_values(nodes, pipeline):
    image = torch.rand(2, 70, 90, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 70, 90)
    mask[0, :, 45:], mask[1, :35] = 1, 1
    (edited,) = (
        nodes["ArimageEdit"].execute(model=pipeline, image=image, prompt="blue", strength=1.0, mask=mask, **QUICK).args
    )
    assert edited.shape == image.shape
    assert torch.equal(edited[mask == 0], image[mask == 0])
    assert (edited[mask == 1] != image[mask == 1]).float().mean() > 0.5
    (whole,) = (
        nodes["ArimageEdit"]
        .execute(model=pipeline, image=image[:1], prompt="blue", strength=0.5, **(QUICK | {"steps": 2}))
        .args
    )
    assert whole.shape == (1, 70, 90, 3)
    with pytest.raises(UsageError, match="the mask protects the whole picture"):
        nodes["ArimageEdit"].execute(
            model=pipeline, image=image[:1], prompt="x", strength=1.0, mask=torch.zeros(1, 64, 64), **QUICK
        )


def test_a_stopped_queue_ends_the_call(nodes, pipeline, monkeypatch):
    class Interrupted(Exception):
        pass

    def stop():
        raise Interrupted

    monkeypatch.setattr(sys.modules["comfy.model_management"], "throw_exception_if_processing_interrupted", stop)
    with pytest.raises(Interrupted):
        nodes["ArimageGenerate"].execute(model=pipeline, prompt="x", width=64, height=64, count=1, **QUICK)
