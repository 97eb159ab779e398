"""Places of lost workers, with what Ray says of them made up; test_tune.py asks a real Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pretune.cluster import held_places
from pretune.cluster.held_places import GIVEN_BACK, UNKNOWN, HeldPlaces
from pretune.cluster.tune_callbacks import Watchdog
from pretune.dispatch.dispatcher import Dispatcher

Looks = list[dict[str, bool] | Exception]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> tuple[Looks, list[str]]:
    """What Ray says, look by look, the last for ever; and which groups are removed."""
    answers: Looks = []
    removed: list[str] = []

    def asked() -> dict[str, bool]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {group: placed for group, placed in answer.items() if group not in removed}

    monkeypatch.setattr(held_places, "groups_without_actors", asked)
    monkeypatch.setattr(held_places, "give_back", removed.append)
    monkeypatch.setattr(held_places, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(held_places, "MORE_LOOKS", 5)
    return answers, removed


def test_a_place_goes_back_once_three_looks_in_a_row_find_it_empty(looks: tuple[Looks, list[str]]) -> None:
    answers, removed = looks
    answers += [{"a": True, "b": False}, {"a": True, "b": True}, {"b": True}, {"a": True, "b": True}, {"a": True}, {}]
    said: list[str] = []
    places = HeldPlaces(said.append)
    so_far = []
    for _ in range(6):
        places.look()
        so_far.append(list(removed))
    assert so_far == [[], [], [], ["b"], ["b"], ["b"]]  # "a" was filled for a while, "b" had to wait for its place
    assert said == [GIVEN_BACK]


def watched(places: HeldPlaces) -> None:
    places.lost()
    assert places._thread is not None
    places._thread.join(60)
    assert not places._thread.is_alive()


def test_a_loss_is_followed_until_no_group_is_empty(looks: tuple[Looks, list[str]]) -> None:
    answers, removed = looks
    answers += [{"late": False}] * 40 + [{"late": True}] * 3 + [{}]
    said: list[str] = []
    places = HeldPlaces(said.append)
    watched(places)
    assert removed == ["late"]
    assert said == [GIVEN_BACK]
    answers[:] = [{"again": True}]
    watched(places)  # a second loss: a thread of its own
    assert removed == ["late", "again"]


@pytest.mark.parametrize("error", ["a server that is gone", "several Rays"])
def test_a_dashboard_that_does_not_answer_is_said_once(error: str, looks: tuple[Looks, list[str]]) -> None:
    from ray.util.state.exception import ServerUnavailable

    answers, removed = looks
    answers += [ServerUnavailable(error) if "server" in error else ConnectionError(error)]
    said: list[str] = []
    watched(HeldPlaces(said.append))
    assert said == [UNKNOWN]
    assert not removed


def test_an_error_between_two_looks_begins_the_count_anew(looks: tuple[Looks, list[str]]) -> None:
    answers, removed = looks
    answers += [{"a": True}, {"a": True}, ConnectionError(), {"a": True}, {"a": True}, {}]
    said: list[str] = []
    watched(HeldPlaces(said.append))
    assert not removed
    assert not said


def test_it_stops_with_the_study(looks: tuple[Looks, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    answers, _ = looks
    answers += [{}]
    monkeypatch.setattr(held_places, "LOOK_SECONDS", 600)
    places = HeldPlaces(print)
    places.stop()  # nothing was lost
    places = HeldPlaces(print)
    places.lost()
    ended = threading.Thread(target=places.stop)
    ended.start()
    ended.join(60)
    assert not ended.is_alive()


@pytest.mark.parametrize(("status", "losses"), [("ERROR", 1), ("TERMINATED", 0), ("RUNNING", 0)])
def test_a_trial_that_was_lost_is_told(status: str, losses: int) -> None:
    heard: list[bool] = []
    nothing: Callable[..., None] = lambda *ignored: None  # noqa: E731
    dispatcher: Any = SimpleNamespace(live={}, reap=nothing, announce=print, stopping=None, overdue=False)
    watchdog = Watchdog(cast(Dispatcher, dispatcher), lambda: heard.append(True))
    watchdog.on_step_end(0, [SimpleNamespace(trial_id="a", status=status)])
    assert len(heard) == losses
