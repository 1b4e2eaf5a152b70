"""The inbox, the streams and the sweeper: what several processes may do to one message."""

from __future__ import annotations

from tests.protections.protection import Protection

_SQL = "bss_sync/adapters/sql/"
_STREAMS, _LOAD, _WRITE = _SQL + "streams.py", _SQL + "streams_load.py", _SQL + "streams_write.py"
_WAKES = _SQL + "stream_wakes.py"
_INBOX, _UPKEEP = _SQL + "inbox.py", _SQL + "upkeep.py"
_CLAIMS = "tests/integration/test_claims.py::"
_LINE = "tests/integration/test_line_on_postgres.py::"
_RECOVERY = "tests/property/test_recovery.py::"
_AT_ONCE = _SQL + "inbox_at_once.py"
_QUICK = "tests/integration/test_inbox_at_once.py::"
_STORED = "tests/integration/test_inbox.py::"
_RACES = "tests/integration/test_races.py::"
_DOOR = "tests/integration/test_door.py::"
_FAIR = "tests/integration/test_fair_shares.py::"
_SWEEP = "tests/integration/test_sweep.py::"

STREAMS = (
    Protection(
        "fencing token of a stream",
        _LOAD,
        "streams = [row for row in there if row.token == tokens[row.id]]",
        "streams = list(there)",
        _CLAIMS + "test_of_a_batch_only_the_streams_that_are_still_ours_are_written",
    ),
    Protection(
        "a batch that was taken over is fenced",
        _STREAMS,
        "update stream s set token = s.token + 1, unfinished = s.unfinished + 1",
        "update stream s set token = s.token, unfinished = s.unfinished + 1",
        _CLAIMS + "test_a_batch_that_was_taken_over_is_fenced_whole",
    ),
    Protection(
        "who comes second to a new stream writes nothing",
        _WRITE,
        'connection.execute(_NEW, {"rows": record_set(new)}).rowcount < len(new):',
        'connection.execute(_NEW, {"rows": record_set(new)}).rowcount < 0:',
        _CLAIMS + "test_who_comes_second_to_a_new_stream_writes_nothing_of_it",
    ),
    Protection(
        "a claim that came too late is forgotten",
        _STREAMS,
        "            self._forget(claims)\n",
        "",
        _CLAIMS + "test_who_comes_second_to_a_new_stream_writes_nothing_of_it",
    ),
    Protection(
        "lease of a stream",
        _STREAMS,
        '_FREE = "(s.lease_until is null or s.lease_until < now())"',
        '_FREE = "true"',
        _CLAIMS + "test_a_stream_that_is_claimed_alone_is_nobody_elses",
    ),
    Protection(
        "lease of a batch",
        _STREAMS,
        "          and m.stream_id not in {_CLAIMED}\n",
        "",
        _CLAIMS + "test_a_leased_stream_is_nobody_elses",
    ),
    Protection(
        "one claimer of a shard at a time",
        _STREAMS,
        'connection.execute(_TURNS, {"key": TURN_KEY, "shards": [shard]})',
        "str(_TURNS)",
        _CLAIMS + "test_claimers_at_once_never_have_the_same_stream",
    ),
    Protection(
        "one claimer of little work at a time",
        _STREAMS,
        'connection.execute(_TURNS, {"key": TURN_KEY, "shards": values["shards"]})',
        "str(_TURNS)",
        _CLAIMS + "test_little_work_that_another_is_just_choosing_is_not_claimed_twice",
    ),
    Protection(
        "nobody stands back at the turn of a shard",
        _STREAMS,
        "with self._database.line(gives_way=False) as connection:",
        "with self._database.line() as connection:",
        _FAIR + "test_who_chooses_what_to_do_does_not_stand_back_while_others_wait_to_choose",
    ),
    Protection(
        "little work that is claimed is nobody else's",
        _STREAMS,
        "                      and m.stream_id not in (select id from taken)\n",
        "",
        _CLAIMS + "test_little_work_that_another_is_just_choosing_is_not_claimed_twice",
    ),
    Protection(
        "a batch without a verdict goes alone next",
        _STREAMS,
        "_give_up(connection, lost)",
        "str(lost)",
        _CLAIMS + "test_streams_whose_claim_ended_without_a_verdict_are_claimed_alone",
    ),
    Protection(
        "attempts counted at the claim",
        _STREAMS,
        "unfinished = t.unfinished + 1, solo_claims = t.solo_claims + :alone",
        "unfinished = t.unfinished, solo_claims = t.solo_claims + 0 * :alone",
        _RECOVERY + "test_work_of_a_process_that_dies_again_and_again_is_counted_set_aside_and_stops_nobody_else",
    ),
    Protection(
        "claimed alone after no verdict",
        _STREAMS,
        "return self._lease(connection, [unfinished], alone=True)",
        'return self._lease(connection, list(connection.execute(text("select id from stream")).scalars()), alone=True)',
        _CLAIMS + "test_streams_whose_claim_ended_without_a_verdict_are_claimed_alone",
    ),
    Protection(
        "process-killer after three claims alone",
        _STREAMS,
        "killer=solo_claims >= SOLO_CLAIMS_MAX",
        "killer=False",
        "tests/integration/test_killers.py"
        "::test_only_the_message_that_kills_is_quarantined_and_the_rest_of_its_entity_proceeds",
    ),
    Protection(
        "only the message that kills is quarantined",
        "bss_sync/pipeline/alone.py",
        "return self._hold(batch, left[0] if left else None, MessageState.QUARANTINED, KILLER, None)",
        "return self._hold(batch, None, MessageState.QUARANTINED, KILLER, None)",
        "tests/integration/test_killers.py"
        "::test_only_the_message_that_kills_is_quarantined_and_the_rest_of_its_entity_proceeds",
    ),
    Protection(
        "only the message that cannot be written is dead",
        "bss_sync/pipeline/alone.py",
        "turn = self._turn if self._stands_without() else None",
        "turn = None",
        "tests/integration/test_killers.py"
        "::test_only_the_messages_that_cannot_be_written_are_dead_and_the_rest_of_their_entity_proceeds",
    ),
    Protection(
        "a wake-up outlives the claim that took it along",
        _STREAMS,
        "ready_at = case when t.ready_at is not null then now() + make_interval(secs => :lease) end,",
        "ready_at = null,",
        _RECOVERY + "test_a_wake_up_that_a_dead_process_took_along_is_not_lost",
    ),
    Protection(
        "isolation of a stream that cannot be written",
        "bss_sync/pipeline/line.py",
        "return _isolate(streams, claims)",
        "raise",
        _LINE + "test_a_stream_that_cannot_be_written_is_isolated_and_the_rest_of_its_batch_is_applied",
    ),
    Protection(
        "hierarchy lock",
        _LOAD,
        'connection.execute(_HIERARCHY_LOCKS, {"ids": id_array(sorted(linking))})',
        "str(linking)",
        _RACES + "test_two_workers_at_once_never_close_a_cycle_between_them",
    ),
    Protection(
        "continuation of a hot stream",
        _WRITE,
        "again = [] if settled.partial else _unfinished(loaded, settled)",
        "again: list[UUID] = []",
        _LINE + "test_a_hot_stream_is_worked_off_in_batches_without_a_sweeper",
    ),
    Protection(
        "pending before waiting",
        _LOAD,
        "order by state <> 'pending', seq",
        "order by seq",
        _LINE + "test_of_a_crowded_stream_what_is_new_comes_before_what_waits",
    ),
    Protection(
        "one transaction",
        _WRITE,
        "_write_verdicts(connection, settled, before)",
        '_write_verdicts(connection, settled, before)\n    connection.execute(text("commit"))',
        _LINE + "test_a_stream_that_cannot_be_written_is_isolated_and_the_rest_of_its_batch_is_applied",
    ),
    Protection(
        "release of what waits, by the write",
        _WAKES,
        "wake(_WAKE_WAITING, settled.entered | settled.arrived)",
        "pass",
        _LINE + "test_the_write_itself_wakes_what_waited_for_it_without_a_sweeper",
    ),
    Protection(
        "release of what waits, in a batch",
        "bss_sync/pipeline/settle.py",
        "self._woken |= self._waiters.get(after.id, set()) | self._unlinked()",
        "self._woken |= self._unlinked()",
        "tests/acceptance/test_rules_cycles.py::test_depth_is_not_limited",
    ),
    Protection(
        "revival of dead letters",
        _WAKES,
        "    if dead:\n        connection.execute(_REVIVE,",
        "    if False:\n        connection.execute(_REVIVE,",
        "tests/acceptance/test_rules_waiting.py::test_a_dead_letter_is_revived_by_the_arrival_of_its_account",
    ),
    Protection(
        "overtaking of held messages",
        _WRITE,
        "_run(connection, _OVERTAKE, _overtaking(settled, loaded))",
        "pass",
        "tests/acceptance/test_rules_quarantine.py"
        "::test_the_next_valid_state_of_a_higher_version_supersedes_the_held_one",
    ),
    Protection(
        "what is known since of what has entered",
        _WAKES,
        "if connection.execute(_KNOWN_SINCE,",
        "if False and connection.execute(_KNOWN_SINCE,",
        _RECOVERY + "test_every_state_above_the_first_paid_one_is_history_although_staging_keeps_only_the_last",
    ),
    Protection(
        "deduplication key",
        _SQL + "inbox_rows.py",
        "from arrived a join fresh f on f.connection_id = a.connection and f.message_id = a.message_id",
        "from arrived a left join fresh f on f.connection_id = a.connection and f.message_id = a.message_id",
        _DOOR + "test_the_same_message_100_times_at_once_is_one_row_and_always_the_same_kind_of_answer",
    ),
    Protection(
        "message conflict with what is stored: 409",
        _INBOX,
        "different = {key for key, digest in digests.items() if plan.changes[key].digest != digest}",
        "different: set[Key] = set()",
        _DOOR + "test_the_same_id_with_another_body_is_409_and_recorded",
    ),
    Protection(
        "message conflict within one transaction",
        _INBOX,
        "if digest != change.digest:",
        "if False:",
        _STORED + "test_two_arrivals_of_one_call_that_contradict_each_other",
    ),
    Protection(
        "one order of keys for all",
        _INBOX,
        "for key in sorted(plan.changes)",
        "for key in plan.changes",
        _RACES + "test_keys_are_taken_in_one_order_however_an_array_has_them",
    ),
    Protection(
        "lock against an activation",
        _INBOX,
        '_SHARE_WAITING = _LOCK.format(strength="for share").encode()',
        '_SHARE_WAITING = _LOCK.format(strength="").encode()',
        _RACES + "test_what_we_asked_for_waits_for_an_activation_under_way",
    ),
    Protection(
        "lock of the door against an activation",
        _INBOX,
        '_SHARE = _LOCK.format(strength="for share skip locked").encode()',
        '_SHARE = _LOCK.format(strength="").encode()',
        _STORED + "test_a_message_is_never_parked_behind_an_activation_s_back",
    ),
    Protection(
        "a message verified before a change is verified again",
        _INBOX,
        "return arrival.revision is None or arrival.revision == sender.revision",
        "return True",
        _RACES + "test_what_was_verified_before_a_change_is_not_stored_after_it",
    ),
    Protection(
        "202 only after the commit",
        "bss_sync/adapters/group_commit.py",
        "return await self._at_once(arrivals)",
        "self._unfinished = asyncio.ensure_future(self._at_once(arrivals))  # type: ignore[attr-defined]\n"
        "            return [Accepted(len(one.changes), 0, None) for one in arrivals]",
        "tests/integration/test_door_outages.py::test_a_stopped_postgresql_is_503_and_a_started_one_202",
    ),
    Protection(
        "what fails at once is looked at closely",
        "bss_sync/adapters/group_commit.py",
        "return [None] * len(arrivals)",
        "raise",
        "tests/unit/adapters/test_group_commit.py::test_what_is_not_stored_at_once_is_looked_at_closely",
    ),
    Protection(
        "lock of the door against an activation, at once",
        _AT_ONCE,
        'strength="for share skip locked"',
        'strength=""',
        _QUICK + "test_a_connection_under_change_leaves_only_its_own_messages",
    ),
    Protection(
        "a message verified before a change is not stored at once",
        _AT_ONCE,
        "on h.id = r.connection and h.revision = r.revision",
        "on h.id = r.connection",
        _QUICK + "test_whatever_needs_a_closer_look_is_left_to_it_and_nothing_of_it_is_stored",
    ),
    Protection(
        "connection state gate: nothing is stored as ready at once",
        _AT_ONCE,
        "case when h.state in ({_PROCESSING}) then h.shard end as shard\n        from",
        "h.shard as shard\n        from",
        _QUICK + "test_a_connection_that_is_not_processing_parks",
    ),
    Protection(
        "connection state gate: nothing is stored as ready",
        _INBOX,
        '"shard": sender.shard if sender.state in PROCESSING else None}',
        '"shard": sender.shard}',
        _DOOR + "test_a_connection_that_is_not_processing_parks_its_messages",
    ),
    Protection(
        "connection state gate: nothing is claimed",
        _STREAMS,
        "where c.shard = :shard and c.state in ('shadow', 'live') and w.number > 0",
        "where c.shard = :shard and w.number > 0",
        _LINE + "test_a_paused_connection_has_no_work",
    ),
    Protection(
        "connection state gate: no little work is claimed",
        _STREAMS,
        "        where c.state in ('shadow', 'live') and w.number > 0\n    ), taken",
        "        where w.number > 0\n    ), taken",
        _LINE + "test_a_paused_connection_has_no_work",
    ),
    Protection(
        "connection state gate: nothing that was woken is claimed with little work",
        _STREAMS,
        "              and c.state in ('shadow', 'live')\n              and not exists",
        "              and not exists",
        _LINE + "test_a_paused_connection_has_no_work",
    ),
    Protection(
        "two that wait for each other do not wake each other for ever",
        "bss_sync/adapters/sql/stream_wakes.py",
        "where m.state = 'waiting')\"",
        "where m.state = 'nothing')\"",
        _LINE + "test_two_accounts_that_wait_for_each_other_do_not_wake_each_other_for_ever",
    ),
    Protection(
        "what a replay opens stays needed until it is decided",
        "bss_sync/adapters/sql/relatives.py",
        "where m.state in ('dead', 'pending')",
        "where m.state = 'dead'",
        "tests/integration/test_replay.py::"
        "test_what_waited_for_each_other_ends_as_the_dry_run_said_however_it_is_opened",
    ),
    Protection(
        "deduplication memory outlives every replay window",
        "bss_sync/domain/retention.py",
        "deduplication_days: int = 90",
        "deduplication_days: int = 80",
        _RACES + "test_a_key_of_89_days_ago_is_still_remembered",
    ),
    Protection(
        "sweeper wake-up",
        "bss_sync/pipeline/sweep.py",
        "self.wake.process(shard)",
        "str(shard)",
        "tests/integration/test_worker.py::test_work_that_nobody_was_woken_for_is_found_by_the_scheduler",
    ),
    Protection(
        "sweeper: deadlines",
        _UPKEEP,
        "connection.execute(_WAKE_DEADLINES)",
        "pass",
        _SWEEP + "test_a_message_past_its_deadline_wakes_its_stream",
    ),
    Protection(
        "sweeper: what was released while nobody looked",
        _UPKEEP,
        "return connection.execute(_WAKE_RELEASED).rowcount",
        "return 0",
        _SWEEP + "test_a_child_whose_parent_is_mirrored_by_now_is_woken",
    ),
    Protection(
        "sweeper: parking",
        _UPKEEP,
        "return int(connection.execute(_SETTLE_PARKING).scalar_one())",
        "return 0",
        _SWEEP + "test_messages_are_parked_and_released_with_their_connection",
    ),
    Protection(
        "one scheduler acts at a time",
        _UPKEEP,
        "or pg_try_advisory_lock(:key)",
        "or true",
        "tests/integration/test_worker.py::test_only_one_scheduler_acts_and_the_next_takes_over",
    ),
    Protection(
        "fair shares of a batch",
        _STREAMS,
        "if taken[place - 1] < shares[place - 1]:",
        "if True:",
        "tests/integration/test_fair_shares.py::test_two_floods_share_by_priority",
    ),
    Protection(
        "a daemon hears a signal that another thread was given",
        "bss_sync/runner.py",
        "while not stopped.wait(SIGNAL_SECONDS):",
        "while not stopped.wait():",
        "tests/integration/test_early_end.py::test_a_daemon_ends_whichever_of_its_threads_was_given_the_signal",
    ),
)
