"""Learning from rewards and from pairs: the arithmetic is exact, rollouts are reproducible, what fails is named."""

import math

import pytest
import torch
from torch import Tensor

from arimage.training.batches import RolloutPlace, Rollouts
from arimage.training.reinforcement.policy import advantages, clipped_loss, gaussian_kl, k3, preference_loss
from decoder.sampler import ScheduleConfig, flow_schedule, sample_flow
from decoder.stochastic import StochasticWindow, gaussian_log_prob, transition
from tests.test_training import CPU, assets, losses, metrics, stage, start  # noqa: F401
from tests.tiny_decoder import random_tensor

# The arithmetic


def bend(latents: Tensor, step: int) -> Tensor:
    """A velocity that is not straight."""
    return torch.sin(latents) + step / 10


def test_without_noise_the_sde_is_euler() -> None:
    schedule, noise = flow_schedule(7, 64, ScheduleConfig()), random_tensor(2, 4, 8, 8)
    still = StochasticWindow(0, 0.0, torch.zeros(7, 2, 4, 8, 8))
    assert torch.equal(sample_flow(bend, noise, schedule, stochastic=still), sample_flow(bend, noise, schedule))


def test_only_the_steps_of_the_window_are_noisy() -> None:
    schedule, noise = flow_schedule(7, 64, ScheduleConfig()), random_tensor(2, 4, 8, 8)
    window = StochasticWindow(2, 0.7, random_tensor(2, 2, 4, 8, 8, seed=1))
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    sample_flow(bend, noise, schedule, on_step=lambda state: seen[False].append(state.latents))
    sample_flow(bend, noise, schedule, stochastic=window, on_step=lambda state: seen[True].append(state.latents))
    assert [torch.equal(a, b) for a, b in zip(seen[True][:3], seen[False][:3])] == [True, True, False]
    sigmas = schedule.sigmas.tolist()
    assert torch.equal(seen[True][4], seen[True][3] + (sigmas[5] - sigmas[4]) * bend(seen[True][3], 4))


def test_a_noisy_step_is_that_of_the_paper_and_keeps_the_marginals() -> None:
    sigma, following, level = 0.6, 0.5, 0.7
    kept, moved, deviation = transition(sigma, following, 0.9, level)
    s = level * math.sqrt(sigma / (1 - sigma))
    assert deviation == pytest.approx(s * math.sqrt(0.1))
    assert kept == pytest.approx(1 - s**2 / (2 * sigma) * 0.1)
    assert moved == pytest.approx(-(1 + s**2 * (1 - sigma) / (2 * sigma)) * 0.1)
    assert transition(1.0, 0.9, 0.9, level).deviation == pytest.approx(
        level * math.sqrt(1 / (1 - 0.9)) * math.sqrt(0.1)
    )
    # All clean latents being 0, latents at sigma are sigma * noise and the velocity is latents / sigma.
    fine = [1 - number / 2000 for number in range(2000)]
    variance = fine[500] ** 2
    for here, there in zip(fine[500:1500], fine[501:1501]):
        kept, moved, deviation = transition(here, there, fine[1], level)
        variance = (kept + moved / here) ** 2 * variance + deviation**2
    assert math.sqrt(variance) == pytest.approx(fine[1500], rel=2e-3)


def test_log_probabilities_are_those_of_torch() -> None:
    value, mean = random_tensor(3, 4, 5, 5), random_tensor(3, 4, 5, 5, seed=1)
    deviation = torch.tensor([0.1, 0.5, 2.0])[:, None, None, None]
    wanted = torch.distributions.Normal(mean, deviation).log_prob(value).mean(dim=(1, 2, 3))
    assert torch.allclose(gaussian_log_prob(value, mean, deviation), wanted, rtol=1e-6)
    first, second = (torch.distributions.Normal(center, deviation) for center in (mean, value))
    wanted = torch.distributions.kl_divergence(first, second).mean(dim=(1, 2, 3))
    assert torch.allclose(gaussian_kl(mean, value, deviation), wanted, rtol=1e-5)


def test_advantages_by_hand_and_groups_without_spread_are_dropped() -> None:
    found = advantages(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0]), 4)
    deviation = math.sqrt(1.25)
    assert found.values.tolist() == pytest.approx([*(x / deviation for x in (-1.5, -0.5, 0.5, 1.5)), 0, 0, 0, 0])
    assert found.kept.tolist() == [True] * 4 + [False] * 4


def test_the_loss_is_clipped_where_the_ratio_has_gone_far_enough() -> None:
    log_ratio = torch.tensor([0.0, math.log(1.5), math.log(0.5), math.log(1.5), math.log(0.5)], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    found = clipped_loss(log_ratio, advantage, 0.2)
    assert found.tolist() == pytest.approx([-1.0, -1.2, -0.5, 1.5, 0.8])
    found.sum().backward()
    assert (log_ratio.grad == 0).tolist() == [False, True, False, False, True]


def test_k3_is_the_divergence_on_average_and_pulls_back() -> None:
    policy = torch.distributions.Categorical(logits=torch.tensor([0.3, -0.5, 1.0]))
    reference = torch.distributions.Categorical(logits=torch.tensor([0.0, 0.4, -0.2]))
    each = k3(policy.logits, reference.logits)
    assert bool((each >= 0).all())
    assert float((policy.probs * each).sum()) == pytest.approx(
        float(torch.distributions.kl_divergence(policy, reference)), rel=1e-5
    )
    logits = torch.tensor([2.0, 0.0, -1.0], requires_grad=True)
    optimizer, wanted = torch.optim.Adam([logits], 0.05), torch.tensor([0.2, 0.3, 0.5]).log()
    for _ in range(300):
        optimizer.zero_grad()
        (logits.softmax(0).detach() * k3(logits.log_softmax(0), wanted)).sum().backward()
        optimizer.step()
    assert torch.allclose(logits.softmax(0), wanted.exp(), atol=0.02)


def test_the_loss_of_pairs_by_hand() -> None:
    assert preference_loss(torch.tensor([0.0, 2.0])).tolist() == pytest.approx(
        [math.log(2), math.log(1 + math.exp(-2))]
    )


def test_micro_batches_learn_from_a_rollout_again_and_again() -> None:
    rollouts = Rollouts(updates=2, parts=2, accumulation=4)
    assert [rollouts.prompts(number) for number in range(16)] == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    assert rollouts.place(13) == RolloutPlace(rollout=1, update=1, batch=0, part=1, parts=2)
