-- Events that overwrite usage instead of adding to it. Sparse: no other kind is kept here.
CREATE TABLE IF NOT EXISTS sets
(
    account     String COMMENT 'Tenant',
    feature     String COMMENT 'Feature whose usage is overwritten',
    rev         UInt64 COMMENT 'Revision of the feature',
    client_id   String COMMENT 'Customer',
    entity_id   String COMMENT 'Part of the customer, or empty',
    timestamp   DateTime64(6, 'UTC') COMMENT 'When the new usage holds from',
    append_time DateTime64(3, 'UTC') COMMENT 'Time of Kafka, first tie-breaker of equal timestamps',
    quantity    Decimal(38, 9) COMMENT 'The usage from then on',
    epoch       UInt32 COMMENT 'Epoch of the event',
    `partition` UInt32 COMMENT 'Partition of the event',
    `offset`    UInt64 COMMENT 'Offset of the event',
    line        UInt32 COMMENT 'Line of the event'
)
ENGINE = ${REPLICATED}MergeTree
ORDER BY (account, feature, client_id, entity_id, timestamp, append_time, `partition`, `offset`, line, rev)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'One row for each set event and feature';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_sets TO sets AS
SELECT
    account,
    feature,
    rev,
    client_id,
    entity_id,
    timestamp,
    append_time,
    quantity,
    epoch,
    `partition`,
    `offset`,
    line
FROM ingest
ARRAY JOIN
    meters.feature AS feature,
    meters.rev AS rev,
    meters.quantity AS quantity
WHERE kind = 'set'
COMMENT 'Carries set events to sets';
