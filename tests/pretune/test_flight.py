"""Single flight: one at work on a fingerprint at a time, and nobody waited for who is dead."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pretune import flight
from pretune.flight import Lease, read_lease, single_flight, write_lease
from pretune.store import LEASE, STATE, Store

KEY = "f" * 32


def waiting_raises(values: dict[str, float]) -> None:
    raise TimeoutError(f"waited: {values}")


def leased(store: Store, **changes: object) -> None:
    write_lease(store, KEY, "other", 60.0)
    lease = json.loads(store.read(f"{KEY}/{LEASE}"))
    store.write(f"{KEY}/{LEASE}", json.dumps(lease | changes).encode())


def test_who_comes_second_waits_until_the_first_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "WAIT_SECONDS", 0.02)
    store, order, at_work = Store(tmp_path), list[str](), threading.Event()

    def first() -> None:
        with single_flight(store, KEY, waiting_raises):
            at_work.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert at_work.wait(10)
    waits: list[dict[str, float]] = []
    with single_flight(store, KEY, waits.append):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert len(waits) > 1


def test_a_stop_goes_through_while_waiting(tmp_path: Path) -> None:
    store = Store(tmp_path)
    leased(store)
    with pytest.raises(TimeoutError, match=r"waited: .*waiting"), single_flight(store, KEY, waiting_raises):
        raise AssertionError


def test_who_is_asked_to_leave_waits_no_longer(tmp_path: Path) -> None:
    store = Store(tmp_path)
    leased(store)
    with (
        pytest.raises(flight.EndedWaitError, match="asked to leave while another"),
        single_flight(store, KEY, lambda values: None, lambda: True),
    ):
        raise AssertionError


def test_an_expired_lease_a_dead_holder_and_a_damaged_lease_are_not_waited_for(tmp_path: Path) -> None:
    """The process of the dead holder has ended before its number is used here."""
    store = Store(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for change in ({"until": time.time() - 1}, {"pid": ended.pid}, {"until": None}, {"pid": "x"}):
        leased(store, **change)
        with single_flight(store, KEY, waiting_raises):
            held = read_lease(store, KEY)
            assert held is not None
            assert held.holds
            assert held.owner != "other"


def test_a_holder_on_another_machine_is_believed_until_its_lease_ends() -> None:
    assert Lease("a", "another", 2**22 + 1, time.time() + 5).holds
    assert not Lease("a", "another", 1, time.time() - 5).holds


def test_a_fault_gives_the_lease_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="fault"), single_flight(store, KEY, waiting_raises):
        raise ValueError("fault")
    with single_flight(store, KEY, waiting_raises):
        pass


def test_a_lease_is_renewed_while_the_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "BEAT_SECONDS", 0.01)
    store = Store(tmp_path)
    with single_flight(store, KEY, waiting_raises) as held:
        held.attempt = store.begin(KEY)
        (held.attempt / STATE).write_bytes(b"state")  # without a bucket there is nowhere to upload it
        before = read_lease(store, KEY)
        time.sleep(0.5)
        after = read_lease(store, KEY)
    assert before is not None
    assert after is not None
    assert after.until > before.until
