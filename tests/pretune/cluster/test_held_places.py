"""Places of lost workers, with what Ray holds made up; test_tune.py asks a real Ray."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pretune.cluster import held_places
from pretune.cluster.held_places import GIVEN_BACK, LOOKS, HeldPlaces
from pretune.cluster.tune_callbacks import Watchdog
from pretune.dispatch.dispatcher import TRANSPORT, Dispatcher


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Marks that were looked for; a place is there for 7, and for 9 at the third look alone."""
    looks: list[int] = []

    def give_back(mark: int) -> bool:
        looks.append(mark)
        return looks.count(mark) == {7: 1, 9: 3}[mark]

    monkeypatch.setattr(held_places, "give_back", give_back)
    monkeypatch.setattr(held_places, "LOOK_SECONDS", 0.001)
    return looks


def test_a_lost_stage_is_looked_for_often_since_its_last_group_may_come_late(asked: list[int]) -> None:
    said: list[str] = []
    places = HeldPlaces(said.append)
    places._thread = threading.Thread()  # none of its own: looks are made here
    places.lost(7)
    for _ in range(10):
        places.look()
    places.lost(9)
    for _ in range(LOOKS):
        places.look()
    assert (asked.count(7), asked.count(9)) == (LOOKS, LOOKS)
    assert said == [GIVEN_BACK] * 2
    assert not places.left


def test_the_thread_looks_and_stops_with_the_study(asked: list[int]) -> None:
    heard = threading.Event()
    places = HeldPlaces(lambda text: heard.set())
    places.lost(9)
    assert heard.wait(60)
    thread = places._thread
    assert thread is not None
    places.stop()
    thread.join(60)
    assert not thread.is_alive()


def test_what_keeps_it_from_looking_is_said_once_and_it_goes_on(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    tries = threading.Semaphore(0)

    def fails(mark: int) -> bool:
        tries.release()
        raise RuntimeError("no head")

    monkeypatch.setattr(held_places, "give_back", fails)
    places = HeldPlaces(said.append)
    places.lost(7)
    assert all(tries.acquire(timeout=60) for _ in range(4))
    places.stop()
    assert len(said) == 1
    assert "no head" in said[0]


def test_nothing_is_started_where_nothing_was_lost() -> None:
    places = HeldPlaces(print)
    places.stop()
    assert places._thread is None


@pytest.mark.parametrize(("status", "mark", "heard"), [("ERROR", 7, [7]), ("ERROR", 0, []), ("TERMINATED", 7, []),
                                                       ("RUNNING", 7, [])])  # fmt: skip
def test_a_trial_on_several_workers_that_was_lost_is_told(status: str, mark: int, heard: list[int]) -> None:
    told: list[int] = []
    dispatcher: Any = SimpleNamespace(live={}, reap=lambda ended: None, announce=print, stopping=None, overdue=False)
    watchdog = Watchdog(cast(Dispatcher, dispatcher), told.append)
    watchdog.on_step_end(0, [SimpleNamespace(trial_id="a", status=status, config={TRANSPORT: {"mark": mark}})])
    assert told == heard
