"""The door for Kana's GraphQL API: `POST /graphql`, header `Authorization: KEY` with or without `Bearer`.

Rules: ids are String and nothing is coerced to it. Usage is recorded for known users and features only; `true` comes
after the log's acknowledgement. Errors carry a stable `extensions.code` (see `_CODES`) and, where one field is at
fault, `extensions.field`. HTTP: 400 for a document that cannot be executed, 401 for a wrong key, 403 and 503 when
every field failed for that reason, otherwise 200 with `errors` beside `data`. Every use is unlimited until
entitlements exist; packages and subscriptions are refused as `NOT_BUILT`, whatever is asked of them, and change
nothing. The dialect has no id for a use: the header `Idempotency-Key` is one, and a use that is not confirmed (503) is
told with the key to send it again under (`extensions.idempotencyKey`); without a key it may count twice.
"""

import enum
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NewType, cast

import msgspec
import strawberry
import structlog
from graphql import GraphQLError, GraphQLSyntaxError, Node, ObjectFieldNode, OperationDefinitionNode, parse, visit
from graphql.language import ArgumentNode, Visitor
from litestar import Response, Router, get, post
from litestar.exceptions import HTTPException
from strawberry.extensions import MaxTokensLimiter, SchemaExtension
from strawberry.scalars import JSON
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext, Info, get_object_definition

from pipeline.api_keys import Principal
from pipeline.catalog import Customer
from pipeline.catalog import Feature as CatalogFeature
from pipeline.catalog_input import customer_from, feature_from
from pipeline.event import EventError, FieldError, make_event
from producers.auth import PUBLIC, principal_of, require_scope
from producers.body import decode_object, read_body
from producers.bounded import in_time
from producers.graphql_limits import over_limits
from producers.idempotency import HEADER, idempotency_key
from producers.intake import Intake
from producers.pages import page
from producers.ports import CatalogPort
from producers.problems import AnyRequest, Problem, bad_fields, problem_of, unavailable

_BODY_BYTES_MAX: Final = 256 * 1024
_TOKENS_MAX: Final = 5_000
_PAGE_MAX: Final = 1_000

_CODES: Final = {
    400: "BAD_USER_INPUT",
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    413: "BAD_USER_INPUT",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "BAD_USER_INPUT",
    429: "TOO_MANY_REQUESTS",
    503: "UNAVAILABLE",
}
_NOT_BUILT: Final = "NOT_BUILT"
_UNLIMITED: Final = "until there are packages every use is unlimited; record it with createUsageEvent"
_KEY_MEMBER: Final = "idempotencyKey"
_INTERNAL: Final = "INTERNAL_SERVER_ERROR"
_STATUS_WHEN_ALL: Final = {"FORBIDDEN": 403, "TOO_MANY_REQUESTS": 429, "UNAVAILABLE": 503}
_operation_words = re.compile(r"\b(?:query|mutation|subscription)\b|^\s*\{").findall
# graphql-core's texts for a value of the wrong type
_BAD_VALUE_WORDS: Final = ("cannot represent", "invalid value", "was not provided", "required field")
_field_in_message = re.compile(
    r"invalid value at [\"']?[\w.]*?\.?(\w+)[\"':]|required field [\"']?(?:\w+\.)?(\w+)"
).search
_field_of_not_built = re.compile(
    r"^Cannot query field '\w+' on type '(?:Package|PackageSubscription|Entitlement)'"
).search
_USAGE_FIELDS: Final = {"clientId": "userId", "featureId": "featureId", "value": "delta"}

_log = structlog.get_logger(__name__)


class Context(msgspec.Struct):
    """What resolvers are given. `key`: the request's Idempotency-Key, which names one use."""

    principal: Principal
    intake: Intake
    key: str | None = None
    key_taken: bool = False

    @property
    def catalog(self) -> CatalogPort:
        """The catalog, for changes."""
        return self.intake.catalog.port

    def require(self, *scopes: str) -> str:
        """The account, when the key has one of the scopes."""
        require_scope(self.principal, *scopes)
        return self.principal.account

    def take_key(self) -> str | None:
        """The id of the use, once. Raises Problem 422 for a second use in the document."""
        if self.key is not None and self.key_taken:
            told = "names one use, and the document has several; send each by itself"
            raise bad_fields([FieldError(HEADER, "exclusive", told)])
        self.key_taken = True
        return self.key


ContextInfo = Info[Context, None]


# Inputs of what is not built take anything: whoever asks for it is to hear that, not what is wrong with the request.
PackageFields = NewType("PackageFields", object)
PackageChanges = NewType("PackageChanges", object)


@strawberry.enum(description="BINARY is had or not; CONSUMABLE is counted.")
class FeatureType(enum.Enum):
    """The two kinds of feature."""

    BINARY = "BINARY"
    CONSUMABLE = "CONSUMABLE"


@strawberry.type
class User:
    """A customer."""

    id: str
    name: str
    email: str
    metadata: JSON

    @classmethod
    def of(cls, customer: Customer) -> "User":
        """The catalog's customer in the dialect's words."""
        return cls(id=customer.id, name=customer.name, email=customer.email, metadata=JSON(customer.metadata))


@strawberry.type
class Package:
    """A collection of features with limits. Not built: there are none."""

    id: str
    name: str
    is_addon: bool
    metadata: JSON


@strawberry.type
class PackageSubscription:
    """A user's subscription to packages. Not built: there are none."""

    id: str


@strawberry.type
class Entitlement:
    """What a user may use of a feature. Not built: every use is unlimited."""

    limit: int | None


@strawberry.type
class Feature:
    """Something that is metered."""

    id: str
    name: str
    type: FeatureType
    unit_label: str
    unit_label_plural: str
    metadata: JSON

    @classmethod
    def of(cls, feature: CatalogFeature) -> "Feature":
        """The catalog's feature in the dialect's words."""
        return cls(
            id=feature.id,
            name=feature.name,
            type=FeatureType(feature.type),
            unit_label=feature.unit_label,
            unit_label_plural=feature.unit_label_plural,
            metadata=JSON(feature.metadata),
        )

    @strawberry.field
    async def packages(self) -> list[Package] | None:
        """Packages that the feature is in. Not built."""
        raise _not_built("packages", _UNLIMITED)

    @strawberry.field
    async def entitlement(self, user_id: str) -> Entitlement | None:
        """A user's entitlement to the feature. Not built."""
        raise _not_built("entitlement", "canUseFeature says that every use is unlimited, GET /v1/usage what was used")


@strawberry.type
class Consumption:
    """What was used of a budget; null is without limit or not known here."""

    budget: int | None
    used: int | None
    overage_enabled: bool


@strawberry.type
class Access:
    """Whether a user may use a feature, and why."""

    access: bool
    reason: str
    consumption: Consumption


@strawberry.input
class CreateUsageEventInput:
    """A use. `delta`: 32-bit whole number; negative gives back."""

    user_id: str
    feature_id: str
    delta: int


@strawberry.input
class CreateUserInput:
    """A new user."""

    id: str
    name: str | None = strawberry.UNSET
    email: str | None = strawberry.UNSET
    metadata: JSON | None = strawberry.UNSET


@strawberry.input
class UpdateUserInput:
    """Changes of a user; what is not given stays."""

    id: str
    name: str | None = strawberry.UNSET
    email: str | None = strawberry.UNSET
    metadata: JSON | None = strawberry.UNSET


@strawberry.input
class CreateFeatureInput:
    """A new feature."""

    id: str
    name: str | None = strawberry.UNSET
    type: FeatureType = FeatureType.CONSUMABLE
    unit_label: str | None = strawberry.UNSET
    unit_label_plural: str | None = strawberry.UNSET
    metadata: JSON | None = strawberry.UNSET


@strawberry.input
class UpdateFeatureInput:
    """Changes of a feature; what is not given stays."""

    id: str
    name: str | None = strawberry.UNSET
    type: FeatureType | None = strawberry.UNSET
    unit_label: str | None = strawberry.UNSET
    unit_label_plural: str | None = strawberry.UNSET
    metadata: JSON | None = strawberry.UNSET


@strawberry.type
class Query:
    """What can be asked."""

    @strawberry.field
    async def feature(self, info: ContextInfo, id: str) -> Feature:
        """A feature by its id."""
        return Feature.of(await _feature(info.context, info.context.require("read"), id, "id"))

    @strawberry.field
    async def features(self, info: ContextInfo) -> list[Feature]:
        """The account's features that are not archived."""
        account = info.context.require("read")
        found = info.context.intake.catalog.port.catalog.features(account)
        return [Feature.of(feature) for feature in found if not feature.archived]

    @strawberry.field
    async def user(self, info: ContextInfo, id: str) -> User:
        """A user by its id."""
        return User.of(await _user(info.context, info.context.require("read"), id, "id"))

    @strawberry.field
    async def users(self, info: ContextInfo, first: int = _PAGE_MAX, after: str = "") -> list[User]:
        """The account's users in the order of their ids, those behind `after`, at most `first`."""
        account = info.context.require("read")
        if not 1 <= first <= _PAGE_MAX:
            raise bad_fields([FieldError("first", "range", f"must be 1 to {_PAGE_MAX}")])
        found = [c for c in info.context.intake.catalog.port.catalog.customers(account) if c.id > after]
        return [User.of(customer) for customer in found[:first]]

    @strawberry.field
    async def can_use_feature(self, info: ContextInfo, user_id: str, feature_id: str, delta: int = 1) -> Access:
        """Whether the user may use the feature: always, until entitlements exist."""
        account = info.context.require("read")
        await _user(info.context, account, user_id, "userId")
        await _feature(info.context, account, feature_id, "featureId")
        return Access(
            access=True,
            reason="UNLIMITED",
            consumption=Consumption(budget=None, used=None, overage_enabled=False),
        )

    @strawberry.field
    async def package(self, info: ContextInfo, id: str) -> Package | None:
        """A package by its id. Not built."""
        info.context.require("read")
        raise _not_built("package", _UNLIMITED)

    @strawberry.field
    async def packages(self, info: ContextInfo) -> list[Package] | None:
        """The account's packages. Not built."""
        info.context.require("read")
        raise _not_built("packages", _UNLIMITED)


@strawberry.type
class Mutation:
    """What can be changed."""

    @strawberry.mutation
    async def create_usage_event(self, info: ContextInfo, input: CreateUsageEventInput) -> bool:
        """Records a use; true once the log has acknowledged it."""
        return await _record(info.context, input)

    @strawberry.mutation
    async def create_user(self, info: ContextInfo, input: CreateUserInput) -> User:
        """Creates a user."""
        account = info.context.require("admin")
        return User.of(await in_time(info.context.catalog.create_customer(customer_from(account, _given(input)))))

    @strawberry.mutation
    async def update_user(self, info: ContextInfo, input: UpdateUserInput) -> User:
        """Changes a user."""
        account = info.context.require("admin")
        return User.of(await in_time(info.context.catalog.update_customer(account, input.id, _given(input))))

    @strawberry.mutation
    async def create_feature(self, info: ContextInfo, input: CreateFeatureInput) -> Feature:
        """Creates a feature."""
        account = info.context.require("admin")
        return Feature.of(await in_time(info.context.catalog.create_feature(feature_from(account, _given(input)))))

    @strawberry.mutation
    async def update_feature(self, info: ContextInfo, input: UpdateFeatureInput) -> Feature:
        """Changes a feature."""
        account = info.context.require("admin")
        return Feature.of(await in_time(info.context.catalog.update_feature(account, input.id, _given(input))))

    @strawberry.mutation
    async def create_package(self, info: ContextInfo, input: PackageFields) -> Package | None:
        """Creates a package. Not built."""
        info.context.require("admin")
        raise _not_built("createPackage", f"nothing was created; {_UNLIMITED}")

    @strawberry.mutation
    async def update_package(self, info: ContextInfo, input: PackageChanges) -> Package | None:
        """Changes a package. Not built."""
        info.context.require("admin")
        raise _not_built("updatePackage", f"nothing was changed; {_UNLIMITED}")

    @strawberry.mutation
    async def subscribe(self, info: ContextInfo, user_id: str, package_ids: list[str]) -> PackageSubscription | None:
        """Subscribes a user to packages. Not built."""
        info.context.require("admin")
        raise _not_built("subscribe", f"nobody was subscribed; {_UNLIMITED}")


def _as_given(value: object) -> object:
    return value


class _Limits(SchemaExtension):
    def on_validate(self) -> Iterator[None]:
        """Leaves a document that asks for too much at that: it is neither validated nor executed."""
        document = self.execution_context.graphql_document
        if document is not None and (found := over_limits(document)):
            self.execution_context.pre_execution_errors = [GraphQLError(told) for told in found]
        yield


class _Schema(strawberry.Schema):
    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """Nothing: a caller's mistakes are no news, and defects are logged where the answer is made."""


def _with_descriptions(*kinds: type) -> None:
    """Docstrings become the schema's descriptions, which GraphiQL and other tools show."""
    for kind in kinds:
        definition = get_object_definition(kind, strict=True)
        definition.description = definition.description or inspect.getdoc(kind)
        for field in definition.fields:
            if field.base_resolver is not None:
                field.description = inspect.getdoc(field.base_resolver.wrapped_func)


_with_descriptions(
    Query, Mutation, User, Feature, Package, PackageSubscription, Entitlement, Consumption, Access,
    CreateUsageEventInput, CreateUserInput, UpdateUserInput, CreateFeatureInput, UpdateFeatureInput,
)  # fmt: skip

SCHEMA: Final = _Schema(
    query=Query,
    mutation=Mutation,
    config=StrawberryConfig(
        scalar_map={
            kind: strawberry.scalar(name=name, description="Anything: packages are not built.", parse_value=_as_given)
            for kind, name in ((PackageFields, "CreatePackageInput"), (PackageChanges, "UpdatePackageInput"))
        }
    ),
    extensions=[lambda: MaxTokensLimiter(max_token_count=_TOKENS_MAX), _Limits],
)


def kana_router(intake: Intake) -> Router:
    """The route of this door."""

    @post("/graphql", status_code=200, summary="GraphQL (Kana)", tags=["events"])
    async def graphql(request: AnyRequest) -> Response[bytes]:
        """Executes one GraphQL document."""
        fields = decode_object(await read_body(request), exact=False)
        query, variables = fields.get("query"), fields.get("variables")
        operation = fields.get("operationName")
        if not isinstance(query, str) or not query.strip():
            raise bad_fields([FieldError("query", "type", "must be a string with a GraphQL document")])
        if not isinstance(variables, dict | None):
            raise bad_fields([FieldError("variables", "type", "must be an object")])
        if not isinstance(operation, str | None):
            raise bad_fields([FieldError("operationName", "type", "must be a string")])
        if operation is None and _names_several(query):
            raise bad_fields([FieldError("operationName", "required", "the document has several operations; name one")])
        context = Context(principal_of(request), intake, idempotency_key(request))
        result = await SCHEMA.execute(query, variable_values=variables, context_value=context, operation_name=operation)
        errors = [_told(error, query) for error in result.errors or ()]
        return _answer(result.data, errors)

    @get("/graphql", opt=PUBLIC, include_in_schema=False)
    async def graphiql() -> Response[bytes]:
        """A page to try it, for people."""
        return page("graphiql.html")

    return Router(
        path="/",
        route_handlers=[graphql, graphiql],
        request_max_body_size=_BODY_BYTES_MAX,
        exception_handlers={Exception: _handle, HTTPException: _handle},
    )


async def _record(context: Context, use: CreateUsageEventInput) -> bool:
    account = context.require("ingest")
    intake = context.intake
    arrival_us = intake.clock_us()
    try:
        event = make_event(
            client_id=use.user_id,
            feature_id=use.feature_id,
            value=use.delta,
            timestamp=arrival_us,
            arrival_us=arrival_us,
            ahead_max_us=intake.ahead_max_us,
            transaction_id=context.take_key(),
        )
    except EventError as error:
        renamed = [FieldError(_USAGE_FIELDS.get(e.field, e.field), e.code, e.message) for e in error.errors]
        raise bad_fields(renamed) from error
    await _user(context, account, use.user_id, "userId")
    await _feature(context, account, use.feature_id, "featureId")
    delivery = await intake.receive(context.principal, [event], defaulted=True)
    if delivery.retry_after_s is not None:
        told = f"the use is not confirmed; send it again with this {HEADER}"
        raise unavailable(told, delivery.retry_after_s, {_KEY_MEMBER: delivery.receipts[0].transaction_id})
    return True


async def _user(context: Context, account: str, user_id: str, field: str) -> Customer:
    if not await context.intake.catalog.has_customer(account, user_id):
        raise _not_found(field, f"there is no user {user_id!r}; create it with createUser")
    return cast(Customer, context.intake.catalog.port.catalog.customer(account, user_id))


async def _feature(context: Context, account: str, feature_id: str, field: str) -> CatalogFeature:
    if not await context.intake.catalog.has_feature(account, feature_id):
        raise _not_found(field, f"there is no feature {feature_id!r}; create it with createFeature")
    return cast(CatalogFeature, context.intake.catalog.port.catalog.feature(account, feature_id))


def _not_built(name: str, instead: str) -> Problem:
    told = f"{name} is not built yet: {instead}"
    return Problem(422, "not_built", told, errors=[FieldError(name, "not_built", told)])


def _not_found(field: str, told: str) -> Problem:
    return Problem(404, "not_found", told, errors=[FieldError(field, "not_found", told)])


def _given(changes: object) -> dict[str, object]:
    """The fields of an input that were given, for the catalog."""
    given = {name: value for name, value in vars(changes).items() if value is not strawberry.UNSET}
    return {name: value.value if isinstance(value, enum.Enum) else value for name, value in given.items()}


def _answer(data: Mapping[str, Any] | None, errors: list[dict[str, Any]]) -> Response[bytes]:
    body: dict[str, Any] = {"data": data}
    if errors:
        body["errors"] = errors
    codes = {error["extensions"]["code"] for error in errors}
    status = 200
    if data is None and errors:
        executed = any("path" in error for error in errors)
        status = _STATUS_WHEN_ALL.get(codes.pop(), 200) if len(codes) == 1 and executed else 200 if executed else 400
    waits = [error["extensions"].get("retryAfter", 5) for error in errors]
    headers = {"Retry-After": str(max(waits))} if status in (429, 503) else {}
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json", headers=headers)


def _handle(request: AnyRequest, error: Exception) -> Response[bytes]:
    """What fails before the document is executed: also as GraphQL errors, under its HTTP status."""
    problem = problem_of(error)
    if problem.status == 500:
        _log.error("request_failed", method=request.method, path=request.url.path, exc_info=error)
    body = {"data": None, "errors": [{"message": problem.detail, "extensions": _extensions(problem)}]}
    return Response(
        msgspec.json.encode(body),
        status_code=problem.status,
        media_type="application/json",
        headers=problem.headers,
    )


def _names_several(query: str) -> bool:
    """Whether the document has more than one operation; Strawberry would run the first."""
    if len(_operation_words(query)) < 2:
        return False
    try:
        document = parse(query, max_tokens=_TOKENS_MAX)
    except GraphQLSyntaxError:
        return False  # told when it is executed
    return sum(isinstance(node, OperationDefinitionNode) for node in document.definitions) > 1


def _told(error: GraphQLError, query: str) -> dict[str, Any]:
    """One error as it is answered; defects of ours are logged and tell nothing of the inside."""
    told: dict[str, Any] = {"message": error.message}
    if error.locations:
        told["locations"] = [{"line": place.line, "column": place.column} for place in error.locations]
    if error.path:
        told["path"] = error.path
    cause = error.original_error
    if cause is None or isinstance(cause, GraphQLError):
        told["message"], told["extensions"] = _document_fault(error, query)
        return told
    problem = problem_of(cause)
    if problem.status == 500:
        _log.error("graphql_field_failed", graphql_path=error.path, exc_info=cause)
    told["message"] = problem.detail
    told["extensions"] = _extensions(problem)
    return told


def _extensions(problem: Problem) -> dict[str, Any]:
    code = _NOT_BUILT if problem.code == "not_built" else _CODES.get(problem.status, _INTERNAL)
    extensions: dict[str, Any] = {"code": code}
    if _KEY_MEMBER in problem.members:
        extensions[_KEY_MEMBER] = problem.members[_KEY_MEMBER]
    if "Retry-After" in problem.headers:
        extensions["retryAfter"] = int(problem.headers["Retry-After"])
    if problem.errors:
        extensions["field"] = problem.errors[0].field
        extensions["errors"] = problem.errors
    return extensions


def _document_fault(error: GraphQLError, query: str) -> tuple[str, dict[str, Any]]:
    """Message and extensions of a fault in the document or its variables."""
    if isinstance(error, GraphQLSyntaxError):
        return error.message, {"code": "GRAPHQL_PARSE_FAILED"}
    if _field_of_not_built(error.message):
        return f"{error.message} Packages are not built yet: {_UNLIMITED}", {"code": _NOT_BUILT}
    if not any(words in error.message for words in _BAD_VALUE_WORDS):
        return error.message, {"code": "GRAPHQL_VALIDATION_FAILED"}
    at_field = _field_in_message(error.message)
    field = at_field[1] or at_field[2] if at_field else _literal_name(error, query)
    message = error.message if at_field or not field else f"{field}: {error.message}"
    if "String cannot represent" in message:
        message += ". Only String is accepted here."
    return message, {"code": "BAD_USER_INPUT", **({"field": field} if field else {})}


class _Finder(Visitor):
    """Finds the name of the argument or input field whose value starts at a place of the document."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start
        self.name = ""

    def enter(self, node: Node, *_: object) -> None:
        """Called for each node."""
        if isinstance(node, ObjectFieldNode | ArgumentNode) and node.value.loc and node.value.loc.start == self.start:
            self.name = node.name.value


def _literal_name(error: GraphQLError, query: str) -> str:
    positions = list(error.positions or ())
    if not positions:
        return ""
    finder = _Finder(positions[0])
    visit(parse(query, no_location=False), finder)
    return finder.name
