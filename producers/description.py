"""What `/openapi.json` says beside what the routes' signatures say: bodies, answers and examples of every door.

Rules: the doors read bodies as bytes, since numbers must stay exact and keys unique, so no signature tells their shape;
it is told here, in the words of JSON Schema 2020-12, and a test sends every example and compares every answer with it.
Each refusal is `Problem`, GraphQL's is GraphQL's. Examples are those of the documents that the dialects come from.
"""

from collections.abc import Mapping
from typing import Any, Final

from litestar.openapi.plugins import JsonRenderPlugin

from pipeline.catalog_input import BURST_MAX, EVENTS_PER_S_MAX, OVERLAP_S, OVERLAP_S_MAX
from producers.cloud_events import BATCH, STRUCTURED
from producers.problems import MEDIA_TYPE, AnyRequest
from producers.segment import NOT_METERED

Schema = dict[str, Any]

_JSON: Final = "application/json"
_METHODS: Final = frozenset({"get", "post", "put", "patch", "delete"})


class DescribedJson(JsonRenderPlugin):
    """Renders the document with the doors' bodies and answers in it."""

    def render(self, request: AnyRequest, openapi_schema: dict[str, Any]) -> bytes:
        """The document as JSON."""
        return super().render(request, described(openapi_schema))


def described(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with schemas, bodies, answers and examples added. The one given stays as it is."""
    components = dict(document.get("components", {}))
    components["schemas"] = {**components.get("schemas", {}), **SCHEMAS}
    paths = {
        path: {
            method: _operation(path, method, operation) if method in _METHODS else operation
            for method, operation in item.items()
        }
        for path, item in sorted(document["paths"].items())  # addresses of one handler come as a set
    }
    return {**document, "components": components, "paths": paths}


# ------------------------------------------------------------------------------------------------ private


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Mapping[str, Schema], required: tuple[str, ...] = (), *, closed: bool = False) -> Schema:
    schema: Schema = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    if closed:
        schema["additionalProperties"] = False
    return schema


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": 10_000}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_ID: Final[Schema] = {"type": "string", "minLength": 1, "maxLength": 256}
_TEXT: Final[Schema] = {"type": "string"}
_FLAG: Final[Schema] = {"type": "boolean"}
_WHOLE: Final[Schema] = {"type": "integer"}
_ANY_OBJECT: Final[Schema] = {"type": "object"}
_NULL: Final[Schema] = {"type": "null"}
_INSTANT: Final[Schema] = {
    "type": "string",
    "format": "date-time",
    "description": "RFC 3339 with an offset, 1970 to 2100, at most a day ahead",
}
_VALUE: Final[Schema] = {
    "type": "number",
    "default": 1,
    "description": "Exact: at most 29 digits before the point and 9 after it; negative gives back",
}
_DATA: Final[Schema] = {"type": "object", "description": "Any keys, 64 KiB at most; declared dimensions are aggregated"}
_MILLISECONDS: Final[Schema] = {
    "anyOf": [{"type": "integer", "description": "milliseconds since 1970"}, _INSTANT],
    "description": "Default: the time of arrival",
}

_TRACK: Final = {
    "customer_id": _ID,
    "feature_id": _ID,
    "event_name": _ID,
    "value": _VALUE,
    "properties": _DATA,
    "idempotency_key": {**_ID, "description": "With it the event counts once for ever"},
    "timestamp": _MILLISECONDS,
    "entity_id": _ID,
    "overage_behavior": {"enum": ["cap", "overflow"]},
    "async": _FLAG,
    "customer_data": _object({"name": _nullable(_TEXT), "email": _nullable(_TEXT), "metadata": _ANY_OBJECT}),
}
_ONE_NAME: Final = {"oneOf": [{"required": ["feature_id"]}, {"required": ["event_name"]}]}
_ALLOWED: Final = {
    "allowed": _FLAG,
    "code": _TEXT,
    "customer_id": _TEXT,
    "feature_id": _TEXT,
    "balance": _NULL,
    "usage": _NULL,
    "included_usage": _NULL,
    "unlimited": _FLAG,
    "overage_allowed": _FLAG,
    "next_reset_at": _NULL,
}
_RECORDED: Final = {
    "message": _TEXT,
    "event_id": _TEXT,
    "customer_id": _TEXT,
    "feature_id": _TEXT,
    "event_name": _TEXT,
    "id": _TEXT,
    "code": _TEXT,
}
_RECORDED_ALWAYS: Final = ("message", "event_id", "customer_id", "id", "code")
_CUSTOMER: Final = {
    "id": _TEXT,
    "name": _nullable(_TEXT),
    "email": _nullable(_TEXT),
    "created_at": _WHOLE,
    "env": {"enum": ["live", "sandbox"]},
    "metadata": _ANY_OBJECT,
    "balances": _ANY_OBJECT,
}
_DEFINITIONS: Final = {
    "features": "Feature",
    "dimensions": "Dimension",
    "customers": "Customer",
    "keys": "ApiKey",
}

SCHEMAS: Final[dict[str, Schema]] = {
    "FieldError": _object({"field": _TEXT, "code": _TEXT, "message": _TEXT}, ("field", "code", "message"), closed=True),
    "Problem": {
        **_object(
            {
                "type": _TEXT,
                "title": _TEXT,
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
                "code": {**_TEXT, "description": "Stable, for programs"},
                "detail": {**_TEXT, "description": "For people: what is wrong and what to do"},
                "errors": {"type": "array", "items": _ref("FieldError")},
            },
            ("type", "title", "status", "code", "detail"),
        ),
        "description": "RFC 9457. Autumn's and Segment's addresses add `message`.",
    },
    "Event": _object(
        {
            "clientId": {**_ID, "description": "The customer"},
            "timestamp": _INSTANT,
            "transactionId": {**_ID, "description": "With it the event counts once for ever within the account"},
            "eventName": _ID,
            "featureId": _ID,
            "value": _VALUE,
            "kind": {"const": "delta"},
            "entityId": {**_ID, "description": "A part of the customer: seat, workspace, project"},
            "data": _DATA,
        },
        ("clientId", "timestamp"),
        closed=True,
    )
    | {"not": {"required": ["eventName", "featureId"]}},
    "Verdict": _object(
        {
            "index": _WHOLE,
            "status": {"enum": ["received", "rejected", "unconfirmed"]},
            "transactionId": _TEXT,
            "errors": {"type": "array", "items": _ref("FieldError")},
        },
        ("index", "status"),
        closed=True,
    ),
    "Verdicts": _object(
        {
            "accepted": _WHOLE,
            "rejected": _WHOLE,
            "events": {"type": "array", "items": _ref("Verdict")},
            "status": {**_TEXT, "description": "Of one event that was sent by itself"},
            "transactionId": _TEXT,
        },
        ("accepted", "rejected", "events"),
        closed=True,
    ),
    "CloudEvent": _object(
        {
            "specversion": {"const": "1.0"},
            "id": _ID,
            "source": {"type": "string", "minLength": 1},
            "type": {**_ID, "description": "The event name"},
            "subject": {**_ID, "description": "The customer"},
            "time": {**_INSTANT, "description": "Default: the time of arrival"},
            "datacontenttype": _TEXT,
            "data": _DATA,
            "data_base64": _TEXT,
        },
        ("specversion", "id", "source", "type", "subject"),
    ),
    "AutumnEvent": _object(_TRACK, ("customer_id",), closed=True) | _ONE_NAME,
    "AutumnRecorded": _object(_RECORDED, _RECORDED_ALWAYS, closed=True),
    "AutumnTracked": _object(
        {**_RECORDED, "value": {"type": "number"}, "balance": _NULL, "entity_id": _TEXT},
        (*_RECORDED_ALWAYS, "value", "balance"),
        closed=True,
    ),
    "AutumnBatchTracked": _object(
        {"success": {"const": True}, "event_ids": {"type": "array", "items": _TEXT}},
        ("success", "event_ids"),
        closed=True,
    ),
    "AutumnCheck": _object(
        {
            "customer_id": _ID,
            "feature_id": _ID,
            "required_balance": {**_VALUE, "description": "What the use would take"},
            "send_event": {**_FLAG, "description": "Record the use as well; the key needs `ingest` too"},
            "entity_id": _ID,
            "properties": _DATA,
            "with_preview": _FLAG,
            "customer_data": _TRACK["customer_data"],
        },
        ("customer_id", "feature_id"),
        closed=True,
    ),
    "AutumnAllowed": _object(_ALLOWED, tuple(_ALLOWED), closed=True),
    "AutumnChecked": _object(
        {**_ALLOWED, "entity_id": _nullable(_TEXT), "required_balance": {"type": "number"}, "flag": _NULL},
        (*_ALLOWED, "entity_id", "required_balance", "flag"),
        closed=True,
    ),
    "AutumnUsage": _object({"customer_id": _ID, "feature_id": _ID, "value": {"type": "number"}}),
    "AutumnCustomer": _object(_CUSTOMER, tuple(_CUSTOMER)),
    "AutumnFeature": _object(
        {
            "id": _TEXT,
            "name": _TEXT,
            "type": {"enum": ["boolean", "metered"]},
            "consumable": _FLAG,
            "archived": _FLAG,
            "event_names": {"type": "array", "items": _TEXT},
        },
        ("id", "name", "type", "consumable", "archived", "event_names"),
        closed=True,
    ),
    "SegmentTrack": _object(
        {
            "userId": {**_ID, "description": "The customer"},
            "event": {**_ID, "description": "The event name"},
            "messageId": {**_ID, "description": "With it the event counts once for ever"},
            "timestamp": _INSTANT,
            "properties": _DATA,
            "type": _TEXT,
        },
        ("userId", "event"),
    ),
    "SegmentBatch": _object({"batch": _list(_ANY_OBJECT)}, ("batch",)),
    "Success": _object({"success": {"const": True}}, ("success",), closed=True),
    "GraphqlRequest": _object(
        {"query": {"type": "string", "minLength": 1}, "variables": _ANY_OBJECT, "operationName": _TEXT}, ("query",)
    ),
    "GraphqlAnswer": _object(
        {
            "data": _nullable(_ANY_OBJECT),
            "errors": {
                "type": "array",
                "minItems": 1,
                "items": _object(
                    {"message": _TEXT, "extensions": _object({"code": _TEXT}, ("code",))}, ("message", "extensions")
                ),
            },
        },
        ("data",),
        closed=True,
    ),
    "Feature": _object(
        {"id": _TEXT, "name": _TEXT, "type": {"enum": ["BINARY", "CONSUMABLE"]}, "rev": _WHOLE}, ("id", "type", "rev")
    ),
    "Dimension": _object({"key": _TEXT, "type": {"enum": ["string", "number"]}, "rev": _WHOLE}, ("key", "type", "rev")),
    "Customer": _object({"id": _TEXT, "name": _TEXT, "email": _TEXT, "created": _INSTANT}, ("id", "created")),
    "ApiKey": _object(
        {
            "id": _TEXT,
            "account": _TEXT,
            "mode": _TEXT,
            "scopes": {"type": "array", "items": _TEXT},
            "secret": {**_TEXT, "description": "Of a key that was just made; it cannot be had again"},
            "revoked": _nullable(_INSTANT),
            "expires": {**_nullable(_INSTANT), "description": "Of a key that was rotated: until when it is good"},
            "last_used": {
                **_nullable(_INSTANT),
                "description": "To the minute, null: never; left out while that cannot be told",
            },
            "events_per_s": {**_nullable(_WHOLE), "description": "Limit in each process of the API; 0: none"},
            "burst": _nullable(_WHOLE),
        },
        ("id", "account", "mode", "scopes"),
    ),
    "NewFeature": _object(
        {
            "id": _ID,
            "name": _TEXT,
            "type": {"enum": ["BINARY", "CONSUMABLE"]},
            "event_names": {"type": "array", "items": _ID},
            "aggregation": {"enum": ["sum", "count", "max", "min", "latest", "unique", "average"]},
        },
        ("id",),
    ),
    "NewDimension": _object({"key": _ID, "type": {"enum": ["string", "number"]}}, ("key", "type")),
    "NewCustomer": _object({"id": _ID, "name": _TEXT, "email": _TEXT, "metadata": _ANY_OBJECT}, ("id",)),
    "NewApiKey": _object(
        {
            "name": _TEXT,
            "scopes": {"type": "array", "minItems": 1, "items": {"enum": ["ingest", "read", "admin"]}},
            "mode": {"enum": ["live", "test"]},
            "events_per_s": {
                "type": "integer",
                "minimum": 0,
                "maximum": EVENTS_PER_S_MAX,
                "description": "Limit in each process of the API; 0: none; not given: the default",
            },
            "burst": {
                "type": "integer",
                "minimum": 1,
                "maximum": BURST_MAX,
                "description": "Events at once above that, beside `events_per_s`; not given: ten seconds of it",
            },
        },
        ("scopes",),
    ),
    "Rotation": _object(
        {
            "overlap_s": {
                "type": "integer",
                "minimum": 0,
                "maximum": OVERLAP_S_MAX,
                "default": OVERLAP_S,
                "description": "How long the old key stays good",
            }
        },
        closed=True,
    ),
}

_KABLE_ONE: Final = {
    "clientId": "client-1",
    "timestamp": "2026-11-01T12:00:00Z",
    "transactionId": "8d1b6c8e-6c1f-4d0e-9a3e-2f1d2c3b4a5f",
    "data": {"region": "eu", "bytes": 12},
}
_CLOUD_EVENT: Final = {
    "specversion": "1.0",
    "id": "1",
    "source": "my-app",
    "type": "prompt",
    "subject": "customer-1",
    "time": "2026-11-01T12:00:00Z",
    "data": {"tokens": 100, "model": "gpt-4o"},
}
_BY_FEATURE: Final = {"customer_id": "user-123", "feature_id": "ai-messages", "value": 1}
_BY_NAME: Final = {"customer_id": "user-123", "value": 1, "event_name": "blog_post_generation"}
_CHECK: Final = {"customer_id": "user-123", "feature_id": "ai-messages"}
_SET: Final = {"customer_id": "user-123", "feature_id": "seats", "value": 3}
_SEGMENT: Final = {
    "userId": "user-123",
    "event": "blog_post_generation",
    "messageId": "m-1",
    "properties": {"words": 900},
}
_MUTATION: Final = {
    "query": "mutation createUsageEvent($input: CreateUsageEventInput!) {\n  createUsageEvent(input: $input)\n}",
    "variables": {"input": {"userId": "124", "featureId": "api-calls", "delta": 1}},
}

Examples = Mapping[str, object]


def _content(schema: Schema, examples: Examples) -> Schema:
    return {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}


_KABLE: Final = {
    _JSON: _content(
        {"anyOf": [_ref("Event"), _list(_ref("Event")), _ref("CloudEvent"), _list(_ref("CloudEvent"))]},
        {"one event": _KABLE_ONE, "a list": [_KABLE_ONE], "OpenMeter's client": [_CLOUD_EVENT]},
    ),
    STRUCTURED: _content(_ref("CloudEvent"), {"structured": _CLOUD_EVENT}),
    BATCH: _content(_list(_ref("CloudEvent")), {"batch": [_CLOUD_EVENT]}),
}
_AUTUMN_TRACK: Final = {_JSON: _content(_ref("AutumnEvent"), {"by feature": _BY_FEATURE, "by event name": _BY_NAME})}
_AUTUMN_CHECK: Final = {_JSON: _content(_ref("AutumnCheck"), {"check": _CHECK})}
_AUTUMN_SET: Final = {_JSON: _content(_ref("AutumnUsage"), {"seats": _SET})}
_SEGMENT_BATCH: Final = {_JSON: _content(_ref("SegmentBatch"), {"batch": {"batch": [{"type": "track", **_SEGMENT}]}})}
_ANY: Final = {_JSON: {"schema": _ANY_OBJECT}}
_BODIES: Final[dict[str, dict[str, Schema]]] = {
    "/api/v1/events": _KABLE,
    "/api/v1/events/create": _KABLE,
    "/v1/events/batch": {
        _JSON: _content(_list(_ref("Event")), {"a list": [_KABLE_ONE]}),
        "application/x-ndjson": {"schema": {"type": "string", "description": "One event a line"}},
    },
    "/v1/events": _AUTUMN_TRACK,
    "/v1/track": _AUTUMN_TRACK,
    "/v1/balances.track": _AUTUMN_TRACK,
    "/v1/balances.batch_track": {_JSON: _content(_list(_ref("AutumnEvent")), {"two": [_BY_FEATURE, _BY_NAME]})},
    "/v1/check": _AUTUMN_CHECK,
    "/v1/balances.check": _AUTUMN_CHECK,
    "/v1/usage": _AUTUMN_SET,
    "/v1/balances.update": _AUTUMN_SET,
    "/v1/customers/{customer_id}/balances": _ANY,
    "/v1/customers": {
        _JSON: _content(_object({"id": _ID, "name": _TEXT, "email": _TEXT}, ("id",)), {"one": {"id": "user-123"}})
    },
    "/v1/customers.get_or_create": {
        _JSON: _content(
            _object({"customer_id": _ID, "name": _TEXT, "email": _TEXT}, ("customer_id",)),
            {"one": {"customer_id": "u"}},
        )
    },
    "/v1/customers.get": {_JSON: {"schema": _object({"customer_id": _ID}, ("customer_id",))}},
    "/v1/features.list": _ANY,
    "/v1/features.get": {
        _JSON: _content(_object({"feature_id": _ID}, ("feature_id",)), {"one": {"feature_id": "seats"}})
    },
    "/graphql": {_JSON: _content(_ref("GraphqlRequest"), {"createUsageEvent": _MUTATION})},
    "/segment/v1/track": {_JSON: _content(_ref("SegmentTrack"), {"track": _SEGMENT})},
    "/segment/v1/batch": _SEGMENT_BATCH,
    "/segment/v1/import": _SEGMENT_BATCH,
    **{f"/segment/v1/{call}": _ANY for call in NOT_METERED},
    "/v1/catalog/keys/{key_id}/rotate": {_JSON: {"schema": _ref("Rotation")}},
    **{f"/v1/catalog/{section}": {_JSON: {"schema": _ref(f"New{name}")}} for section, name in _DEFINITIONS.items()},
}
_OWN_ANSWERS: Final = {("/v1/events", "get"), ("/v1/events/batch", "get")}  # as their handlers describe them
_ANSWERS: Final[dict[str, Schema]] = {
    "/api/v1/events": _ref("Verdicts"),
    "/api/v1/events/create": _ref("Verdicts"),
    "/v1/events/batch": _ref("Verdicts"),
    "/v1/events": _ref("AutumnRecorded"),
    "/v1/track": _ref("AutumnRecorded"),
    "/v1/balances.track": _ref("AutumnTracked"),
    "/v1/balances.batch_track": _ref("AutumnBatchTracked"),
    "/v1/check": _ref("AutumnAllowed"),
    "/v1/balances.check": _ref("AutumnChecked"),
    "/v1/customers": _ref("AutumnCustomer"),
    "/v1/customers.get": _ref("AutumnCustomer"),
    "/v1/customers.get_or_create": _ref("AutumnCustomer"),
    "/v1/customers/{customer_id}": _ref("AutumnCustomer"),
    "/v1/features.get": _ref("AutumnFeature"),
    "/v1/features.list": _object({"list": {"type": "array", "items": _ref("AutumnFeature")}}, ("list",), closed=True),
    "/graphql": _ref("GraphqlAnswer"),
    "/readyz": _object(
        {"status": _TEXT, "checks": {"type": "array", "items": _TEXT}}, ("status", "checks"), closed=True
    ),
    **{f"/segment/v1/{call}": _ref("Success") for call in ("track", "batch", "import", *NOT_METERED)},
}
_NEVER: Final = ("/v1/balances.update", "/v1/customers/{customer_id}/balances")  # refused until it is built
_KEYED: Final = (
    "/api/v1/events",
    "/api/v1/events/create",
    "/v1/events",
    "/v1/track",
    "/v1/balances.track",
    "/v1/balances.batch_track",
    "/segment/v1/track",
    "/graphql",
)
_KEY_HEADER: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The id of an event that has none in its body",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[A-Za-z0-9._-]+$"},
}
_PUBLIC: Final = ("/livez", "/readyz")


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    """One operation with its body, answers and security."""
    found = dict(operation)
    found["operationId"] = f"{method}{''.join(part.title() for part in path.replace('.', '_').split('/'))}".replace(
        "{", ""
    ).replace("}", "")
    if method in ("post", "put", "patch"):
        content = _BODIES.get(path) or _ANY
        found["requestBody"] = {"required": True, "content": content}
    if path in _KEYED:
        found["parameters"] = [*found.get("parameters", []), _KEY_HEADER]
    if path in _PUBLIC:
        found["security"] = []
    found["responses"] = _responses(path, method, operation["responses"])
    return found


def _responses(path: str, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the signature says of success, in the described shape, and the refusal that is the same for all."""
    refused: Schema = {
        "description": "Refused, or not possible now; 429 and 503 carry Retry-After",
        "content": {MEDIA_TYPE: {"schema": _ref("Problem")}},
    }
    if path == "/graphql":
        refused["content"] = {_JSON: {"schema": _ref("GraphqlAnswer")}}
    if path in _NEVER or (path, method) == ("/v1/usage", "post"):
        return {"default": refused}
    # the framework tells 400 of every operation, in a shape of its own
    answers = {status: answer for status, answer in given.items() if status != "400"}
    schema = _ANSWERS.get(path) if (path, method) not in _OWN_ANSWERS else None
    schema = schema or _of_catalog(path, method)
    if schema is not None:
        answers = {s: {**answer, "content": {_JSON: {"schema": schema}}} for s, answer in answers.items()}
    if path.startswith("/api/v1/events"):
        answers["204"] = {"description": "Every CloudEvent was received"}
    return {**answers, "default": refused}


def _of_catalog(path: str, method: str) -> Schema | None:
    """The answer of an address of the catalog: a page of a list, or one object."""
    section = path.removeprefix("/v1/catalog/").partition("/")[0]
    if not path.startswith("/v1/catalog/") or section not in _DEFINITIONS:
        return None
    one = _ref(_DEFINITIONS[section])
    if method == "get" and "{" not in path:
        return _object(
            {"items": {"type": "array", "items": one}, "next": _nullable(_TEXT)}, ("items", "next"), closed=True
        )
    return one
