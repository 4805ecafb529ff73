"""When jobs of a service are due, on clocks that jump: the wall's may go anywhere, what was done is not done again."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from blockplane.server.service.timetable import RETRY_S, At, Every, Pace
from rig.services import FakeClock

HOUR_S, DAY_S = 3600.0, 86_400.0
UTC = ZoneInfo("UTC")
NIGHTLY = At((time(3),), (), UTC)


def moment(text: str, zone: ZoneInfo = UTC) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def run_for(pace: Pace, clock: FakeClock, seconds: float, look_s: float = 60.0) -> list[float]:
    """Go on in steps as the service does; return when, by the wall's clock, the job began."""
    begun = []
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        if pace.due_in() <= 0:
            begun.append(clock.wall())
            pace.begin()
            pace.succeed()
        clock.advance(min(max(pace.due_in(), 0.001), look_s, end - clock.monotonic() + 0.001))
    return begun


def test_every_so_often_begins_at_once_and_keeps_its_pace():
    clock = FakeClock()
    began = clock.wall()
    begun = run_for(Pace(Every(600.0), clock), clock, 3000.0)
    assert [round(at - began) for at in begun] == [0, 600, 1200, 1800, 2400]


def test_every_so_often_takes_no_notice_of_the_walls_clock(rng):
    clock = FakeClock()
    pace = Pace(Every(600.0), clock)
    n_begun = 0
    for _ in range(50):
        n_begun += len(run_for(pace, clock, 600.0))
        clock.set(float(rng.integers(0, 4_000_000_000)))
    assert n_begun == 50


def test_what_is_remembered_counts_after_a_restart():
    clock = FakeClock()
    assert Pace(Every(HOUR_S), clock, clock.wall() - 600).due_in() == pytest.approx(3000)
    assert Pace(Every(HOUR_S), clock, clock.wall() - 10 * HOUR_S).due_in() <= 0
    assert Pace(Every(HOUR_S), clock, clock.wall() + DAY_S).due_in() == pytest.approx(HOUR_S)  # the clock went back
    assert Pace(Every(7 * DAY_S), clock, clock.wall() + 50 * 365 * DAY_S).due_in() == pytest.approx(DAY_S)
    assert Pace(Every(HOUR_S), clock).due_in() <= 0


def test_missed_runs_are_made_up_for_once():
    clock = FakeClock(moment("2026-03-10T12:00"))
    pace = Pace(NIGHTLY, clock, moment("2026-03-01T03:00"))
    assert run_for(pace, clock, DAY_S) == [moment("2026-03-10T12:00"), pytest.approx(moment("2026-03-11T03:00"), abs=1)]
    never = Pace(NIGHTLY, FakeClock(moment("2026-03-10T12:00")))
    assert never.due_in() == pytest.approx(15 * HOUR_S)


def test_times_of_day_on_days_of_the_week():
    rule = At((time(3), time(18, 30)), (5, 6), UTC)  # the weekend; 2026-03-11 is a Wednesday
    at = moment("2026-03-11T12:00")
    found = []
    for _ in range(5):
        at = rule.next_after(at)
        found.append(datetime.fromtimestamp(at, UTC).strftime("%m-%d %H:%M"))
    assert found == ["03-14 03:00", "03-14 18:30", "03-15 03:00", "03-15 18:30", "03-21 03:00"]
    assert rule.gap_s == 8.5 * HOUR_S
    assert str(rule) == "at 03:00, 18:30 on sat, sun"


def test_a_year_of_nights_has_one_run_a_night_whatever_the_hours_do():
    zone = ZoneInfo("Europe/Berlin")  # 02:30 is not there on 2026-03-29, and twice on 2026-10-25
    rule = At((time(2, 30),), (), zone)
    at, days = moment("2026-01-01T00:00", zone), []
    for _ in range(365):
        at = rule.next_after(at)
        days.append(datetime.fromtimestamp(at, zone).date())
    assert days == [datetime(2026, 1, 1).date() + timedelta(days=n) for n in range(365)]


def test_a_clock_set_forward_over_the_time_makes_it_due_once():
    clock = FakeClock(moment("2026-03-10T12:00"))
    pace = Pace(NIGHTLY, clock)
    assert pace.due_in() > 0
    clock.set(moment("2026-03-20T12:00"))
    assert len(run_for(pace, clock, 10 * HOUR_S)) == 1


def test_a_clock_set_back_a_little_repeats_nothing():
    clock = FakeClock(moment("2026-03-10T02:59"))
    pace = Pace(NIGHTLY, clock)
    assert len(run_for(pace, clock, 120.0)) == 1
    clock.set(moment("2026-03-10T02:59:58"))
    assert [round(at) for at in run_for(pace, clock, 30 * HOUR_S)] == [moment("2026-03-11T03:00")]


@pytest.mark.parametrize("years", [-50, -1, 1, 50])
def test_a_clock_that_was_wrong_by_years_is_waited_for_a_day_at_most(years):
    right = moment("2026-03-10T12:00")
    clock = FakeClock(right + years * 365 * DAY_S)
    pace = Pace(NIGHTLY, clock)
    run_for(pace, clock, 3 * DAY_S)
    clock.set(right)
    begun = run_for(pace, clock, 5 * DAY_S, look_s=600)
    assert 4 <= len(begun) <= 6


def test_any_jumps_at_all_leave_half_a_day_between_two_runs_of_a_day(rng):
    """Except that what a clock set forward passed over is made up for at once."""
    clock = FakeClock(moment("2026-03-10T12:00"))
    pace = Pace(NIGHTLY, clock)
    n_begun = n_forward = 0
    for _ in range(100):
        jump_s = float(rng.integers(-20, 3)) * HOUR_S
        n_forward += jump_s > 0
        clock.set(clock.wall() + jump_s)
        n_begun += len(run_for(pace, clock, 6 * HOUR_S, look_s=600))
    assert n_begun <= 100 * 6 / 12 + 1 + n_forward


def test_failures_are_tried_again_later_each_time_and_success_forgets_them():
    clock = FakeClock()
    pace = Pace(Every(DAY_S), clock)
    waits = []
    for _ in range(10):
        pace.begin()
        pace.fail()
        waits.append(pace.due_in())
        clock.advance(waits[-1])
        assert pace.due_in() <= 0
    assert waits == [30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0, 3600.0]
    pace.begin()
    pace.succeed()
    assert (pace.n_failures, pace.due_in()) == (0, DAY_S)


@pytest.mark.parametrize("rule", [Every(DAY_S), NIGHTLY])
def test_what_was_ended_early_is_due_at_once_and_then_at_its_pace(rule):
    clock = FakeClock(moment("2026-03-10T03:00"))
    pace = Pace(rule, clock, clock.wall() - 5 * DAY_S)
    pace.begin()
    pace.end_early()
    assert pace.due_in() <= 0
    pace.begin()
    pace.succeed()
    assert pace.due_in() == DAY_S


def test_a_job_that_is_worth_trying_soon_is_tried_soon_and_seldomer_each_time():
    clock = FakeClock()
    pace = Pace(Every(10.0), clock, first_retry_s=1.0)
    waits = []
    for _ in range(6):
        pace.begin()
        pace.fail()
        waits.append(pace.due_in())
        clock.advance(waits[-1])
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_job_of_every_second_that_fails_is_tried_every_half_minute():
    clock = FakeClock()
    pace = Pace(Every(1.0), clock)
    for _ in range(5):
        pace.begin()
        pace.fail()
        assert pace.due_in() == RETRY_S
        clock.advance(RETRY_S)
