"""Deliveries, sources, reconciliation and replay: what a call that is lost, late or repeated may do."""

from __future__ import annotations

from tests.protections.protection import Protection

_SQL = "bss_sync/adapters/sql/"
_DELIVER, _DELIVERIES, _DRIFT = "bss_sync/pipeline/deliver.py", _SQL + "deliveries.py", "bss_sync/pipeline/drift.py"
_GATHER, _FETCHES, _BREAKER = "bss_sync/pipeline/gather.py", _SQL + "fetches.py", "bss_sync/domain/breaker.py"
_REPLAYS, _SOURCE = _SQL + "replays.py", "bss_sync/pipeline/reconcile_source.py"
_SENT = "tests/integration/test_delivery.py::"
_RECOVERY = "tests/property/test_recovery.py::"
_FETCH = "tests/integration/test_fetch.py::"
_POLL = "tests/integration/test_poll.py::"
_RECONCILE = "tests/integration/test_reconcile.py::"
_ODD_SOURCES = "tests/integration/test_odd_sources.py::"
_ODD_TARGETS = "tests/integration/test_odd_targets.py::"
_RACES = "tests/integration/test_races.py::"
_REPLAY = "tests/integration/test_replay.py::"

REMOTES = (
    Protection(
        "look-up before create",
        _DELIVER,
        "found = target.client.look_up(claimed.kind, reference)",
        "found = None",
        _SENT + "test_a_binding_that_was_lost_with_a_backup_is_found_again",
    ),
    Protection(
        "a lost create is sent again word for word",
        _DELIVER,
        "if stored is not None and (claimed.external_id is None or stored.fields == desired.fields):",
        "if False:",
        _RACES + "test_a_create_whose_end_is_unknown_is_sent_again_word_for_word",
    ),
    Protection(
        "intent before call",
        _DELIVER,
        "ours = self.store.write_intents(intents) if intents else frozenset()",
        "ours = frozenset(one.record_id for one, _intent in intents)",
        _RACES + "test_whose_lease_was_taken_over_calls_nobody",
    ),
    Protection(
        "fencing token of an intent",
        _DELIVERIES,
        "where d.record_id = r.id and d.token = r.token and d.lease_until > now() returning d.record_id",
        "where d.record_id = r.id returning d.record_id",
        _RECOVERY + "test_an_old_process_cannot_unsettle_what_a_new_one_has_delivered",
    ),
    Protection(
        "fencing token of a confirmation",
        _DELIVERIES,
        "where d.record_id = r.id and d.token = r.token and d.state <> 'dead' returning d.record_id",
        "where d.record_id = r.id and d.state <> 'dead' returning d.record_id",
        _SENT + "test_a_holder_whose_lease_was_taken_over_cannot_confirm",
    ),
    Protection(
        "fencing token of a failure",
        _DELIVERIES,
        "forget_intent boolean, forget_binding boolean, counted boolean)\n"
        "       where d.record_id = r.id and d.token = r.token returning d.record_id",
        "forget_intent boolean, forget_binding boolean, counted boolean)\n"
        "       where d.record_id = r.id returning d.record_id",
        _RECOVERY + "test_an_old_process_cannot_unsettle_what_a_new_one_has_delivered",
    ),
    Protection(
        "lease of a delivery",
        _DELIVERIES,
        '_IS_DUE = "d.due_at <= now() and (d.lease_until is null or d.lease_until <= now())"',
        '_IS_DUE = "(d.due_at <= now() or d.lease_until > now())"',
        _RACES + "test_a_delivery_that_is_under_way_is_nobody_elses",
    ),
    Protection(
        "parent and account first",
        _DELIVERIES,
        "ready = [row for row in due if row.record_id in desired and not desired[row.record_id][1]]\n"
        "        blocked = [row.record_id for row in due if row.record_id in desired and desired[row.record_id][1]]",
        "ready = [row for row in due if row.record_id in desired]\n        blocked: list[UUID] = []",
        _SENT + "test_a_subscription_arrives_below_its_account_and_that_below_its_parent",
    ),
    Protection(
        "a block that meets a confirmation",
        _DELIVERIES,
        "order by record_id for share skip locked",
        "order by record_id",
        _SENT + "test_an_account_that_is_confirmed_while_its_subscription_is_being_blocked_holds_nothing_up",
    ),
    Protection(
        "one order of rows for all settlements",
        _DELIVERIES,
        'order by kind, record_id for update"""',
        'order by kind, record_id"""',
        _SENT + "test_two_settlements_that_rename_each_others_accounts_do_not_wait_for_each_other",
    ),
    Protection(
        "a change during a delivery is delivered afterwards",
        _DELIVERIES,
        "due_at = case when d.desired_revision > r.revision or d.due_at is distinct from d.lease_until then now() end,",
        "due_at = null,",
        _SENT + "test_a_change_during_a_delivery_is_delivered_afterwards",
    ),
    Protection(
        "nothing is delivered in shadow",
        _SQL + "mirror_rows.py",
        "join connection c on c.id = w.connection_id and c.state = 'live'",
        "join connection c on c.id = w.connection_id",
        _SENT + "test_nothing_is_delivered_for_a_connection_in_shadow",
    ),
    Protection(
        "no call begins late in its lease",
        "bss_sync/pipeline/deliver.py",
        "if target.gate.wait_seconds() > 0 or time.monotonic() >= times.begin_until:",
        "if target.gate.wait_seconds() > 0:",
        _SENT + "test_no_call_is_begun_when_half_of_its_lease_has_gone",
    ),
    Protection(
        "nothing of a call arrives late",
        "bss_sync/adapters/http_connections.py",
        "_forget_when_closed(self.sock, on=True)",
        "pass",
        "tests/integration/test_hosts.py::test_what_a_cut_link_held_back_never_arrives_once_the_call_is_over",
    ),
    Protection(
        "a call is over before its lease",
        "bss_sync/pipeline/deliver.py",
        "end_by=times.end_by",
        "end_by=None",
        "tests/integration/test_locks.py::test_a_call_to_the_target_is_over_before_its_lease",
    ),
    Protection(
        "one order of rows for deliveries and the mirror",
        _DELIVERIES,
        "any(:own) order by kind, record_id for update",
        "any(:own) order by record_id for update",
        "tests/integration/test_locks.py::test_an_intent_waits_for_the_account_before_it_locks_the_subscription",
    ),
    Protection(
        "a decision keeps nobody from writing about a stream",
        _SQL + "streams_load.py",
        'STREAM + " order by id for no key update"',
        'STREAM + " order by id for update"',
        "tests/integration/test_locks.py::test_a_settlement_does_not_wait_for_whoever_decides_its_streams",
    ),
    Protection(
        "echo recognition",
        _DRIFT,
        "return any(known is not None and matches(found, known) for known in (binding.confirmed, binding.intent))",
        "return False",
        "tests/unit/pipeline/test_drift.py::test_what_was_only_intended_is_an_echo_too",
    ),
    Protection(
        "no judgement while a delivery is under way",
        _DRIFT,
        "if record is not None and not bindings[key].busy and (violation := violated(bindings[key], record))",
        "if record is not None and (violation := violated(bindings[key], record))",
        _RACES + "test_an_edit_that_meets_a_delivery_is_judged_afterwards",
    ),
    Protection(
        "breaker",
        _BREAKER,
        "if state is BreakerState.CLOSED and not (wish or outcome.denied or _is_too_much(counted)):",
        "if state is BreakerState.CLOSED:",
        "tests/integration/test_breakers.py::test_plain_failures_in_a_row_open_it_and_the_audit_says_so_once",
    ),
    Protection(
        "one tries whether a remote is back",
        _SQL + "breakers.py",
        "where owner_id = :owner_id and open_until <= now() and (probe_until is null or probe_until <= now())",
        "where owner_id = :owner_id and open_until <= now()",
        "tests/integration/test_breakers.py::test_when_its_time_has_come_one_worker_makes_one_call",
    ),
    Protection(
        "who tries is done before another may",
        "bss_sync/adapters/guarded_http.py",
        "return tried if own is None else min(own, tried)",
        "return own",
        "tests/integration/test_breakers.py::test_whoever_dies_while_trying_is_succeeded_and_who_lives_is_done_by_then",
    ),
    Protection(
        "a date to wait until is meant by the remote's clock",
        "bss_sync/adapters/http.py",
        'return _http_date(response.headers["date"])',
        "return datetime.now(UTC)",
        "tests/integration/test_http_client.py::test_a_date_to_wait_until_is_meant_by_the_remotes_clock",
    ),
    Protection(
        "fencing token of a fetch",
        _FETCHES,
        "where stream_id = :stream and token = :token\n                     for update",
        "where stream_id = :stream\n                     for update",
        _FETCH + "test_a_fetcher_whose_lease_was_taken_over_settles_nothing",
    ),
    Protection(
        "a wish that comes during a fetch",
        _FETCHES,
        "where f.stream_id = mine.stream_id and mine.asked = :asked)",
        "where f.stream_id = mine.stream_id and :asked >= 0)",
        _FETCH + "test_a_wish_that_comes_during_a_fetch_is_fetched_again",
    ),
    Protection(
        "poll cursor written after accept",
        _GATHER,
        "anew = anew or page.anew",
        "anew = anew or page.anew\n            lease.advance(page.cursor)",
        _RACES + "test_a_poll_that_dies_before_the_inbox_has_its_page_reads_that_page_again",
    ),
    Protection(
        "nothing is polled in pause",
        _FETCHES,
        "is not null as lost from connection c where c.state in ('shadow', 'live')",
        "is not null as lost from connection c where true",
        _POLL + "test_a_connection_that_is_paused_is_not_polled",
    ),
    Protection(
        "nothing is ended when a listing breaks off",
        "bss_sync/pipeline/reconcile.py",
        "return  # it broke off",
        "pass  # it broke off",
        _RECONCILE + "test_a_listing_that_breaks_off_ends_nothing",
    ),
    Protection(
        "blast-radius guard, runs",
        _SOURCE,
        "self._result.stopped = self._exceeds(self._result.ends) and",
        "self._result.stopped = False and",
        _RECONCILE + "test_mass_ends_stop_at_the_guard_and_go_on_with_an_admins_yes",
    ),
    Protection(
        "absent records are asked for before they end",
        _SOURCE,
        "if asks and not too_many:",
        "if False:",
        _RACES + "test_what_a_listing_forgot_is_asked_for_and_lives_on",
    ),
    Protection(
        "who is absent and cannot be asked for is named",
        _SOURCE,
        "self._result.add([replace(_extra(held), cause=Cause.UNVERIFIED)])",
        "pass",
        _ODD_SOURCES + "test_who_is_absent_and_cannot_be_asked_for_is_named_unverified_and_nothing_is_called_level",
    ),
    Protection(
        "a listing that leads in circles is left",
        "bss_sync/pipeline/read_pages.py",
        "if page.cursor is None or circle.closes(page.cursor) or empty > EMPTY_PAGES_MAX:",
        "if page.cursor is None:",
        "tests/unit/pipeline/test_read_pages.py::test_pages_that_do_not_lead_on_are_left_with_words",
    ),
    Protection(
        "a source that refuses cannot be listed",
        "bss_sync/pipeline/reconcile.py",
        '    except BssSyncError as error:\n        result.source_error = f"{error.slug}',
        '    except CannotFetch as error:\n        result.source_error = f"{error.slug}',
        _ODD_SOURCES + "test_a_source_that_refuses_its_listing_cannot_be_listed_and_the_target_is_compared",
    ),
    Protection(
        "an answer that cannot be read is unknown",
        _DELIVER,
        "except (RemoteUnreadable, InvalidMessage) as error:",
        "except RemoteUnknown as error:",
        _ODD_TARGETS + "test_a_create_whose_answer_cannot_be_read_is_unknown_and_looked_up",
    ),
    Protection(
        "denied credentials are no record's",
        "bss_sync/adapters/http.py",
        "if status in DENIED:",
        "if False:",
        _ODD_TARGETS + "test_denied_credentials_open_the_breaker_at_once_and_leave_every_record_pending",
    ),
    Protection(
        "one run to decide on",
        "bss_sync/pipeline/reconcile.py",
        "if waiting is not None:",
        "if False:",
        _ODD_SOURCES + "test_a_second_comparison_over_the_same_ends_names_the_run_that_waits",
    ),
    Protection(
        "closing guard",
        _SQL + "admin/closing.py",
        'state = "stopped" if _guarded(source.settings, accounts + subscriptions) else "approved"',
        'state = "approved"',
        "tests/integration/test_admin_closing.py::test_closing_many_waits_for_an_admin_and_a_later_day_waits_for_that_day",
    ),
    Protection(
        "closing fences what is under way",
        _SQL + "admin/closing.py",
        "connection.execute(_FENCE, scope)",
        "pass",
        _RACES + "test_work_that_is_under_way_writes_nothing_into_a_closed_connection",
    ),
    Protection(
        "closing stops what is new and under way",
        _SQL + "streams_load.py",
        "new = {key: row for key, row in new.items() if row.connection_id in processing}",
        "assert processing is not None",
        _RACES + "test_work_that_is_under_way_writes_nothing_into_a_closed_connection",
    ),
    Protection(
        "closing waits for what is new and being written",
        _SQL + "admin/closing.py",
        "connection.execute(_FENCE_NEW, scope)",
        "pass",
        _RACES + "test_a_closing_waits_for_what_is_being_written_of_a_new_stream",
    ),
    Protection(
        "a replay opens only what is not decided",
        _REPLAYS,
        "from connection c where c.id = m.connection_id and m.id = any(:ids)\n"
        "         and m.state not in ('applied', 'superseded', 'pending')",
        "from connection c where c.id = m.connection_id and m.id = any(:ids)",
        _RACES + "test_what_is_decided_while_a_replay_runs_is_not_opened_again",
    ),
    Protection(
        "a replay outlives its process",
        "bss_sync/pipeline/replay.py",
        "due = self.store.due()",
        "due = None",
        _REPLAY + "test_a_replay_that_is_killed_at_half_goes_on_in_a_worker_as_the_dry_run_said",
    ),
    Protection(
        "row-level security is forced",
        "migrations/versions/2026_11_21_0001_first_schema.py",
        "enable row level security, force row level security",
        "enable row level security",
        "tests/integration/test_row_level_security.py::test_every_table_of_tenants_forces_row_level_security",
    ),
    Protection(
        "row-level security: its own rows",
        "migrations/versions/2026_11_21_0001_first_schema.py",
        "using ({REACH}) with check ({REACH})",
        "using (true) with check (true)",
        "tests/integration/test_row_level_security.py::test_a_tenant_sees_its_own_rows_in_every_table",
    ),
    Protection(
        "the audit can only be appended to",
        "migrations/versions/2026_11_21_0001_first_schema.py",
        'op.execute("revoke update, delete on audit from bss_sync_engine, bss_sync_api, bss_sync_door")',
        "pass",
        "tests/integration/test_row_level_security.py::test_the_audit_can_only_be_appended_to",
    ),
    Protection(
        "audit chain",
        "bss_sync/domain/audit.py",
        "return hashlib.sha256(previous + ",
        "return hashlib.sha256(",
        "tests/unit/domain/test_audit.py::test_a_link_that_was_exchanged_is_found",
    ),
    Protection(
        "audit digest of a detail",
        "bss_sync/domain/audit.py",
        "if item.seq not in erased and detail_digest(item.salt, item.entry.detail) != item.digest:",
        "if False:",
        "tests/unit/domain/test_audit.py::test_a_detail_that_was_changed_is_found",
    ),
    Protection(
        "API: one answer per Idempotency-Key",
        _SQL + "editing.py",
        "if done.rowcount == 1:",
        "if True:",
        "tests/integration/test_api_edits.py::test_the_same_key_at_once_creates_once",
    ),
    Protection(
        "API: a key belongs to one request",
        _SQL + "editing.py",
        "if bytes(row.request_digest) != once.digest:",
        "if False:",
        "tests/integration/test_api_edits.py::test_an_idempotency_key_creates_once",
    ),
    Protection(
        "five minutes either way",
        "bss_sync/pipeline/verify.py",
        "if abs(offset_seconds) > tolerance_seconds:",
        "if False:",
        "tests/integration/test_door.py::test_a_sender_more_than_five_minutes_off_is_401",
    ),
)
