"""The unmodified ``GlmImagePipeline`` and ours on the same folders.

Run in an environment of its own (``make interop``): upstream's editing needs transformers 5.17 and diffusers
0.42.1.
"""

import warnings

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from arimage.autoregressive.sampling import TokenSampling
from arimage.checkpoints.checkpoint import Checkpoint
from arimage.checkpoints.embedded import embedded_folder
from arimage.checkpoints.initialization import initialize_folder
from arimage.checkpoints.model_config import ModelConfig
from arimage.inference.engine import Engine
from arimage.inference.networks import Networks
from arimage.inference.requests import ImageRequest
from arimage.inference.settings import Settings
from arimage.yaml_files import load_yaml
from decoder.diffusion_decoder import DecoderSettings
from tests.tiny_checkpoint import CONFIG, TEXT_FIRST, tiny_folder

diffusers = pytest.importorskip("diffusers")
if not hasattr(diffusers, "GlmImagePipeline"):
    pytest.skip("this diffusers has no GlmImagePipeline", allow_module_level=True)

STEPS = 6


def open_upstream(folder):
    """The upstream pipeline in fp32, without warnings about weights, kept from drawing special tokens."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline = diffusers.GlmImagePipeline.from_pretrained(folder, dtype=torch.float32)
        _, loading = transformers.GlmImageForConditionalGeneration.from_pretrained(
            folder / "vision_language_encoder", output_loading_info=True
        )
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    assert not [str(w.message) for w in caught if "newly initialized" in str(w.message)]
    config = pipeline.vision_language_encoder.config
    codes, words = config.vq_config.num_embeddings, config.text_config.vision_vocab_size
    pipeline.vision_language_encoder.generation_config.suppress_tokens = list(range(codes, words))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=[(0, CONFIG), (10, CONFIG), (20, TEXT_FIRST)])
def both(request, tmp_path_factory):
    seed, config = request.param
    folder = tiny_folder(tmp_path_factory.mktemp("checkpoint") / "tiny", seed, config=config)
    engine = Engine(Networks(Checkpoint.open(folder), torch.device("cpu"), torch.float32))
    upstream = open_upstream(folder)
    upstream.vision_language_encoder.generation_config.top_k = 1
    return upstream, engine


def photo(height, width, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def pictures(both, prompt, size, photos=()):
    """One picture from each: greedy tokens, the same noise, guidance 1.5."""
    upstream, engine = both
    seen = []
    prior = upstream.generate_prior_tokens
    upstream.generate_prior_tokens = lambda *args, **named: seen.append(prior(*args, **named)) or seen[-1]
    try:
        theirs = upstream(
            prompt,
            image=list(photos) or None,
            height=size[0],
            width=size[1],
            num_inference_steps=STEPS,
            latents=engine._noise(5, (size[0] // 32, size[1] // 32))[None],
        ).images[0]
    finally:
        upstream.generate_prior_tokens = prior
    settings = Settings(DecoderSettings(steps=STEPS, guidance=1.5), TokenSampling(temperature=0))
    ours = engine.run([ImageRequest(prompt, size, seed=5, references=tuple(photos))], settings)[0]
    tokens = ours.codes.repeat_interleave(2, 0).repeat_interleave(2, 1).flatten()
    assert torch.equal(tokens, seen[0][0][0])
    return np.asarray(theirs, dtype=int), np.asarray(ours.image, dtype=int), seen[0]


@pytest.mark.parametrize(
    ("prompt", "size"),
    [("a red fox", (64, 96)), ('a sign "OPEN" and “关门”', (96, 64)), ("写着「你好」的牌子", (64, 64))],
)
def test_a_picture_from_text_is_upstreams(both, prompt, size):
    theirs, ours, _ = pictures(both, prompt, size)
    assert np.abs(theirs - ours).max() <= 1
    assert ours.std() > 5


@pytest.mark.parametrize("sizes", [[(64, 96)], [(64, 64), (128, 96)]])
def test_a_picture_from_references_is_upstreams(both, sizes):
    """Image-to-image with one and with two references: code grids, tokens and pixels."""
    if transformers.__version__ >= "5.18":
        pytest.skip("upstream's own editing crashes in this transformers")
    photos = [photo(*size, seed=i) for i, size in enumerate(sizes)]
    theirs, ours, seen = pictures(both, "make it blue", (64, 96), photos)
    assert np.abs(theirs - ours).max() <= 1
    engine = both[1]
    with engine.networks.use("semantic_tokenizer") as semantic:
        codes = semantic.encode(photos)
    doubled = [grid.repeat_interleave(2, 0).repeat_interleave(2, 1).flatten() for grid in codes]
    assert torch.equal(torch.cat(doubled), seen[1][0])
    without, _, _ = pictures(both, "make it blue", (64, 96))
    assert np.abs(without - theirs).max() > 1


def test_prompts_are_the_processors(both):
    """Ids of whole prompts equal those of ``GlmImageProcessor``, as long as nobody types a control token."""
    upstream, engine = both
    for prompt in ("a red fox", "写着“你好”的牌子 3 4", " spaces  and\nlines ", ""):
        inputs = upstream.processor.apply_chat_template(
            [[{"role": "user", "content": [{"type": "text", "text": prompt}]}]],
            tokenize=True, target_h=64, target_w=96, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        ours = engine.prompt(ImageRequest(prompt, (64, 96), seed=0))
        assert inputs["input_ids"][0].tolist() == ours.tokens.tolist()


def test_typed_control_tokens_are_text_here_and_control_tokens_there(both):
    """Upstream's known fault, so that it is noticed should it be mended."""
    upstream, engine = both
    typed = "<sop><|image|><|dit_token_3|>"
    assert len(upstream.processor.tokenizer(typed).input_ids) == 3
    assert min(engine.vocabulary.encode(typed)) >= CONFIG.text_model.vision_vocab_size
    controls = {engine.vocabulary.grid_start, engine.networks.checkpoint.text_tokenizer().image_placeholder}
    assert not controls & set(engine.vocabulary.encode(typed))


def test_a_fresh_nano_folder_opens_in_the_reference_and_makes_a_picture(tmp_path):
    config = load_yaml("configs/nano/model.yaml", ModelConfig)
    pipeline = open_upstream(initialize_folder(config, tmp_path / "nano"))
    picture = pipeline("a red fox", height=64, width=64, num_inference_steps=1).images[0]
    assert picture.size == (64, 64)


def test_the_shipped_model_is_the_same_in_the_reference():
    """The embedded weights, greedy tokens, 256 px: the same grid and the same picture in both."""
    folder = embedded_folder()
    if Checkpoint.open(folder).is_random:
        pytest.skip("no trained model is shipped yet")
    engine = Engine(Networks(Checkpoint.open(folder), torch.device("cpu"), torch.float32))
    upstream = open_upstream(folder)
    upstream.vision_language_encoder.generation_config.top_k = 1
    theirs, ours, _ = pictures((upstream, engine), "a fox on a blue background", (256, 256))
    assert np.abs(theirs - ours).max() <= 1
    assert ours.std() > 5
