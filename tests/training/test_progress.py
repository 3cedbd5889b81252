import io

import pytest
from tqdm import tqdm

from vimi_diffusers.training import progress
from vimi_diffusers.training.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told to."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: time[0])

    def advance(seconds):
        time[0] += seconds

    return advance


def steps(bar, count):
    for _ in range(count):
        bar.step()


def test_rates_are_those_since_the_last_call(clock):
    bar = Progress(100, clips_per_step=8, flops_per_step=10**12, peak_flops=1e13, enabled=False)
    steps(bar, 10)
    clock(5.0)
    assert bar.rates() == {"steps_per_s": 2.0, "clips_per_s": 16.0, "eta_s": 45.0, "mfu": 0.2}
    bar.clips_per_step, bar.flops_per_step = 4, 5 * 10**11  # smaller ones
    steps(bar, 10)
    clock(2.5)
    assert bar.rates() == {"steps_per_s": 4.0, "clips_per_s": 16.0, "eta_s": 20.0, "mfu": 0.2}
    assert bar.rates() == {}  # no step since


def test_a_resumed_run_counts_its_own_steps(clock):
    bar = Progress(100, initial=90, enabled=False)
    steps(bar, 5)
    clock(10.0)
    assert bar.rates() == {"steps_per_s": 0.5, "clips_per_s": 0.5, "eta_s": 10.0}


def test_pauses_count_for_no_rate(clock):
    bar = Progress(10, enabled=False)
    steps(bar, 4)
    clock(2.0)
    with pytest.raises(KeyError), bar.paused():
        clock(60.0)
        raise KeyError
    assert bar.rates()["steps_per_s"] == 2.0
    steps(bar, 4)
    clock(4.0)
    assert bar.rates()["steps_per_s"] == 1.0  # the pause before is forgotten


@pytest.mark.parametrize("known", [{"flops_per_step": 10**12}, {"peak_flops": 1e12}])
def test_no_mfu_without_both_numbers(clock, known):
    bar = Progress(10, enabled=False, **known)
    steps(bar, 1)
    clock(1.0)
    assert "mfu" not in bar.rates()


def test_the_bar_shows_them(clock, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "tqdm", lambda **options: tqdm(file=screen, ncols=160, **options))
    progress.tqdm.format_interval = tqdm.format_interval
    bar = Progress(100, clips_per_step=8, flops_per_step=4 * 10**12, peak_flops=1e13)
    steps(bar, 10)
    clock(10.0)
    bar.rates(error=0.12345)
    bar.bar.refresh()
    bar.close()
    line = screen.getvalue().split("\r")[-1]
    assert "10/100" in line and "error=0.1235, clips/s=8, MFU=40.0%, ETA=01:30" in line
