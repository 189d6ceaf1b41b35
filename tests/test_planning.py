"""GPUs are divided so that no stage waits longer for another than it must."""

import json

import pytest

from arimage.cli.main import run
from arimage.errors import UsageError
from arimage.scale.planning import PUBLISHED, StageSeconds, divide, simulated

TIMES = StageSeconds(encode=0.1, tokens=0.8, diffusion=4.0, pixels=0.1)


@pytest.mark.parametrize(("gpus", "diffusion", "rate"), [(2, 1, 0.25), (5, 4, 1.0), (10, 8, 2.0), (1000, 800, 200.0)])
def test_stages_get_gpus_in_proportion_to_their_times(gpus, diffusion, rate):
    division = divide(TIMES, gpus)
    assert round(division.shares["diffusion"]) == diffusion
    assert division.rate == pytest.approx(rate)
    assert division.gpus == pytest.approx(gpus)
    assert 0 < division.busy(TIMES) <= 1 + 1e-9


def test_no_other_division_makes_more():
    for gpus in range(2, 40):
        best = max(min(d / TIMES.diffusion, (gpus - d) / 1.0) for d in range(1, gpus))
        assert divide(TIMES, gpus).rate == pytest.approx(best)
        assert simulated(TIMES, gpus) < divide(TIMES, gpus).rate


def test_one_gpu_does_all_in_turn():
    assert divide(TIMES, 1).rate == pytest.approx(1 / 5.0)
    with pytest.raises(UsageError, match="at least one"):
        divide(TIMES, 0)


def test_the_command_takes_what_batch_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def plan(*arguments):
        with pytest.raises(SystemExit) as caught:
            run(["plan", *arguments])
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    (tmp_path / "times.json").write_text(
        json.dumps({"seconds": {"encode": 0.1, "tokens": 0.8, "diffusion": 4, "pixels": 0.1}})
    )
    code, out, _ = plan("--serve", "times.json", "--gpus", "5", "--gpu-price", "2")
    assert code == 0
    assert "1 for encode, tokens and pixels, 4 for diffusion" in out
    assert "1,389 GPU-hours, cost 2,778" in out
    code, out, _ = plan("--serve", "--json", "--gpus", "100")
    assert json.loads(out)["seconds"]["diffusion"] == PUBLISHED.diffusion
    assert plan()[0] == 2
    for contents, words in [(None, "cannot read none.json"), ("{}", "--dry-run --json > none.json")]:
        if contents is not None:
            (tmp_path / "none.json").write_text(contents)
        code, _, err = plan("--serve", "none.json")
        assert code == 2
        assert words in err
