"""A GraphQL client, its address and key set: it introspects the schema and records use that counts once."""

import pytest
from facts import facts
from gql import Client, gql
from gql.transport.exceptions import TransportQueryError
from gql.transport.httpx import HTTPXTransport
from graphql import GraphQLError
from running_stack import RunningStack, Tenant

from pipeline.adapters.clickhouse import Store

_MUTATION = "mutation createUsageEvent($input: CreateUsageEventInput!) {\n  createUsageEvent(input: $input)\n}"
_CREATE = """mutation {
  createUser(input: {id: "124", name: "Test User"}) { id }
  createFeature(input: {id: "api-calls", type: CONSUMABLE, unitLabel: "call"}) { id type }
}"""


@pytest.mark.parametrize("prefix", ["", "Bearer "])
def test_gql(stack: RunningStack, tenant: Tenant, stack_store: Store, prefix: str) -> None:
    """It checks documents against the schema that it was given; a use sent again under one key counts once."""
    transport = HTTPXTransport(f"{stack.api}/graphql", headers={"Authorization": prefix + tenant.key})
    keyed = HTTPXTransport(
        f"{stack.api}/graphql", headers={"Authorization": prefix + tenant.key, "Idempotency-Key": "kana-1"}
    )
    with Client(transport=transport, fetch_schema_from_transport=True) as session:
        assert session.execute(gql(_CREATE))["createFeature"] == {"id": "api-calls", "type": "CONSUMABLE"}
        use = gql(_MUTATION)
        use.variable_values = {"input": {"userId": "124", "featureId": "api-calls", "delta": 3}}
        assert session.execute(use) == {"createUsageEvent": True}
        access = gql('{ canUseFeature(userId: "124", featureId: "api-calls", delta: 1) { access reason } }')
        assert session.execute(access)["canUseFeature"] == {"access": True, "reason": "UNLIMITED"}
        with pytest.raises(GraphQLError, match="Cannot query field 'nothing'"):
            session.execute(gql("{ nothing }"))
        use.variable_values = {"input": {"userId": 124, "featureId": "api-calls", "delta": 1}}
        with pytest.raises(TransportQueryError, match="Only String is accepted"):
            session.execute(use)
    with Client(transport=keyed) as session:
        use.variable_values = {"input": {"userId": "124", "featureId": "api-calls", "delta": -1}}
        for _ in range(3):
            assert session.execute(use) == {"createUsageEvent": True}
    found = facts(stack, tenant, stack_store)
    assert sorted(row[4] for row in found.values()) == ["-1", "3"]
    assert "kana-1" in found
