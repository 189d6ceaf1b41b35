"""Learning from rewards and from pairs: the arithmetic is exact, rollouts are reproducible, what fails is named."""

import base64
import io
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from arimage.data.assets import Assets
from arimage.data.buckets import in_bucket
from arimage.data.folders import OwnData
from arimage.data.records import PROMPT_ONLY, Record
from arimage.data.scenes import Scenes, SceneSettings
from arimage.errors import DataError, UsageError
from arimage.evaluation.codes import counted_cells
from arimage.training.batches import RolloutPlace, Rollouts, StepBatches
from arimage.training.config import TrainConfig
from arimage.training.guards import TrainingStopped
from arimage.training.loop import Run, train
from arimage.training.reinforcement.config import RewardConfig
from arimage.training.reinforcement.policy import advantages, clipped_loss, gaussian_kl, k3, preference_loss
from arimage.training.reinforcement.pool import RewardFailed, RewardPool
from arimage.training.reinforcement.rewards import Instruments, Truth, make_reward, text_score
from arimage.training.reinforcement.tokens import distinct
from arimage.training.sources import read_prompts
from decoder.diffusion_decoder import Reference
from decoder.sampler import ScheduleConfig, flow_schedule, sample_flow
from decoder.stochastic import StochasticWindow, gaussian_log_prob, transition
from tests import test_training
from tests.test_training import losses, metrics, stage
from tests.tiny_checkpoint import tiny_folder
from tests.tiny_decoder import random_tensor

fresh, assets = test_training.start, test_training.assets  # fixtures


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in which no path is silent."""
    return tiny_folder(tmp_path_factory.mktemp("random") / "tiny")


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
    for here, there in pairwise(fine[500:1501]):
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
    unscaled = advantages(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0]), 4, scale=False)
    assert unscaled.values.tolist() == [-1.5, -0.5, 0.5, 1.5, 0, 0, 0, 0]
    assert torch.equal(unscaled.kept, found.kept)


def test_pictures_with_the_same_codes_are_made_once() -> None:
    first, second = torch.tensor([[1, 2]]), torch.tensor([[1, 3]])
    different, places = distinct([first, second, first.clone(), second, first])
    assert [grid.tolist() for grid in different] == [[[1, 2]], [[1, 3]]]
    assert places == [0, 1, 0, 1, 0]


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


# Stages


TOYS = "tests/toy_rewards.py"
OWN: dict[str, Any] = {"kind": "python", "function": f"{TOYS}:low_codes", "sees": "codes"}
SEEN: dict[str, Any] = {"kind": "python", "function": f"{TOYS}:brightness"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("autoregressive", {"autoregressive": {"grpo": {}}}),
    "flow_grpo": ("decoder", {"decoder": {"flow_grpo": {}}}),
}


def rewarded(method: str, start: Path, assets: Path, output: Path, **more: Any) -> TrainConfig:
    """A small stage that learns from a reward, two updates from each rollout."""
    network, sections = METHODS[method]
    reinforcement = {
        "group": 4, "workers": 0, "rewards": {"toy": OWN if method == "grpo" else SEEN},
        "options": {"steps": 4, "preview_grid": False}, **more.pop("reinforcement", {}),
    }  # fmt: skip
    values = {"save_every": 2, "steps": 4, "warmup": 0, "learning_rate": 1e-3, "evaluation": [], **sections, **more}
    return stage(network, start, assets, output, reinforcement=reinforcement, **values)


def started(config: TrainConfig) -> Run:
    run = Run(config)
    run.start()
    run.train_state.model.train()
    return run


@pytest.mark.parametrize("adapters", [None, {"rank": 4}], ids=["whole", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_before_anything_is_learnt_the_ratio_is_one(
    method: str, adapters: dict[str, int] | None, start: Path, assets: Path, tmp_path: Path
) -> None:
    run = started(rewarded(method, start, assets, tmp_path, lora=adapters))
    first, second = (run.objective(run.batches[number].tensors) for number in (0, 1))
    assert float(first["groups"]) > 0
    for found in (first, second):
        assert float(found["ratio"]) < 1e-6
        assert abs(float(found["kl"])) < 1e-6
    second["loss"].backward()
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in run.train_state.parameters())


def test_teacher_forced_log_probabilities_are_those_that_codes_are_drawn_with(
    start: Path, assets: Path, tmp_path: Path
) -> None:
    run = started(rewarded("grpo", start, assets, tmp_path))
    objective: Any = run.objective
    batch = run.batches[0].tensors
    objective(batch)
    rollout = objective.rollout(batch["place"], batch["asked"])
    at = 0
    for sequence in rollout.sequences:
        hidden = objective.model(sequence.tokens[None], sequence.positions[:, None])[0]
        drawn = (sequence.labels >= 0) & (sequence.labels < objective.vocabulary.codebook_size)
        scores = objective.model.scores(hidden[drawn], objective.vocabulary.codebook_size)
        wanted = torch.distributions.Categorical(logits=scores).log_prob(sequence.labels[drawn])
        assert len(wanted) == 4
        assert torch.allclose(rollout.old[0][at : at + 4], wanted, atol=1e-5)
        at += 4
    assert at == len(rollout.old[0])


def test_the_density_of_a_noisy_step_is_that_of_the_noise_it_was_taken_with(
    start: Path, assets: Path, tmp_path: Path
) -> None:
    run = started(rewarded("flow_grpo", start, assets, tmp_path, reinforcement={"options": {"steps": 6}}))
    objective: Any = run.objective
    batch = run.batches[0].tensors
    objective(batch)
    rollout = objective.rollout(batch["place"], batch)
    noises = []
    for seed, one in zip(rollout.batch.seeds, batch["asked"]):
        window = objective._noise(seed, one, rollout.batch.latents.shape[1:])[1]
        noises += list(window.noises.transpose(0, 1).flatten(0, 1))
    steps = [transition(*objective._levels(rollout, taken.step), 0.7) for taken in rollout.noisy_steps]
    wanted = [
        gaussian_log_prob(step.deviation * noise[None], torch.zeros_like(noise)[None], torch.tensor(step.deviation))
        for step, noise in zip(steps, noises)
    ]
    assert len({taken.step for taken in rollout.noisy_steps}) <= 4
    assert torch.allclose(rollout.old[0], torch.cat(wanted), atol=1e-4)


def test_a_group_has_the_decoders_noise_or_its_codes_in_common(start: Path, assets: Path, tmp_path: Path) -> None:
    tokens: Any = started(rewarded("grpo", start, assets, tmp_path / "a", reinforcement={"rewards": {"toy": SEEN}}))
    made: list[Any] = []
    engine = tokens.objective.rewarder.engine
    run_engine = engine.run
    engine.run = lambda requests, *rest: made.append(requests) or run_engine(requests, *rest)
    batch = tokens.batches[0].tensors
    rollout = tokens.objective.rollout(batch["place"], batch["asked"])
    assert [len({request.seed for request in group}) for group in made] == [1, 1]
    assert len({tuple(request.codes.flatten().tolist()) for request in made[0]}) > 1
    assert len(rollout.sequences) == 8
    flow: Any = started(rewarded("flow_grpo", start, assets, tmp_path / "b"))
    batch = flow.batches[0].tensors
    noisy_steps = flow.objective.rollout(batch["place"], batch).noisy_steps
    assert len({float(taken.before.flatten()[0]) for taken in noisy_steps if taken.sample == 0}) == 8
    assert len({taken.step for taken in noisy_steps if taken.sample == 0}) == 2


@pytest.mark.parametrize("codes", ["picture", "generated"])
def test_references_of_a_rollout_stand_where_those_of_users_do(
    codes: str, start: Path, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(reference: Reference, codes: torch.Tensor) -> Reference:
        return Reference(reference.latents + 1000 * codes[0, 0], reference.codes + 1)

    monkeypatch.setattr("arimage.training.reinforcement.flow.aligned", moved)
    edits = [{"scenes": {"tasks": {"background": 1}, "sizes": [[64, 64]]}, "assets": str(assets)}]
    for align in (False, True):
        options = {"steps": 4, "preview_grid": False, "align_references": align}
        run = started(
            rewarded(
                "flow_grpo", start, assets, tmp_path / f"{align}", data=edits, decoder={"flow_grpo": {"codes": codes}},
                reinforcement={"options": options},
            )
        )  # fmt: skip
        objective: Any = run.objective
        batch = run.batches[0].tensors
        told, given = objective.rollout(batch["place"], batch).batch, objective.encode(batch)
        assert any(given.references)
        for shown, before, own in zip(told.references, given.references, told.codes):
            for one, other in zip(shown, before):
                assert torch.equal(one.latents, other.latents + 1000 * own[0, 0] * align)
                assert torch.equal(one.codes, other.codes + align)


def test_a_bandit_with_a_known_best_answer_is_learnt(fresh: Path, assets: Path, tmp_path: Path) -> None:
    scenes = {"tasks": {"subject": 1}, "sizes": [[64, 64]]}
    config = rewarded(
        "grpo", fresh, assets, tmp_path, steps=40, save_every=40, learning_rate=4e-3, schedule="constant",
        data=[{"scenes": scenes, "assets": str(assets)}], autoregressive={"grpo": {"kl": 0.0}},
        reinforcement={"group": 8},
    )  # fmt: skip
    train(config)
    rewards = [row["reward"] for row in metrics(tmp_path)]
    assert rewards[0] < 0.4
    assert rewards[-1] > 0.9


def test_the_decoder_learns_what_is_rewarded(fresh: Path, assets: Path, tmp_path: Path) -> None:
    scenes = {"tasks": {"subject": 1}, "sizes": [[64, 64]]}
    config = rewarded(
        "flow_grpo", fresh, assets, tmp_path, steps=20, save_every=20, learning_rate=4e-3, schedule="constant",
        batch_size=1,
        data=[{"scenes": scenes, "assets": str(assets)}], decoder={"flow_grpo": {"kl": 0.0, "clip": 0.01}},
        reinforcement={"group": 8},
    )  # fmt: skip
    train(config)
    rewards = [row["reward"] for row in metrics(tmp_path)]
    assert rewards[-1] > rewards[0] + 0.03


def test_groups_without_spread_teach_nothing(start: Path, assets: Path, tmp_path: Path) -> None:
    even = {"kind": "python", "function": f"{TOYS}:even", "sees": "codes"}
    run = started(rewarded("grpo", start, assets, tmp_path, reinforcement={"rewards": {"even": even}}))
    found = run.objective(run.batches[0].tensors)
    found["loss"].backward()
    assert float(found["groups"]) == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in run.train_state.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_stopped_between_rollouts_goes_on_bit_for_bit(
    method: str, start: Path, assets: Path, tmp_path: Path
) -> None:
    more = {"accumulation": 2, "reinforcement": {"parts": 2, "stop": {"toy": 9.0}}}
    scenes = {"tasks": {"subject": 1}, "sizes": [[64, 64]], "split": "evaluation"}
    evaluation = {"evaluation": [{"scenes": scenes, "assets": str(assets)}], "evaluate_every": 4}
    straight = rewarded(method, start, assets, tmp_path / "straight", **more, **evaluation)
    train(straight)
    rows = metrics(tmp_path / "straight", "evaluation")
    assert [row["step"] for row in rows] == [0, 4]
    assert {"reward", "toy", "diversity", "kid"} <= rows[0].keys()
    state = json.loads((tmp_path / "straight" / "states" / "step-00000004" / "state.json").read_text())
    assert state["metadata"]["objective"]["before"] == {"toy": rows[0]["toy"]}
    resumed = straight.model_copy(update={"output": str(tmp_path / "resumed")})
    shutil.copytree(tmp_path / "straight" / "states", tmp_path / "resumed" / "states")
    shutil.rmtree(tmp_path / "resumed" / "states" / "step-00000004")
    train(resumed)
    assert losses(tmp_path / "resumed") == {s: v for s, v in losses(tmp_path / "straight").items() if s > 2}
    folders = [tmp_path / name / "states" / "step-00000004" for name in ("straight", "resumed")]
    assert (folders[0] / "weights.safetensors").read_bytes() == (folders[1] / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_share_the_rollout_of_one(method: str, start: Path, assets: Path, tmp_path: Path) -> None:
    run = started(rewarded(method, start, assets, tmp_path, batch_size=4, lora={"rank": 4}))
    objective: Any = run.objective

    def gradients(batches: Sequence[Any]) -> tuple[float, list[Tensor]]:
        total, count = 0.0, len(batches)
        objective.zero_grad()
        for batch in batches:
            objective._number = -1
            loss = objective(batch)["loss"] / count
            loss.backward()
            total += float(loss.detach())
        return total, [parameter.grad.clone() for parameter in run.train_state.parameters()]

    whole = gradients([run.batches[0].tensors])
    parts = []
    for process in (0, 1):
        batches = StepBatches(
            run.config.data, 2, objective.collate, run.config.captions, process=process, processes=2,
            rollouts=run.batches.rollouts,
        )  # fmt: skip
        parts.append(batches[0].tensors)
    shared = gradients(parts)
    assert shared[0] == pytest.approx(whole[0], abs=1e-6)
    assert max(float(one.abs().max()) for one in whole[1]) > 0
    for one, two in zip(whole[1], shared[1]):
        assert torch.allclose(one, two, atol=1e-6 + 1e-4 * float(one.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_adapters_learn_from_rewards_and_the_weights_stay(
    method: str, start: Path, assets: Path, tmp_path: Path
) -> None:
    folder = train(rewarded(method, start, assets, tmp_path, lora={"rank": 4}, steps=2))
    assert (folder / "adapter_model.safetensors").exists()
    assert metrics(tmp_path)[-1]["kl"] > 0


# Rewards


TRUTH = Truth('a sign that says "OPEN 24"', Record(Image.new("RGB", (64, 64)), {"caption": "a sign"}))
PICTURES = [Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")]


def pool(reward: dict[str, Any], workers: int = 0, timeout: float = 60.0) -> RewardPool:
    return RewardPool({"mine": RewardConfig.model_validate(reward)}, Instruments(), workers, timeout)


def toy(name: str, sees: str = "pictures") -> dict[str, Any]:
    return {"kind": "python", "function": f"{TOYS}:{name}", "sees": sees}


@pytest.mark.parametrize(
    ("lines", "score"),
    [
        (["OPEN 24"], 1.0),
        (["open", "24"], 1.0),
        (["OPEN"], (1 / 2 + 4 / 6) / 2),
        (["OPEN 24", "OPEN 24"], (1 + 6 / 12) / 2),
        ([], 0.0),
    ],
)
def test_texts_are_scored_by_hand(lines: list[str], score: float) -> None:
    assert text_score(lambda picture: lines, PICTURES[0], TRUTH) == pytest.approx(score)


def test_chinese_texts_are_scored_by_character_and_no_text_is_no_score() -> None:
    truth = Truth("书店的招牌，上面写着“好书”", TRUTH.record)
    assert truth.language == "zh"
    assert text_score(lambda picture: ["好天"], PICTURES[0], truth) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert text_score(lambda picture: ["a"], PICTURES[0], Truth("a fox", TRUTH.record)) is None


def test_an_edit_of_a_text_is_not_rewarded_for_the_old_one(assets: Path) -> None:
    settings = SceneSettings(tasks={"change text": 1.0}, sizes=((64, 64),), patterns=0.0)
    record = Scenes(Assets.open(assets), settings)[0]
    new = record.truth["spec"]["lettering"]["text"]
    old = record.truth["sources"][-1]["spec"]["lettering"]["text"]
    truth = Truth(f'Change "{old}" to "{new}"', record)
    assert old != new
    assert truth.texts == [old, new]
    assert text_score(lambda picture: [new], record.image, truth) == 1
    assert text_score(lambda picture: [old], record.image, truth) < 1  # type: ignore[operator]


def test_a_picture_is_like_itself_and_the_colour_of_a_scene_is_judged(assets: Path) -> None:
    settings = SceneSettings(tasks={"subject": 1.0}, sizes=((64, 64),), patterns=0.0)
    record = Scenes(Assets.open(assets), settings)[0]
    truth = Truth(record.captions["en/sentence"], record)
    instruments = Instruments(str(assets), settings)
    wrong = Image.new("RGB", record.image.size, (1, 250, 120))
    for reward in ({"kind": "similarity"}, {"kind": "judge", "ability": "background colour"}):
        score = make_reward(RewardConfig.model_validate(reward), instruments)
        right, other = score([record.image, wrong], [truth.prompt] * 2, [truth] * 2)
        assert right == pytest.approx(1.0, abs=1e-4)
        assert other is not None
        assert other < 0.9


def test_codes_are_scored_against_those_of_the_true_picture(start: Path, assets: Path) -> None:
    settings = SceneSettings(tasks={"background": 1.0}, sizes=((64, 64),), patterns=0.0)
    record = Scenes(Assets.open(assets), settings)[0]
    instruments = Instruments(str(assets), settings, str(start))
    score = make_reward(RewardConfig(kind="codes"), instruments)
    true, cells = counted_cells(instruments.tokenizer, record)
    wrong = true.clone()
    wrong.view(-1)[0] += 1
    whole, blank = (Truth("a prompt", one) for one in (record, replace(record, task=PROMPT_ONLY)))
    assert set(cells) == {"codes kept"}
    assert score([true, true + 1, true], ["a prompt"] * 3, [whole, whole, blank]) == [1.0, 0.0, None]
    photo = Truth("a prompt", Record(record.image, {}, task="picture"))
    assert score([wrong], ["a prompt"], [photo]) == [pytest.approx(1 - 1 / wrong.numel())]
    with pytest.raises(ValueError, match="sees: codes goes with kind: python"):
        RewardConfig(kind="ocr", sees="codes")


def test_functions_and_services_are_asked_with_pictures_prompts_and_truths() -> None:
    seen: list[Any] = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"scores": [0.25, 0.75]}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("localhost", 0), Service) as server:
        Thread(target=server.handle_request, daemon=True).start()
        asked = pool({"kind": "http", "url": f"http://localhost:{server.server_port}/score"})
        number = asked.ask("mine", PICTURES, TRUTH)
        assert asked.collect() == {number: [0.25, 0.75]}
    assert seen[0]["prompts"] == [TRUTH.prompt] * 2
    assert seen[0]["truths"][0] == {"task": "picture", "language": "en", "texts": ["OPEN 24"], "scene": {}}
    first = base64.b64decode(seen[0]["images"][0])
    assert Image.open(io.BytesIO(first)).getpixel((0, 0)) == (255, 255, 255)
    called = pool(toy("brightness"))
    number = called.ask("mine", PICTURES, TRUTH)
    assert called.collect() == {number: [1.0, 0.0]}


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (toy("raising"), "KeyError: 'no such thing'"),
        (toy("no_number"), "it gave nan; rewards are finite numbers"),
        (toy("too_few"), "it gave 1 for 2 pictures"),
        (toy("absent"), "cannot be found"),
        ({"kind": "http", "url": "http://localhost:1/score"}, "did not answer as it should"),
        ({"kind": "judge", "ability": "subject"}, "judges scenes, and the stage's data has none"),
    ],
)
def test_a_reward_that_fails_is_named_with_its_reason_and_the_way_out(reward: dict[str, Any], told: str) -> None:
    with pytest.raises(RewardFailed) as caught:
        pool(reward).ask("mine", PICTURES, TRUTH)
    message = str(caught.value)
    assert "the reward 'mine' failed" in message
    assert told in message
    assert "goes on from its newest state" in message
    assert "\n" not in message


def test_a_worker_that_hangs_or_dies_stops_the_run() -> None:
    asked = pool(toy("brightness"), workers=1)
    numbers = [asked.ask("mine", PICTURES, TRUTH) for _ in range(3)]
    assert asked.collect() == {number: [1.0, 0.0] for number in numbers}
    assert asked.processes[0].is_alive()
    asked.ask("mine", PICTURES, TRUTH)
    asked.processes[0].kill()
    asked.processes[0].join()
    with pytest.raises(RewardFailed, match="ended its process"):
        asked.collect()
    hanging = pool(toy("hanging"), workers=1, timeout=1.0)
    hanging.ask("mine", PICTURES, TRUTH)
    since = time.monotonic()
    with pytest.raises(RewardFailed, match=r"gave no answer within reinforcement.timeout=1 s"):
        hanging.collect()
    assert time.monotonic() - since < 120
    assert not hanging.processes


def test_a_failed_reward_leaves_a_run_that_goes_on(start: Path, assets: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    broken = "def score(codes, prompts, truths):\n    return [{}] * len(codes)\n"
    own.write_text(broken.format("float(codes[0][0, 0] / 100)"))
    reward = {"kind": "python", "function": f"{own}:score", "sees": "codes"}
    config = rewarded("grpo", start, assets, tmp_path / "run", steps=2, reinforcement={"rewards": {"own": reward}})
    train(config)
    own.write_text(broken.format("float('nan')"))
    longer = rewarded(
        "grpo", start, assets, tmp_path / "run", steps=4, restart=True, reinforcement={"rewards": {"own": reward}}
    )
    with pytest.raises(RewardFailed, match="the reward 'own' failed"):
        train(longer)
    own.write_text(broken.format("0.5"))
    train(longer)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_training_stops_at_a_stated_loss_of_what_is_watched(start: Path, assets: Path, tmp_path: Path) -> None:
    scenes = {"tasks": {"subject": 1}, "sizes": [[64, 64]], "split": "evaluation"}
    evaluation = [{"scenes": scenes, "assets": str(assets)}]
    stop = {"kid": 5.0, "diversity": 0.1, "even": 0.05}
    rewards = {"toy": OWN, "even": toy("even") | {"weight": 0}}
    run = Run(
        rewarded(
            "grpo", start, assets, tmp_path, evaluation=evaluation, reinforcement={"stop": stop, "rewards": rewards}
        )
    )
    before = {"kid": 10.0, "diversity": 0.4, "even": 1.0, "toy": 0.1}
    run.objective.watch(0, before)
    run.objective.watch(2, {"kid": 14.9, "diversity": 0.31, "even": 0.96, "toy": 0.0})
    for name, value in (("kid", 15.1), ("diversity", 0.29), ("even", 0.94)):
        with pytest.raises(TrainingStopped, match=rf"step 4: {name} went from .*stop\.{name}="):
            run.objective.watch(4, before | {name: value})
    with pytest.raises(DataError, match="evaluations have no kid"):
        run.objective.watch(4, {"diversity": 0.4, "even": 1.0})


@pytest.mark.parametrize("method", METHODS)
def test_judges_work_in_their_own_precision(method: str, start: Path, assets: Path, tmp_path: Path) -> None:
    """In bf16 the judge of style broke down at its features: arrays of NumPy know no such numbers."""
    scenes = {"tasks": {"subject": 1}, "sizes": [[64, 64]], "split": "evaluation"}
    rewards = {"exact": toy("in_own_precision"), "seen": SEEN}
    evaluation = {"evaluation": [{"scenes": scenes, "assets": str(assets)}], "evaluate_every": 2}
    given = {"precision": "bf16", "steps": 2, "reinforcement": {"rewards": rewards}}
    train(rewarded(method, start, assets, tmp_path, **given, **evaluation))
    rows = metrics(tmp_path, "evaluation") + metrics(tmp_path)
    assert len(rows) == 4
    assert {row["exact"] for row in rows} == {1.0}


@pytest.mark.parametrize(
    ("method", "more", "told"),
    [
        ("grpo", {"steps": 5}, "steps must be a multiple of reinforcement.updates"),
        ("grpo", {"reinforcement": {"parts": 2}}, "accumulation must be a multiple of reinforcement.parts"),
        ("grpo", {"reinforcement": {"stop": {"kid": 1.0}}}, "stop needs evaluation data"),
        ("grpo", {"reinforcement": {"stop": {"kit": 1.0}}}, "there is no figure 'kit'; did you mean 'kid'"),
        ("grpo", {"reinforcement": {"rewards": {"a": OWN | {"weight": 0}}}}, "at least one must have a weight"),
        ("grpo", {"reinforcement": {"rewards": {"a": {"kind": "judge", "ability": "colour"}}}}, "the judge knows no"),
        ("grpo", {"reinforcement": {"rewards": {"a": {"kind": "http"}}}}, "url goes with kind: http"),
        ("grpo", {"reinforcement": {"rewards": {"a": SEEN | {"function": "nothing"}}}}, "module:function"),
        ("grpo", {"autoregressive": {"grpo": {}, "dpo": {"beta": 1.0}}}, "do not go together"),
        ("grpo", {"autoregressive": {}}, "reinforcement goes with autoregressive.grpo or decoder.flow_grpo"),
        ("flow_grpo", {"decoder": {"flow_grpo": {"noise_level": 0}}}, "decoder.flow_grpo.noise_level"),
        ("flow_grpo", {"data": [{"prompts": "a.txt"}]}, "set decoder.flow_grpo.codes=generated"),
    ],
)
def test_wrong_stages_are_named(
    method: str, more: dict[str, Any], told: str, start: Path, assets: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        rewarded(method, start, assets, tmp_path, **more)


def test_what_cannot_be_rolled_out_is_refused(start: Path, assets: Path, tmp_path: Path) -> None:
    early = rewarded("flow_grpo", start, assets, tmp_path, reinforcement={"options": {"steps": 8, "sigma_min": 0.8}})
    run = started(early)
    with pytest.raises(UsageError, match=r"sigma_min=0.8 leaves 1 of 8 steps"):
        run.objective(run.batches[0].tensors)
    short = rewarded("flow_grpo", start, assets, tmp_path, reinforcement={"options": {"steps": 2}})
    with pytest.raises(UsageError, match=r"a window of 2 steps does not fit into 0.5 of 2 steps"):
        Run(short)
    wrong = rewarded("grpo", start, assets, tmp_path, reinforcement={"options": {"stepps": 2}})
    with pytest.raises(UsageError, match="there is no option 'stepps'; did you mean 'steps'"):
        Run(wrong)


@pytest.mark.parametrize("method", METHODS)
def test_prompts_alone_are_enough(method: str, start: Path, assets: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a fox\n\n一只猫\n  a red\tdoor \n", encoding="utf-8")
    flow = {"decoder": {"flow_grpo": {"codes": "generated", "kl": 0.0}}}
    config = rewarded(
        method, start, assets, tmp_path, data=[{"prompts": str(file), "sides": [64]}], batch_size=1,
        **(flow if method == "flow_grpo" else {}),
    )  # fmt: skip
    run = started(config)
    prompts = {run.batches.examples(number)[0][0].caption for number in range(0, 12)}
    assert prompts - {""} == {"a fox", "一只猫", "a red door"}
    assert float(run.objective(run.batches[0].tensors)["groups"]) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "contents", "told"),
    [
        ("a.txt", "\n", "a.txt holds no prompts"),
        ("a.jsonl", '{"text": "a"}\n', r"a.jsonl:1: there is no text under 'prompt'"),
        ("a.jsonl", '{"prompt": "a"}\n{', r"a.jsonl:2: no valid JSON"),
    ],
)
def test_files_without_prompts_are_named(name: str, contents: str, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(contents, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        read_prompts(tmp_path / name)


# Pairs


@pytest.fixture(scope="module")
def chosen_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts, each with a picture that is liked and one that is not."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for name, liked, disliked in (("one", (220, 40, 40), (30, 60, 200)), ("two", (40, 200, 60), (240, 240, 90))):
        for kind, color in (("chosen", liked), ("rejected", disliked)):
            image = Image.new("RGB", (64, 64), color)
            image.paste((128, 128, 128), (0, 0, 32, 20))
            image.save(folder / f"{name}-{kind}.png")
        rows.append({"chosen": f"{name}-chosen.png", "rejected": f"{name}-rejected.png", "text": f"picture {name}"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("network", "beta", "adapters"),
    [("autoregressive", 0.1, None), ("autoregressive", 0.1, {"rank": 4}), ("decoder", 200.0, None)],
)
def test_the_chosen_picture_of_a_pair_becomes_likelier_than_the_rejected(
    network: str, beta: float, adapters: dict[str, int] | None, start: Path, chosen_pairs: Path, tmp_path: Path
) -> None:
    config = stage(
        network, start, chosen_pairs, tmp_path, steps=12, learning_rate=5e-3, save_every=12, warmup=0, evaluation=[],
        data=[{"path": str(chosen_pairs), "sides": [64]}], captions={"dropout": 0.0}, lora=adapters, ema=None,
        **{network: {"dpo": {"beta": beta}, **({"preview": 0.0} if network == "autoregressive" else {})}},
    )  # fmt: skip
    train(config)
    rows = metrics(tmp_path)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-3)
    assert rows[-1]["loss"] < 0.6
    assert rows[-1]["preferred"] == 1.0


def test_data_without_pairs_is_refused_by_dpo(start: Path, assets: Path, tmp_path: Path) -> None:
    config = stage("autoregressive", start, assets, tmp_path, autoregressive={"dpo": {"beta": 0.1}})
    with pytest.raises(DataError, match="has no rejected picture; DPO learns from pairs"):
        train(config)


def test_a_rejected_picture_goes_into_the_bucket_of_the_chosen_one(chosen_pairs: Path) -> None:
    record = OwnData(str(chosen_pairs))[0].read()
    assert record.rejected is not None
    wide = replace(record, rejected=record.rejected.resize((128, 64)))
    placed = in_bucket(wide, [(32, 32)])
    assert placed.rejected is not None
    assert placed.image.size == placed.rejected.size == (32, 32)
