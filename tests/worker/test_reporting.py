"""What a job's owner hears of its steps."""

from __future__ import annotations

import itertools

from app.training.progress import Report
from app.worker.reporting import Reporter


def reporter() -> Reporter:
    ticks = itertools.count(0, 5)
    return Reporter(0.003, clock=lambda: float(next(ticks)))


def test_steps_become_metrics_with_speed_and_time_left() -> None:
    found = reporter()
    found.step(Report(1, 4, 2.0, 0.1, tokens=50))
    found.step(Report(2, 4, 1.5, 0.1, validation_loss=1.25, tokens=50))
    first, second = found.take()
    assert first.type == second.type == "metrics"
    assert second.message == "Step 2/4: training loss 1.500, validation loss 1.250"
    assert second.data is not None
    assert (second.data["step"], second.data["total_steps"]) == (2, 4)
    assert (second.data["train_loss"], second.data["valid_loss"]) == (1.5, 1.25)
    assert second.data["tokens_per_second"] > 0
    assert second.data["seconds_left"] > 0
    assert found.trained_tokens == 100
    assert not found.take()


def test_a_long_run_has_about_a_hundred_events() -> None:
    found = reporter()
    for step in range(1, 2001):
        found.step(Report(step, 2000, 2.0 - step / 2000, 0.1))
    assert 90 <= len(found.take()) <= 110


def test_a_loss_that_does_not_fall_is_warned_about_once() -> None:
    found = reporter()
    for step in range(1, 101):
        found.step(Report(step, 100, 3.0 + (step % 2) / 10, 0.1))
    (warning,) = [event for event in found.take() if event.level == "warn"]
    assert "has not fallen" in warning.message
    assert "0.003" in warning.message


def test_a_loss_that_falls_is_not_warned_about() -> None:
    found = reporter()
    for step in range(1, 101):
        found.step(Report(step, 100, 3.0 - step / 100, 0.1))
    assert all(event.level == "info" for event in found.take())


def test_events_that_could_not_be_told_stay_in_order() -> None:
    found = reporter()
    found.say("one")
    taken = found.take()
    found.say("two")
    found.put_back(taken)
    assert [event.message for event in found.take()] == ["one", "two"]
