"""The examples in the OpenAPI document: one reseller's customer and its subscription (domain.md section 2)."""

from __future__ import annotations

from typing import Any

_LOCKED = {"owner": "Cloud Resell", "locked": True}
_OWN = {"owner": "Cloud", "locked": False}
_MOMENT = "2026-03-02T10:15:01Z"
_ID = "0d9cc8c1-4f8b-5c0e-9a53-2f6f1f0f9a11"
_CONNECTION_ID = "7b0a1f3e-6c55-4a58-9a1f-0c8a9b7d1e22"
_PLACE: dict[str, Any] = {
    "bill_to": "Cloud Resell",
    "orphaned": False,
    "effective_at": "2026-03-01T00:00:00Z",
    "updated_at": _MOMENT,
    "deleted_at": None,
    "ended_at": None,
    "ended_reason": None,
}
ACCOUNT: dict[str, Any] = {
    "id": _ID,
    "connection": "cloud-resell",
    "connection_id": _CONNECTION_ID,
    "source_id": "cust-x",
    "version": 3,
    "name": "Cloud Customer X",
    "number": "C-1001",
    "email": "it@customer-x.example",
    "kind": "customer",
    "parent_id": "lite-1",
    "notes": None,
    "tags": ["key account"],
    "responsible_user": "mara",
    "ownership": {"name": _LOCKED, "notes": _OWN},
    "parent_record": "f7a8e6d0-52b7-5ed3-8f29-0f3f5d7f7c01",
    **_PLACE,
}
SUBSCRIPTION: dict[str, Any] = {
    "id": "4f2e9c2a-9d0f-5b64-8f8e-5d2f6a7b8c33",
    "connection": "cloud-resell",
    "connection_id": _CONNECTION_ID,
    "source_id": "sub-4711",
    "version": 7,
    "name": "Cloud Customer X - Microsoft 365 Business Premium",
    "account_id": "cust-x",
    "parent_id": None,
    "product": "M365-BUS-PREM",
    "status": "active",
    "source_status": "active",
    "trial": False,
    "start_date": "2026-01-01",
    "end_date": "2026-12-31",
    "activation_date": "2026-01-01",
    "cancellation_date": None,
    "auto_renew": True,
    "billing_cycle": "P1M",
    "term": "P1Y",
    "quantity": 25,
    "characteristics": {"domain": "customer-x.example"},
    "price": {"amount": "9.90", "currency": "EUR"},
    "bill_to_contact": None,
    "custom_fields": {},
    "notes": None,
    "ownership": {"quantity": _LOCKED, "price": _OWN},
    "account_record": _ID,
    "parent_record": None,
    **_PLACE,
}
TREE: dict[str, Any] = {
    "tree": [
        {
            "kind": "tenant",
            "id": "a6b1f2c3-0d4e-4f5a-8b6c-7d8e9f0a1b2c",
            "name": "Cloud Resell",
            "accounts": [
                {
                    "kind": "customer",
                    "id": _ID,
                    "name": "Cloud Customer X",
                    "source_id": "cust-x",
                    "orphaned": False,
                    "accounts": [],
                    "subscriptions": [],
                }
            ],
            "subscriptions": [],
        }
    ]
}
CHANGE: dict[str, Any] = {
    "version": 7,
    "effective_at": "2026-03-01T00:00:00Z",
    "recorded_at": _MOMENT,
    "late": False,
    "deleted": False,
    "ended_reason": None,
    "message": {"id": "c9f1e2d3-1a2b-4c3d-8e4f-5a6b7c8d9e0f", "message_id": "m-2"},
    "changes": {"quantity": {"from": 20, "to": 25}},
}
EXPLANATION: dict[str, Any] = {
    "id": SUBSCRIPTION["id"],
    "kind": "subscription",
    "connection": "cloud-resell",
    "source_id": "sub-4711",
    "version": 7,
    "fields": [
        {
            "field": "quantity",
            **_LOCKED,
            "value": 25,
            "written_by": {
                "message": CHANGE["message"],
                "version": 7,
                "effective_at": "2026-03-01T00:00:00Z",
                "recorded_at": _MOMENT,
                "value": 25,
            },
            "taken_over": None,
            "refused": [{"at": _MOMENT, "actor": "token:mara", "value": "30"}],
            "lock_violations": [],
        }
    ],
    "refused_operations": [{"at": _MOMENT, "actor": "token:mara", "operation": "cancel"}],
}
CONTACT: dict[str, Any] = {
    "id": "2f1e0d9c-8b7a-4695-8473-625140392817",
    "account_id": _ID,
    "name": "Ada Example",
    "email": "ada@customer-x.example",
    "phone": None,
    "created_by": "token:mara",
    "created_at": _MOMENT,
    "updated_at": _MOMENT,
}
ACTIVITY: dict[str, Any] = {
    "id": "3a2b1c0d-9e8f-4071-8263-544536271809",
    "account_id": _ID,
    "kind": "task",
    "subject": "Talk about renewal",
    "body": None,
    "due_at": "2026-11-30T22:59:59.999999Z",
    "created_by": "token:mara",
    "created_at": _MOMENT,
    "updated_at": _MOMENT,
}
MESSAGE: dict[str, Any] = {
    "id": "c9f1e2d3-1a2b-4c3d-8e4f-5a6b7c8d9e0f",
    "message_id": "m-2",
    "connection": "cloud-resell",
    "connection_id": _CONNECTION_ID,
    "kind": "subscription",
    "source_id": "sub-4711",
    "record_id": SUBSCRIPTION["id"],
    "action": "state",
    "origin": "door",
    "version": 7,
    "state": "applied",
    "verdict": "applied",
    "reason": None,
    "attempts": 1,
    "sent_at": "2026-03-02T10:15:00Z",
    "effective_at": "2026-03-01T00:00:00Z",
    "received_at": "2026-03-02T10:15:00.412Z",
    "decided_at": _MOMENT,
    "applied_at": _MOMENT,
}
CONNECTION: dict[str, Any] = {
    "id": _CONNECTION_ID,
    "name": "cloud-resell",
    "tenant": "cloud-resell",
    "display_name": "Cloud Resell",
    "connector": "webhook",
    "state": "live",
    "order": "sequence",
    "created_at": _MOMENT,
    "updated_at": _MOMENT,
    "closed_on": None,
    "health": {"last_received_at": _MOMENT, "pending": 0, "waiting": 0, "quarantined": 0, "dead": 0, "open_gaps": 0},
    "priority": 5,
}
RUN: dict[str, Any] = {
    "id": "5e4d3c2b-1a09-4f8e-9d7c-6b5a49382716",
    "connection": "cloud-resell",
    "connection_id": _CONNECTION_ID,
    "kind": "reconcile",
    "state": "stopped",
    "options": {},
    "progress": {"compared": 1200},
    "result": {},
    "requested_by": "cli:mara",
    "created_at": _MOMENT,
    "updated_at": _MOMENT,
    "finished_at": None,
}
DRIFT: dict[str, Any] = {
    "id": "6f5e4d3c-2b1a-4098-8e7d-6c5b4a392817",
    "connection": "cloud-resell",
    "connection_id": _CONNECTION_ID,
    "record_id": SUBSCRIPTION["id"],
    "kind": "subscription",
    "source_id": "sub-4711",
    "place": "target",
    "problem": "lock_violation",
    "field": "quantity",
    "expected": "25",
    "found": "30",
    "changed_by": "someone",
    "changed_at": _MOMENT,
    "action": "repaired",
    "run_id": None,
    "found_at": _MOMENT,
    "settled_at": _MOMENT,
}
AUDIT: dict[str, Any] = {
    "chain_id": _CONNECTION_ID,
    "seq": 12,
    "at": _MOMENT,
    "connection": "cloud-resell",
    "actor": "token:mara",
    "action": "field.refused",
    "kind": "subscription",
    "record_id": SUBSCRIPTION["id"],
    "message": None,
    "detail": {"fields": {"quantity": "30"}, "owner": "Cloud Resell"},
    "erased": False,
    "hash": "9f2c…",
}
TOKEN: dict[str, Any] = {
    "id": "8a7b6c5d-4e3f-4201-9f8e-7d6c5b4a3928",
    "name": "mara",
    "role": "operator",
    "tenant": None,
    "connection": None,
    "created_at": _MOMENT,
    "revoked_at": None,
}
