"""Schedule, sampler, guidance and autoencoder."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.glm_image.pipeline_glm_image import calculate_shift, retrieve_timesteps
from hypothesis import example, given, settings
from hypothesis import strategies as st

from decoder.autoencoder import Autoencoder
from decoder.diffusion_decoder import DecodeRequest, DecoderSettings, DiffusionDecoder, Reference
from decoder.sampler import KnownRegion, ScheduleConfig, flow_schedule, sample_flow, threshold_dynamically
from tests.test_decoder_transformer import doubled, some_references, upstream_caches
from tests.tiny import random_codes
from tests.tiny_decoder import CHANNELS, CONFIGS, GLYPH_WIDTH, random_tensor, tiny_autoencoder, tiny_transformers

CONFIG = ScheduleConfig()
GRID = (2, 3)


def scheduler():
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="linear", base_shift=0.25, max_shift=0.75, base_image_seq_len=256
    )


def request(seed=0, glyphs=4, references=(), grid=GRID, **options):
    return DecodeRequest(
        codes=random_codes(*grid, seed=seed),
        glyphs=random_tensor(glyphs, GLYPH_WIDTH, seed=seed + 1),
        negative_glyphs=random_tensor(1, GLYPH_WIDTH, seed=99),
        references=tuple(Reference(*reference) for reference in references),
        noise=random_tensor(CHANNELS, 4 * grid[0], 4 * grid[1], seed=seed + 2),
        **options,
    )


def decoder(config=CONFIGS[0], seed=0):
    return DiffusionDecoder(tiny_transformers(config, seed, std=0.1)[1], CONFIG)


@given(st.integers(1, 120), st.sampled_from([16, 96, 256, 1024, 4096]))
@settings(max_examples=30, deadline=None)
def test_the_schedule_is_the_reference_pipelines(steps, sequence_length):
    timesteps = np.linspace(1000, 1.0, steps + 1)[:-1].astype(np.int64).astype(np.float32)
    reference = scheduler()
    theirs, _ = retrieve_timesteps(
        reference, steps, "cpu", timesteps, timesteps / 1000, mu=calculate_shift(sequence_length)
    )
    ours = flow_schedule(steps, sequence_length, CONFIG)
    assert torch.allclose(ours.sigmas, reference.sigmas, atol=1e-6)
    assert torch.equal(ours.timesteps, theirs - 1)


def test_strength_runs_the_last_part_of_the_schedule():
    whole, part = flow_schedule(10, 256, CONFIG), flow_schedule(10, 256, CONFIG, strength=0.3)
    assert torch.equal(part.sigmas, whole.sigmas[-4:])
    assert torch.equal(part.timesteps, whole.timesteps[-3:])
    assert flow_schedule(10, 256, CONFIG, strength=0.01).steps == 1
    little, step = (flow_schedule(10, 256, CONFIG, strength=strength) for strength in (0.05, 0.1))
    assert (little.steps, step.steps) == (1, 1)
    assert 0 < little.sigmas[0] < step.sigmas[0], "less than a step is a step from less noise"


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_power_below_one_moves_steps_to_high_noise_and_keeps_the_start(strength):
    even, early = (flow_schedule(8, 256, CONFIG, strength, power) for power in (1.0, 0.7))
    assert early.steps == even.steps
    assert early.sigmas[0] == even.sigmas[0]
    assert early.sigmas[-1] == 0
    assert (early.sigmas[1:-1] > even.sigmas[1:-1]).all()
    assert (early.sigmas.diff() < 0).all()
    assert torch.equal(early.timesteps[0], even.timesteps[0])


@given(
    st.integers(2, 1000).flatmap(lambda most: st.tuples(st.just(most), st.integers(1, most))),
    st.floats(0.001, 1),
    st.one_of(st.floats(0.05, 5), st.sampled_from([1e-9, 0.7, 1.0, 2.0, 1e9, float("inf")])),
)
@example((1000, 1000), 1.0, 0.7)
@example((1000, 50), 1.0, 2.0)
@settings(max_examples=200, deadline=None)
def test_no_level_comes_twice_and_none_lies_below_the_first_timestep(counts, strength, power):
    """Whatever steps, strength and power are; two equal levels would divide a step by zero."""
    most, steps = counts
    schedule = flow_schedule(steps, 256, ScheduleConfig(num_train_timesteps=most), strength, power)
    plain = flow_schedule(steps, 256, ScheduleConfig(num_train_timesteps=most), strength)
    assert schedule.steps == max(1, round(steps * strength))
    assert (schedule.timesteps.diff() <= -1).all()
    assert schedule.timesteps.min() >= 0
    assert schedule.timesteps[0] == plain.timesteps[0]
    assert (schedule.sigmas.diff() < 0).all()


@pytest.mark.parametrize("power", [1.0, 0.7])
def test_no_step_begins_below_sigma_min_and_the_last_one_ends_clean(power):
    whole = flow_schedule(50, 256, CONFIG, power=power)
    least = float(whole.sigmas[30])
    early = flow_schedule(50, 256, CONFIG, power=power, sigma_min=least)
    assert torch.equal(early.sigmas, torch.cat([whole.sigmas[:31], torch.zeros(1)]))
    assert torch.equal(early.timesteps, whole.timesteps[:31])
    assert flow_schedule(50, 256, CONFIG, power=power, sigma_min=least + 1e-6).steps == 30
    drafted = flow_schedule(50, 256, CONFIG, strength=0.1, power=power)
    one = flow_schedule(50, 256, CONFIG, strength=0.1, power=power, sigma_min=0.9)
    assert one.sigmas.tolist() == [float(drafted.sigmas[0]), 0.0], "the first step is taken whatever it begins at"
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="sigma_min"):
            flow_schedule(50, 256, CONFIG, sigma_min=wrong)


def test_levels_that_differ_already_are_left_alone():
    early = flow_schedule(8, 256, CONFIG, power=0.7)
    assert (early.timesteps + 1).tolist() == [int(1000 * (t / 1000) ** 0.7) for t in np.linspace(1000, 1, 9)[:-1]]


@pytest.mark.parametrize("power", [0.7, 2.0])
def test_adams_bashforth_stays_finite_at_every_step_that_the_model_knows(power):
    schedule = flow_schedule(CONFIG.num_train_timesteps, 256, CONFIG, power=power)
    end = sample_flow(lambda x, step: x, torch.ones(1, 1, 2, 2), schedule, solver="ab2", dynamic_thresholding=0.9)
    assert end.isfinite().all()


def test_larger_pictures_are_noised_further():
    middles = [float(flow_schedule(11, length, CONFIG).sigmas[5]) for length in (256, 1024, 4096)]
    assert middles == sorted(middles)


@pytest.mark.parametrize(
    "config", [{"time_shift_type": "exponential"}, {"use_dynamic_shifting": False}, {"shift_terminal": 0.1}]
)
def test_schedules_of_another_kind_are_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        ScheduleConfig.from_scheduler(config)


def test_a_released_scheduler_config_is_read():
    assert ScheduleConfig.from_scheduler(dict(scheduler().config)) == CONFIG


def upstream_latents(upstream, wanted, steps, guidance):
    """Upstream's denoising loop, on its own classes, for one picture."""
    flow = scheduler()
    height, width = wanted.codes.shape
    timesteps = np.linspace(1000, 1.0, steps + 1)[:-1].astype(np.int64).astype(np.float32)
    timesteps, _ = retrieve_timesteps(
        flow, steps, "cpu", timesteps, timesteps / 1000, mu=calculate_shift(4 * height * width)
    )
    rows = [[(one.latents, one.codes) for one in wanted.references]]
    caches = upstream_caches(upstream, rows) if wanted.references else None
    latents, prior = wanted.noise[None], doubled(wanted.codes[None])
    common = {
        "prior_token_id": prior,
        "target_size": torch.tensor([[32.0 * height, 32.0 * width]]),
        "crop_coords": torch.zeros(1, 2),
        "return_dict": False,
    }
    with torch.no_grad():
        for t in timesteps:
            told, untold = (
                upstream(
                    hidden_states=latents, encoder_hidden_states=glyphs[None], timestep=t.expand(1) - 1,
                    prior_token_drop=torch.full_like(prior, drop, dtype=torch.bool), kv_caches=kv, **common,
                )[0]
                for glyphs, drop, kv in ((wanted.glyphs, False, caches), (wanted.negative_glyphs, True, None))
            )  # fmt: skip
            latents = flow.step(untold + guidance * (told - untold), t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("config", CONFIGS)
def test_pictures_from_given_tokens_and_noise_are_upstreams(config, count, seed):
    """Whole denoising and decoding, with and without references: within 1/255."""
    upstream, ours = tiny_transformers(config, seed, std=0.1)
    autoencoder = tiny_autoencoder(seed)
    wanted = request(seed, references=some_references(count))
    theirs = upstream_latents(upstream, wanted, 8, 1.5)
    mine = DiffusionDecoder(ours, CONFIG).sample([wanted], DecoderSettings(steps=8, guidance=1.5))[0]
    with torch.no_grad():
        pixels = [autoencoder.decode(latents) for latents in (theirs, mine[None])]
    assert (pixels[0] - pixels[1]).abs().max() * 127.5 <= 1
    assert pixels[0].std() > 0.05


@pytest.mark.parametrize("batch_branches", [False, True])
def test_a_picture_does_not_depend_on_its_batch_neighbours(batch_branches):
    known = KnownRegion(random_tensor(CHANNELS, 8, 12, seed=5), (random_tensor(8, 12, seed=6) > 0).float())
    requests = [
        request(0, glyphs=6, references=some_references(2)), request(1, glyphs=1), request(2, glyphs=3, known=known),
    ]  # fmt: skip
    ours = decoder()
    options = DecoderSettings(steps=4, batch_branches=batch_branches)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    together = ours.sample(requests, options)
    assert torch.equal(torch.get_rng_state(), state)
    for one, latents in zip(requests, together):
        torch.manual_seed(2)
        assert torch.allclose(ours.sample([one], DecoderSettings(steps=4))[0], latents, atol=1e-4)


def test_a_known_region_is_kept_exactly_and_the_rest_changes():
    known = KnownRegion(random_tensor(CHANNELS, 8, 12, seed=5), torch.zeros(8, 12))
    known.mask[:, :6] = 1
    ours = decoder()
    states = []
    latents = ours.sample([request(known=known)], DecoderSettings(steps=3), states.append)[0]
    free = ours.sample([request()], DecoderSettings(steps=3))[0]
    assert torch.equal(latents[:, :, :6], known.latents[:, :, :6])
    assert not torch.allclose(latents[:, :, 6:], free[:, :, 6:])
    assert torch.equal(states[0].clean[0, :, :, :6], known.latents[:, :, :6])


def test_the_callback_sees_every_step_and_its_clean_estimate():
    states = []
    latents = decoder().sample([request()], DecoderSettings(steps=5, guidance=1.0), states.append)[0]
    assert [(state.step, state.steps) for state in states] == [(i, 5) for i in range(5)]
    assert torch.equal(states[-1].latents[0], latents)
    assert torch.allclose(states[-1].clean[0], latents, atol=1e-5)
    assert states[0].sigma == pytest.approx(1.0)


def test_a_callback_can_stop_the_sampling():
    def stop(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder().sample([request()], DecoderSettings(steps=5), stop)


def test_outside_its_interval_guidance_is_off():
    ours = decoder()
    plain = ours.sample([request()], DecoderSettings(steps=4, guidance=1.0))[0]
    sigmas = flow_schedule(4, 24, CONFIG).sigmas
    never = DecoderSettings(steps=4, guidance=3.0, guidance_interval=(0.0, float(sigmas[-2]) / 2))
    always = DecoderSettings(steps=4, guidance=3.0)
    late = DecoderSettings(steps=4, guidance=3.0, guidance_interval=(0.0, float(sigmas[2]) + 1e-4))
    for branches in (False, True):
        options = {"batch_branches": branches}
        results = [
            ours.sample([request()], DecoderSettings(**{**vars(settings), **options}))[0]
            for settings in (never, late, always)
        ]
        assert torch.allclose(results[0], plain, atol=1e-6)
        assert not torch.allclose(results[1], plain, atol=1e-3)
        assert not torch.allclose(results[1], results[2], atol=1e-3)


def test_strength_starts_from_the_given_latents():
    start = random_tensor(CHANNELS, 8, 12, seed=11)
    ours = decoder()
    distances = [
        float((ours.sample([request(start_latents=start)], DecoderSettings(steps=20, strength=s))[0] - start).norm())
        for s in (0.05, 0.5, 1.0)
    ]
    assert distances == sorted(distances)
    with pytest.raises(ValueError, match="start_latents"):
        ours.sample([request()], DecoderSettings(strength=0.5))


def test_negative_glyphs_steer_the_unconditional_branch():
    ours = decoder()
    other = DecodeRequest(**{**vars(request()), "negative_glyphs": random_tensor(3, GLYPH_WIDTH, seed=50)})
    results = [ours.sample([one], DecoderSettings(steps=3, guidance=2.0))[0] for one in (request(), other)]
    assert not torch.allclose(*results, atol=1e-4)


def test_dynamic_thresholding_bounds_estimates_and_leaves_ordinary_ones_alone():
    calm, wild = random_tensor(1, 4, 8, 8).clamp(-2, 2), random_tensor(1, 4, 8, 8, seed=1) * 20
    both = threshold_dynamically(torch.cat([calm, wild]), 0.99)
    assert torch.equal(both[0], calm[0])
    assert both[1].abs().max() <= 3.0001
    seen = []
    clean = torch.full((1, 1, 2, 2), 50.0)
    sample_flow(lambda x, step: x * 0 - clean, torch.zeros(1, 1, 2, 2), flow_schedule(3, 256, CONFIG),
                 dynamic_thresholding=0.9, on_step=seen.append)  # fmt: skip
    assert all(state.clean.abs().max() <= 3.0001 for state in seen)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"steps": 0}, "steps"), ({"guidance": 0.5}, "guidance"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval"), ({"solver": "heun"}, "solver"),
        ({"schedule_power": 0.0}, "schedule_power"), ({"schedule_power": float("inf")}, "schedule_power"),
        ({"sigma_min": 1.0}, "sigma_min"), ({"sigma_min": -0.1}, "sigma_min"),
        ({"dynamic_thresholding": 0.0}, "dynamic_thresholding"), ({"strength": 0.0}, "strength"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(setting, name):
    with pytest.raises(ValueError, match=name):
        DecoderSettings(**setting)


def test_adams_bashforth_follows_a_bend_that_euler_cuts():
    """Velocity 2 sigma: the flow from 1 at sigma 1 is sigma squared; halving the steps' length quarters the error."""
    errors = {}
    for solver in ("euler", "ab2"):
        for steps in (8, 16):
            schedule = flow_schedule(steps, 256, CONFIG)
            sigmas = schedule.sigmas.tolist()
            end = sample_flow(
                lambda x, step, s=sigmas: x * 0 + 2 * s[step], torch.ones(1, 1, 2, 2), schedule, solver=solver
            )
            errors[solver, steps] = float(end.abs().max())
    assert errors["ab2", 8] < errors["euler", 8] / 4
    assert errors["ab2", 16] < errors["ab2", 8] / 3
    assert errors["euler", 16] > errors["euler", 8] / 3


def test_different_grids_are_refused():
    with pytest.raises(ValueError, match="same grid"):
        decoder().sample([request(), request(grid=(2, 2))], DecoderSettings(steps=1))


def test_the_autoencoder_normalises_by_channel_and_takes_the_mode():
    autoencoder = tiny_autoencoder()
    pixels = random_tensor(2, 3, 32, 48).clamp(-1, 1)
    with torch.no_grad():
        latents = autoencoder.encode(pixels)
        raw = autoencoder.network.encode(pixels).latent_dist.mode()
        back = autoencoder.decode(latents)
    config = autoencoder.network.config
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
    assert torch.allclose(latents, (raw - mean) / std, atol=1e-5)
    assert latents.shape == (2, CHANNELS, 4, 6)
    assert back.shape == pixels.shape
    assert back.abs().max() <= 1


@pytest.mark.parametrize("size", [(30, 32), (32, 4), (0, 8)])
def test_the_autoencoder_refuses_sides_off_its_grid(size):
    with pytest.raises(ValueError, match="multiples of 8"):
        tiny_autoencoder().encode(torch.zeros(1, 3, *size))


def test_half_precision_autoencoders_compute_in_fp32():
    network = tiny_autoencoder().network.half()
    assert Autoencoder(network).dtype == torch.float32


def test_tiles_leave_no_seam():
    """Where two tiles meet, a smooth picture changes no more abruptly than beside it."""
    tiled = tiny_autoencoder(tiled_above=64 * 64)
    smooth = torch.nn.functional.interpolate(random_tensor(1, CHANNELS, 3, 3), size=(112, 144), mode="bicubic")
    with torch.no_grad():
        picture = tiled.decode(smooth)
    assert tiled.network.use_tiling
    border = 768 * 3 // 4
    for axis, across in ((-1, (0, 1, 2)), (-2, (0, 1, 3))):
        jumps = picture.diff(dim=axis).abs().mean(dim=across)
        beside = torch.cat([jumps[border - 25 : border - 1], jumps[border : border + 24]])
        assert jumps[border - 1] <= beside.max()


def test_small_pictures_go_through_whole():
    autoencoder = tiny_autoencoder()
    with torch.no_grad():
        autoencoder.decode(random_tensor(1, CHANNELS, 4, 4))
    assert not autoencoder.network.use_tiling
