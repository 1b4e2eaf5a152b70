"""A connector's settings, from what a person typed to what its JSON Schema describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bss_sync.domain.change import OrderKind
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.ports.connector import ConnectorSpec


def validate_settings(spec: ConnectorSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of the connection with its value, defaults included. InvalidRequest names each wrong one.

    A text that its setting refuses is tried as JSON, so that the command line can give lists, objects and null.
    """
    try:
        return spec.config.model_validate(dict(given)).model_dump(mode="json")
    except ValidationError as error:
        refused = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
    read = {name: _as_json(value) if name in refused else value for name, value in given.items()}
    try:
        return spec.config.model_validate(read).model_dump(mode="json")
    except ValidationError as error:
        problems = tuple(_problem(spec, problem) for problem in error.errors(include_url=False, include_input=False))
    words = "; ".join(f"{problem.field}: {problem.detail}" for problem in problems)
    raise InvalidRequest(
        f"Settings of the connector {spec.name}: {words}.",
        fields=problems,
        next_step=f"Correct them; bss-sync connector show {spec.name} lists every setting.",
    )


def _as_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _problem(spec: ConnectorSpec, problem: Mapping[str, Any]) -> FieldProblem:
    name = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "extra_forbidden":
        return FieldProblem(name, f"no such setting; known: {', '.join(spec.config.model_fields)}")
    if problem["type"] == "missing":
        description = spec.config.model_fields[name].description
        return FieldProblem(name, f"is needed ({description})" if description else "is needed")
    words = str(problem["msg"]).removeprefix("Value error, ")
    return FieldProblem(name, words[:1].lower() + words[1:])


def declared_order(spec: ConnectorSpec, settings: Mapping[str, Any]) -> OrderKind | None:
    """How the source orders its versions: a setting of the connection, else the connector's; None: as it turns out."""
    chosen = settings.get("order")
    return OrderKind(chosen) if chosen else spec.capabilities.order


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings for the audit, whose details hold no fractions: ``name=value`` in JSON's spelling."""
    return [f"{name}={json.dumps(value, sort_keys=True)}" for name, value in sorted(settings.items())]
