"""Fair shares, budgets and fences of what is asked; and the start of a daemon."""

from __future__ import annotations

from tests.protections.protection import Protection

_FETCHES, _DELIVERIES = "bss_sync/adapters/sql/fetches.py", "bss_sync/adapters/sql/deliveries.py"
_BREAKERS = "tests/integration/test_breakers.py::"

FAIRNESS = (
    Protection(
        "retry budget",
        "bss_sync/domain/breaker.py",
        "credit=breaker.credit + allowance(calls) - allowance(breaker.calls) - spent,",
        "credit=breaker.credit + allowance(calls) - allowance(breaker.calls),",
        "tests/integration/test_breakers.py"
        "::test_retries_stay_below_a_tenth_of_the_calls_of_a_target_that_fails_now_and_then",
    ),
    Protection(
        "retries are taken out of the budget before they are made",
        "bss_sync/domain/breaker.py",
        "return replace(breaker, credit=breaker.credit - taken, credit_at=now), taken",
        "return replace(breaker, credit=breaker.credit, credit_at=now), taken",
        "tests/integration/test_breakers.py::test_two_workers_never_spend_the_same_retries",
    ),
    Protection(
        "fencing token of a poll",
        _FETCHES,
        "where id = :connection and poll_lease_until = :token returning poll_lease_until",
        "where id = :connection and :token is not null returning poll_lease_until",
        "tests/integration/test_poll.py::test_a_poller_whose_lease_was_taken_over_sets_no_cursor_back",
    ),
    Protection(
        "fetches take their retries with their claim",
        _FETCHES,
        "affordable = reserve(connection, remote, len(failed)) if failed else 0",
        "affordable = len(failed)",
        _BREAKERS + "test_two_workers_never_fetch_on_the_same_retries",
    ),
    Protection(
        "a breaker that closes gives no new budget",
        "bss_sync/domain/breaker.py",
        "failures=0, failed=0, openings=0, opened_at=None, open_until=None, probe_until=None)",
        "failures=0, window_at=None, openings=0, opened_at=None, open_until=None, probe_until=None)",
        "tests/unit/domain/test_breaker.py::test_a_remote_that_comes_and_goes_gets_no_new_budget_each_time",
    ),
    Protection(
        "what a killed worker left behind waits for no budget",
        _DELIVERIES,
        "or d.last_error is null)",
        "or d.attempts = 0)",
        _BREAKERS + "test_what_a_killed_worker_left_behind_is_no_retry",
    ),
    Protection(
        "a flood at the door is known",
        "bss_sync/adapters/floods.py",
        "least = max(FLOOD_MESSAGES, FLOOD_RATIO * min(numbers.values()))",
        "least = float('inf')",
        "tests/unit/adapters/test_floods.py::test_one_who_sends_much_beside_one_who_sends_little_floods",
    ),
    Protection(
        "a flood at the door is known by its first messages",
        "bss_sync/adapters/floods.py",
        "(SUDDEN_SECONDS if self._sudden else LOOK_SECONDS)",
        "LOOK_SECONDS",
        "tests/unit/adapters/test_floods.py::test_a_flood_is_known_by_its_first_messages",
    ),
    Protection(
        "what was woken of a flood shares no transaction with little work",
        "bss_sync/adapters/sql/streams.py",
        "and not exists (select from party p where p.id = s.connection_id and p.number > :light)",
        "",
        "tests/integration/test_fair_shares.py::test_what_was_woken_of_a_flood_shares_no_transaction_with_little_work",
    ),
    Protection(
        "batches of floods take turns on a machine",
        "bss_sync/jobs/courtesy.py",
        "with self.lane.entered(LANE_SECONDS_MAX):",
        "if True:",
        "tests/unit/jobs/test_courtesy.py::test_batches_of_floods_take_turns_on_a_machine_whatever_process_they_are_in",
    ),
    Protection(
        "a backlog beside others is worked off in short batches",
        "bss_sync/jobs/work.py",
        "limit = POLITE_STREAMS if polite else line.BATCH_STREAMS",
        "limit = line.BATCH_STREAMS",
        "tests/integration/test_fair_shares.py::test_beside_a_neighbour_a_backlog_is_worked_off_in_short_batches",
    ),
    Protection(
        "a backlog stands back while little work is under way",
        "bss_sync/jobs/courtesy.py",
        "if until is None or not self._going_first:",
        "if True:",
        "tests/unit/jobs/test_courtesy.py::test_who_stands_back_waits_for_the_little_work_of_another_thread",
    ),
    Protection(
        "a daemon listens from its first moment",
        "bss_sync/cli/main.py",
        "import bss_sync.cli.early",
        "import bss_sync.cli",
        "tests/integration/test_early_end.py::test_a_daemon_that_is_told_to_end_while_it_starts_ends_with_0",
    ),
)
