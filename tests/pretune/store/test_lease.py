"""Single flight: one at work on a fingerprint at a time, and nobody waited for who is dead."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pretune.store import lease as flight
from pretune.store.lease import read_lease, single_flight, write_lease
from pretune.store.store import LEASE, Store
from pretune.trainables.files import STATE

KEY = "f" * 32


def waiting_raises(values: dict[str, float]) -> None:
    raise TimeoutError(f"waited: {values}")


def leased(store: Store, **changes: object) -> None:
    write_lease(store, KEY, "other")
    lease = json.loads(store.read(f"{KEY}/{LEASE}"))
    store.write(f"{KEY}/{LEASE}", json.dumps(lease | changes).encode())


def test_who_comes_second_waits_until_the_first_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "WAIT_SECONDS", 0.02)
    store, order, at_work, waited = Store(tmp_path), list[str](), threading.Event(), threading.Event()

    def first() -> None:
        with single_flight(store, KEY, waiting_raises):
            at_work.set()
            waited.wait(60)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert at_work.wait(10)
    waits: list[dict[str, float]] = []

    def wait(values: dict[str, float]) -> None:
        waits.append(values)
        if len(waits) > 1:
            waited.set()

    with single_flight(store, KEY, wait):
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
        pytest.raises(flight.EndedWaitError, match="preempted while another"),
        single_flight(store, KEY, lambda values: None, lambda: True),
    ):
        raise AssertionError


def test_a_dead_holder_and_a_lease_that_was_given_back_are_not_waited_for(tmp_path: Path) -> None:
    """The process of the dead holder has ended before its number is used here."""
    store = Store(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for change in ({"owner": ""}, {"pid": ended.pid}):
        leased(store, **change)
        with single_flight(store, KEY, waiting_raises):
            held = read_lease(store, KEY)
            assert held is not None
            assert not held.free
            assert held.owner != "other"


def cut_short(store: Store) -> None:
    """As a reader of a bucket finds it where it was renewed between the request for its size and its content's."""
    leased(store, host="another", renewed=1234.5678)
    store.write(f"{KEY}/{LEASE}", store.read(f"{KEY}/{LEASE}")[:-1])


def test_a_lease_that_was_read_in_the_middle_of_a_renewal_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "WAIT_SECONDS", 0.02)
    store = Store(tmp_path)
    cut_short(store)
    leases: list[flight.Lease | None] = []

    def wait(values: dict[str, float]) -> None:
        leases.append(read_lease(store, KEY))
        write_lease(store, KEY, "other" if len(leases) == 1 else "")  # renewed whole, then given back

    with single_flight(store, KEY, wait):
        pass
    assert [lease.owner if lease else None for lease in leases] == ["unknown", "other"]


@pytest.mark.parametrize("change", [{"renewed": None}, {"pid": "x"}, {"owner": "cut short"}])
def test_a_damaged_lease_is_waited_for_until_it_is_dead(
    tmp_path: Path, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(flight, "WAIT_SECONDS", 0.02)
    store, began = Store(tmp_path), time.monotonic()
    if change == {"owner": "cut short"}:
        cut_short(store)
    else:
        leased(store, **change)
    with single_flight(store, KEY, lambda values: None):
        held = read_lease(store, KEY)
        assert time.monotonic() - began > 0.2
    assert held is not None
    assert held.owner not in ("other", "unknown")


@pytest.mark.parametrize("skew", [-86400.0, 0.0, 86400.0])
def test_a_holder_elsewhere_is_dead_when_its_lease_does_not_change_whatever_its_clock_says(
    tmp_path: Path, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock is a day behind or ahead, and the lease was last renewed just now by it. Waiting takes 0.3 s here."""
    monkeypatch.setattr(flight, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(flight, "WAIT_SECONDS", 0.02)
    store, began = Store(tmp_path), time.monotonic()
    leased(store, host="another", renewed=time.time() + skew)
    with single_flight(store, KEY, lambda values: None):
        assert time.monotonic() - began > 0.2


@pytest.mark.parametrize("skew", [-86400.0, 86400.0])
def test_a_holder_that_renews_its_lease_is_waited_for_whatever_its_clock_says(
    tmp_path: Path, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewed for longer than what makes it dead: it is waited for all the while."""
    monkeypatch.setattr(flight, "LEASE_SECONDS", 1.2)
    monkeypatch.setattr(flight, "WAIT_SECONDS", 0.02)
    store = Store(tmp_path)
    leased(store, host="another", renewed=time.time() + skew)
    over = threading.Event()

    def renew() -> None:
        for beat in range(9):
            time.sleep(0.2)
            leased(store, host="another", renewed=time.time() + skew + beat)
        over.set()

    renewing = threading.Thread(target=renew)
    renewing.start()
    with single_flight(store, KEY, lambda values: None):
        assert over.is_set()
    renewing.join()


def test_who_waits_for_long_gives_up_its_place_for_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(flight, "WAIT_SECONDS", 0.02)
    store = Store(tmp_path)
    leased(store, host="another pid:[1]")
    with (
        pytest.raises(flight.EndedWaitError, match=r"another driver \(another\)"),
        single_flight(store, KEY, lambda values: None),
    ):
        raise AssertionError


def test_who_waits_does_so_for_long_enough_to_take_over_from_the_dead() -> None:
    assert flight.BEAT_SECONDS < flight.LEASE_SECONDS / 2
    assert flight.LEASE_SECONDS + 2 * flight.WAIT_SECONDS < flight.PATIENCE_SECONDS


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
    assert after.renewed > before.renewed
