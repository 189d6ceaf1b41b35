"""Compiled and recorded networks; what records is a GPU's, so its place is taken by a stand-in."""

import contextlib

import numpy as np
import pytest
import torch

from arimage.errors import UsageError
from arimage.inference.api import load
from arimage.inference.engine import Engine
from arimage.inference.requests import ImageRequest
from arimage.inference.settings import Settings
from backends import cuda_graphs
from backends.compiled import compile_network
from backends.cuda_graphs import CudaGraphStep
from decoder.diffusion_decoder import DecoderSettings


def test_compiled_networks_make_the_same_picture(checkpoint_folder):
    requests = [ImageRequest('the word "A"', (64, 96), seed=4)]
    made = []
    for compiled in (False, True):
        networks = load(checkpoint_folder, device="cpu").networks
        for name in ("autoregressive", "transformer"):
            with networks.use(name) as network:
                if compiled:
                    compile_network(network)
        made.append(Engine(networks).run(requests, Settings(DecoderSettings(steps=2))))
        with networks.use("autoregressive") as model:
            assert model.fixed_steps == compiled
    for plain, other in zip(*made):
        assert torch.equal(plain.codes, other.codes)
        difference = np.asarray(plain.image, int) - np.asarray(other.image, int)
        assert np.abs(difference).max() <= 1


def test_compiling_is_refused_where_it_is_slower(checkpoint_folder):
    with pytest.raises(UsageError, match="slower on a CPU"):
        load(checkpoint_folder, device="cpu", compile=True)


class Graph:
    """What is recorded is not done before it is played back."""

    recording = False

    def __init__(self, done):
        self.done = done

    def replay(self):
        self.done.append("played back")


@pytest.mark.parametrize("calls", [1, 3, 4, 7])
def test_recorded_work_is_done_once_a_call(calls, monkeypatch):
    done = []

    @contextlib.contextmanager
    def record(graph):
        Graph.recording = True
        yield
        Graph.recording = False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(done))
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(CudaGraphStep, "_aside", lambda self: self.work())
    step = CudaGraphStep(lambda: None if Graph.recording else done.append("called"), torch.device("cuda"))
    for _ in range(calls):
        step()
    warm = min(calls, cuda_graphs.WARM_UP)
    assert done == ["called"] * warm + ["played back"] * (calls - warm)


def test_without_a_gpu_nothing_is_recorded():
    done = []
    step = CudaGraphStep(lambda: done.append(1), torch.device("cpu"))
    for _ in range(5):
        step()
    assert len(done) == 5
