"""Rewards in processes of their own, so that pictures are judged while the next ones are made.

A reward that fails, gives no number or does not end stops the run in one line; its states are whole, so it goes on
where the last one was saved.
"""

import multiprocessing
import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arimage.errors import ArimageError
from arimage.training.reinforcement.config import RewardConfig
from arimage.training.reinforcement.rewards import Instruments, Score, Truth, checked, make_reward

WAY_OUT = "mend it or take it out of reinforcement.rewards, and start the run again: it goes on from its newest state"
POLL = 0.5


class RewardFailed(ArimageError):
    """A reward cannot be computed: the message names it and the reason."""


@dataclass(frozen=True)
class Task:
    """Pictures of one prompt, or arrays of their visual tokens, that one reward is asked about."""

    number: int
    reward: str
    pictures: Sequence[Any]
    truth: Truth


class Scorer:
    """The functions of rewards, each made when it is first asked."""

    def __init__(self, rewards: Mapping[str, RewardConfig], instruments: Instruments) -> None:
        self.rewards, self.instruments = rewards, instruments
        self._made: dict[str, Score] = {}

    def __call__(self, task: Task) -> list[float | None] | str:
        """The scores of a task's pictures, or why there are none."""
        try:
            if task.reward not in self._made:
                self._made[task.reward] = make_reward(self.rewards[task.reward], self.instruments)
            pictures = [torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in task.pictures]
            count = len(pictures)
            scores = self._made[task.reward](pictures, [task.truth.prompt] * count, [task.truth] * count)
            return checked(scores, count)
        except Exception as error:  # a user's function may raise anything
            text = " ".join(str(error).split())
            known = isinstance(error, (ArimageError, ValueError)) and text
            return text if known else f"{type(error).__name__}: {text}".removesuffix(": ")


class RewardPool:
    """Computes rewards; tasks are handed in one by one, and collected together.

    Args:
        workers: processes; with 0 a task is computed when it is handed in.
        timeout: seconds that a task may take in a worker.
    """

    def __init__(
        self, rewards: Mapping[str, RewardConfig], instruments: Instruments, workers: int, timeout: float
    ) -> None:
        self.rewards, self.timeout, self.workers = rewards, timeout, workers
        self.scorer = Scorer(rewards, instruments)
        self.processes: list[Any] = []
        self._given = 0
        self._open: dict[int, Task] = {}
        self._scores: dict[int, list[float | None]] = {}

    def ask(self, reward: str, pictures: Sequence[Any], truth: Truth) -> int:
        """Hand in a task; its number.

        Raises:
            RewardFailed: it was computed at once, and failed.
        """
        shown = [one.numpy() if isinstance(one, Tensor) else one for one in pictures]  # a tensor would stay shared
        task = Task(self._given, reward, shown, truth)
        self._given += 1
        if self.workers == 0:
            self._settle(task, self.scorer(task))
        else:
            self._start()
            self._open[task.number] = task
            self._tasks.put(task)
        return task.number

    def collect(self) -> dict[int, list[float | None]]:
        """The scores of all tasks since the last call, by number.

        Raises:
            RewardFailed: one failed, did not end in time, or ended its process.
        """
        begun: dict[int, float] = {}
        while self._open:
            try:
                number, answer = self._results.get(timeout=POLL)
            except queue.Empty:
                self._look_after(begun)
                continue
            if answer is None:
                begun[number] = time.monotonic()
            else:
                begun.pop(number, None)
                self._settle(self._open.pop(number), answer)
        scores, self._scores = self._scores, {}
        return scores

    def close(self) -> None:
        """End the processes; what they were at is lost."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.processes, self._open = [], {}

    def _start(self) -> None:
        if self.processes:
            return
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of PyTorch hold
        self._tasks, self._results = context.Queue(), context.Queue()
        for _ in range(self.workers):
            process = context.Process(target=_work, args=(self.scorer, self._tasks, self._results), daemon=True)
            process.start()
            self.processes.append(process)

    def _settle(self, task: Task, answer: list[float | None] | str) -> None:
        if isinstance(answer, str):
            self._fail(task.reward, f"failed on the prompt {task.truth.prompt!r}: {answer}")
        else:
            self._scores[task.number] = answer

    def _look_after(self, begun: Mapping[int, float]) -> None:
        """Stop where a task takes too long, or no process is left for it."""
        for number, since in begun.items():
            if time.monotonic() - since > self.timeout:
                self._fail(self._open[number].reward, f"gave no answer within reinforcement.timeout={self.timeout:g} s")
        dead = [process for process in self.processes if not process.is_alive()]
        if dead:
            number = next(iter(begun or self._open))
            self._fail(self._open[number].reward, f"ended its process (exit code {dead[0].exitcode})")

    def _fail(self, reward: str, what: str) -> None:
        self.close()
        raise RewardFailed(f"the reward {reward!r} {what}; {WAY_OUT}")


def _work(scorer: Scorer, tasks: Any, results: Any) -> None:
    """A worker: says that it has begun a task, and then its scores. It ends with the process that started it."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        try:
            task = tasks.get(timeout=5)
        except queue.Empty:
            continue
        results.put((task.number, None))
        results.put((task.number, scorer(task)))
