"""The rules of order, scope and history: pure, so a test of the rules notices each."""

from __future__ import annotations

from tests.protections.protection import Protection

_DELETION = "tests/acceptance/test_rules_deletion.py::"
_ORDER = "tests/acceptance/test_rules_order.py::"
_SCOPE = "tests/acceptance/test_rules_scope.py::"
_WAITING = "tests/acceptance/test_rules_waiting.py::"
_CYCLES = "tests/acceptance/test_rules_cycles.py::"
_HISTORY = "tests/acceptance/test_rules_history.py::"
_QUARANTINE = "tests/acceptance/test_rules_quarantine.py::"
_UNIT = "tests/unit/pipeline/test_line.py::"
_MERGE, _SEQUENCE = "bss_sync/pipeline/merge.py", "bss_sync/pipeline/sequence.py"
_PRESENT, _PLACE, _LINE = "bss_sync/pipeline/present.py", "bss_sync/pipeline/scope.py", "bss_sync/pipeline/settle.py"

ORDER = (
    Protection(
        "tombstone",
        _PRESENT,
        "after = replace(entity, position=position, mirrored=mirrored, versions=entity.versions | {version}, staged=N",
        "after = replace(entity, position=replace(position, version=None), mirrored=mirrored, "
        "versions=entity.versions | {version}, staged=N",
        _DELETION + "test_a_late_update_cannot_resurrect_a_deleted_entity",
    ),
    Protection(
        "version rank",
        _SEQUENCE,
        "return Rank.NEWER if message.version > position.version else Rank.LATE",
        "return Rank.NEWER",
        _ORDER + "test_a_late_lower_version_is_superseded_and_never_changes_the_present",
    ),
    Protection(
        "version conflict",
        _SEQUENCE,
        "return Rank.CONFLICT",
        "return Rank.SAME",
        _ORDER + "test_equal_sequence_with_other_content_is_held_as_version_conflict",
    ),
    Protection(
        "digest equality",
        _SEQUENCE,
        "same_content = digest == position.digest",
        "same_content = False",
        _ORDER + "test_equal_version_and_equal_content_is_superseded",
    ),
    Protection(
        "tie of equal timestamps",
        _SEQUENCE,
        "return Rank.NEWER if _wins_tie(position, message) else Rank.SAME",
        "return Rank.NEWER",
        _ORDER + "test_at_an_equal_timestamp_the_greater_envelope_timestamp_wins",
    ),
    Protection(
        "last word of an answer to our question",
        _SEQUENCE,
        "if message.origin in AUTHORITATIVE:",
        "if False:",
        _ORDER + "test_a_version_conflict_is_fetched_and_the_sources_answer_decides_it",
    ),
    Protection(
        "order of observed states",
        _SEQUENCE,
        "overtaken = position.seq is not None and message.seq < position.seq",
        "overtaken = False",
        _ORDER + "test_an_observation_that_waited_never_undoes_a_later_one",
    ),
    Protection(
        "epoch rule",
        _SEQUENCE,
        "if position.epoch_at is not None and message.received_at < position.epoch_at:",
        "if False:",
        "tests/unit/pipeline/test_sequence_rank.py::test_what_was_received_before_the_source_was_accepted_anew_is_former",
    ),
    Protection(
        "gap",
        _SEQUENCE,
        "return (first, last, missing) if missing > 0 else None",
        "return None",
        _ORDER + "test_versions_that_were_jumped_over_are_recorded_as_a_gap",
    ),
    Protection(
        "fetch of a gap",
        _MERGE,
        'fetch = fetch_of(entity, "gap") if rules.can_fetch and message.origin != "fetch" else None',
        "fetch = None",
        _ORDER + "test_a_fetch_is_scheduled_for_a_gap_where_the_connector_can",
    ),
    Protection(
        "late history insert",
        _MERGE,
        'return Decision(after, (verdict_on(message, MessageState.SUPERSEDED, "late"),), (row,))',
        'return Decision(after, (verdict_on(message, MessageState.SUPERSEDED, "late"),), ())',
        _HISTORY + "test_a_quantity_held_for_a_week_is_in_history_also_when_its_message_came_late",
    ),
    Protection(
        "a late version once in history",
        _MERGE,
        'return superseded(entity, message, "late_known")',
        "pass",
        _HISTORY + "test_a_late_state_whose_version_is_in_history_is_not_inserted_again",
    ),
    Protection(
        "cycle check",
        _PLACE,
        "if world.closes_cycle(entity.id, parent_id):",
        "if False:",
        _CYCLES + "test_a_parent_that_would_close_a_cycle_waits_and_nothing_is_linked_meanwhile",
    ),
    Protection(
        "cycle check of links made later",
        _PLACE,
        "return not world.closes_cycle(entity.id, parent)",
        "return True",
        _CYCLES + "test_add_ons_that_name_each_other_never_close_a_cycle_when_one_enters_late",
    ),
    Protection(
        "release of what a cycle holds",
        _LINE,
        "self._woken |= self._cycle_waiters | self._unlinked()",
        "self._woken |= self._unlinked()",
        _CYCLES + "test_a_swap_in_one_request_is_applied",
    ),
    Protection(
        "waiting room: account",
        _PLACE,
        "if world.relative(account_id).standing is not Standing.MIRRORED:",
        "if False:",
        _WAITING + "test_a_subscription_waits_for_its_account_and_is_released_by_its_arrival",
    ),
    Protection(
        "waiting room: parent",
        _PLACE,
        "return None if known_is_enough else Obstacle(WaitReason.PARENT, entity.kind, parent, parent_id)",
        "return None",
        _WAITING + "test_an_account_waits_for_its_parent_and_is_released_by_its_arrival",
    ),
    Protection(
        "fetch before a dead letter",
        _PLACE,
        "if asked or not rules.can_fetch:",
        "if True:",
        _WAITING + "test_past_the_deadline_the_parent_is_fetched_and_only_then_it_is_a_dead_letter",
    ),
    Protection(
        "scope of what has not entered",
        _MERGE,
        "reason = None if bound else why_not_in_scope(entity, content, message, world)",
        "reason = None",
        _SCOPE + "test_a_subscription_for_a_foreign_product_is_recorded_as_out_of_scope_with_the_reason",
    ),
    Protection(
        "a trial stays out",
        "bss_sync/domain/product.py",
        "if trial:",
        "if False:",
        _SCOPE + "test_a_trial_is_not_copied",
    ),
    Protection(
        "what has entered stays bound",
        _MERGE,
        "bound = entity.mirrored is not None or entity.position.version in entity.versions",
        "bound = False",
        _SCOPE + "test_an_account_keeps_following_after_its_last_subscription_has_ended",
    ),
    Protection(
        "accounts follow their first paid subscription",
        _PLACE,
        'return None if rules.accounts_at_once or world.is_needed(entity.id) else "no_paid_subscription"',
        "return None",
        _SCOPE + "test_an_account_without_a_paid_subscription_is_not_copied",
    ),
    Protection(
        "left scope",
        _MERGE,
        "elif entity.mirrored is not None and is_foreign(entity.kind, message, rules):",
        "elif False:",
        _SCOPE + "test_a_change_to_a_foreign_product_ends_the_mirror_with_left_scope",
    ),
    Protection(
        "staging",
        _PRESENT,
        "after = replace(entity, position=position, staged=message, staged_end=None)",
        "after = replace(entity, position=position)",
        _SCOPE + "test_a_product_that_is_added_later_lets_in_what_was_staged_in_its_latest_state",
    ),
    Protection(
        "quarantine",
        "bss_sync/pipeline/translate.py",
        "if not accepts(mapped):",
        "if False:",
        _QUARANTINE + "test_an_unknown_value_is_quarantined_and_released_by_its_mapping",
    ),
    Protection(
        "isolation of a poisoned message",
        _LINE,
        "decision = Decision(entity, (_dead(message, error),))",
        "raise error",
        _QUARANTINE + "test_the_valid_state_after_a_poisoned_one_is_applied_also_when_they_came_together",
    ),
    Protection(
        "isolation of an entity",
        _LINE,
        'desk.bury(entity_id, _named(error), "".join(traceback.format_exception(error)))',
        "raise",
        _UNIT + "test_a_defect_met_by_one_entity_stops_no_other",
    ),
    Protection(
        "what a batch passed over is not forgotten",
        _LINE,
        "self._passed[entity_id] = [message for message in passed if not _is_since(message, since)]",
        "self._passed[entity_id] = []",
        _UNIT + "test_a_state_between_an_entry_and_one_that_waited_in_the_same_batch_is_history",
    ),
    Protection(
        "what is decided anew may show more to be history",
        _LINE,
        "while (since := self.settled.known_since().get(entity_id, math.inf)) < lowest:",
        "if (since := self.settled.known_since().get(entity_id, math.inf)) < lowest:",
        _UNIT + "test_a_state_between_an_end_and_an_entry_that_are_decided_anew_in_the_same_batch_is_history",
    ),
    Protection(
        "what waits once it is decided anew is open again",
        _LINE,
        "opened = (*entity.open, *_with_verdicts((message,), (verdict,)))",
        "opened = entity.open",
        _UNIT + "test_what_waits_once_it_is_decided_anew_is_released_in_the_same_batch",
    ),
    Protection(
        "a dry run tells what is overtaken",
        "bss_sync/pipeline/line.py",
        "return streams.rehearse(message_ids, _with_overtaken)",
        "return streams.rehearse(message_ids, settle)",
        _UNIT + "test_a_dry_run_tells_of_what_is_held_and_overtaken_in_the_same_batch",
    ),
    Protection(
        "a chained message that passed us is refused",
        _MERGE,
        "if rules.instance_id in message.passed:",
        "if False:",
        "tests/unit/pipeline/test_loops.py::test_what_passed_us_is_dead_and_moves_nothing",
    ),
    Protection(
        "takeover overlay",
        "bss_sync/adapters/sql/mirror_rows.py",
        "case when taken is null then source else source || taken end as shown",
        "source as shown",
        "tests/acceptance/test_rules_takeover.py::test_a_taken_field_does_not_follow_its_source_while_the_others_do",
    ),
    Protection(
        "blast-radius guard, live messages",
        _LINE,
        "if guard is not None and not guard.admits(counts.get(of, 0) + 1):",
        "if False:",
        "tests/integration/test_guard.py::test_what_would_end_in_bulk_is_held_and_everything_else_goes_on",
    ),
)
