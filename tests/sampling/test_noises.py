"""Noise that is drawn ahead of its use is the noise that would be drawn at its use."""

import threading

import pytest
import torch
from known_scores import SDE, gaussian_score

from qcsbm.runtime.seeding import generator
from qcsbm.sampling import langevin, noises, pc
from qcsbm.sampling.base import noise
from qcsbm.schema.samplers import PC, Langevin

SHAPE = (3, 2, 5, 5)
SETTINGS = {
    pc: PC(type="pc", steps=4, snr=0.16, corrector_steps=2, batch_size=3),
    langevin: Langevin(
        type="langevin", noise_levels=3, steps_per_level=2, step_size=0.4, batch_size=3
    ),
}


@pytest.fixture
def ahead(monkeypatch):
    """Noise is drawn ahead on the CPU too; the threads that drew."""
    monkeypatch.setattr(noises, "ahead_on", lambda device: True)
    threads, randn = [], torch.randn

    def noted(*arguments, **options):
        threads.append(threading.current_thread())
        return randn(*arguments, **options)

    monkeypatch.setattr(torch, "randn", noted)
    return threads


def test_draws_ahead_are_those_at_their_use_and_no_more(ahead):
    one, other = generator(5, "noises"), generator(5, "noises")
    with noises.noises(7, SHAPE, one, "cpu") as draws:
        found = list(draws)
    assert len(set(ahead)) == 1 and ahead[0] is not threading.main_thread()
    assert len(ahead) == len(found) == 7
    assert all(torch.equal(z, noise(SHAPE, other, "cpu")) for z in found)
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("sampler", SETTINGS, ids=lambda module: module.__name__)
def test_samples_are_the_same_bytes_and_leave_the_generator_alike(sampler, ahead, monkeypatch):
    def sample():
        draws = generator(5, "sample", 1)
        samples = sampler.sample(gaussian_score, SDE, SHAPE, draws, SETTINGS[sampler])
        return samples.x, draws.get_state()

    found = sample()
    assert threading.main_thread() not in ahead
    drawn = len(ahead)
    monkeypatch.undo()
    inline = sample()
    assert drawn == 13 - 6 * (sampler is langevin)
    assert all(map(torch.equal, found, inline))


def test_on_a_cpu_noise_is_drawn_at_its_use():
    draws, other = generator(5, "noises"), generator(5, "noises")
    with noises.noises(3, SHAPE, draws, "cpu") as iterator:
        assert torch.equal(next(iterator), noise(SHAPE, other, "cpu"))
        assert torch.equal(draws.get_state(), other.get_state())
    assert not noises.ahead_on("cpu") and noises.ahead_on("cuda:1")


def test_thread_ends_where_the_consumer_leaves_or_fails(ahead):
    def consume():
        with noises.noises(100, SHAPE, generator(0), "cpu") as draws:
            next(draws)
            raise ZeroDivisionError("planted")

    with pytest.raises(ZeroDivisionError, match="planted") as raised:
        consume()
    # Although the traceback still holds the iterator.
    assert raised.traceback and not any(thread.is_alive() for thread in ahead)
    assert len(ahead) == 2


def test_the_next_draw_is_under_way_while_one_is_used():
    begun, calls = threading.Event(), []

    def draw():
        calls.append(None)
        if len(calls) == 2:
            begun.set()
        return torch.zeros(1)

    with noises.drawn_ahead(draw, 3) as draws:
        next(draws)
        assert begun.wait(timeout=30)


def test_what_a_draw_fails_with_is_raised_where_it_is_asked_for():
    results = iter([1.0, 2.0])

    def draw():
        try:
            return torch.tensor(next(results))
        except StopIteration:
            raise MemoryError("planted") from None

    used = 0
    with pytest.raises(MemoryError, match="planted"), noises.drawn_ahead(draw, 5) as draws:
        for _ in draws:
            used += 1
    assert used == 2
