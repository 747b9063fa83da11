-- Usage of each feature by customer and quarter of an hour, only where months end in some time zone: within the last 14
-- and the first 12 hours of a UTC month. With whole days of usage_client_day it makes up a month of all customers in
-- any zone. Marks of blocks (account '') pass whenever they are.
CREATE TABLE IF NOT EXISTS usage_client_edge_15m
(
    account   String COMMENT 'Tenant',
    feature   String COMMENT 'Feature',
    rev       UInt64 COMMENT 'Revision of the feature that metered the events',
    bucket    DateTime('UTC') COMMENT 'Start of the quarter of an hour, UTC',
    client_id String COMMENT 'Customer',
    entity_id String COMMENT 'Part of the customer, or empty',
    events    SimpleAggregateFunction(sum, Int64) COMMENT 'Number of events',
    total     SimpleAggregateFunction(sum, Decimal(76, 9)) COMMENT 'Sum of the quantity; wider than the facts, whose type would wrap silently',
    min_value SimpleAggregateFunction(min, Decimal(38, 9)) COMMENT 'Smallest quantity; not to be used where withdrawn > 0',
    max_value SimpleAggregateFunction(max, Decimal(38, 9)) COMMENT 'Largest quantity; not to be used where withdrawn > 0',
    withdrawn SimpleAggregateFunction(sum, UInt64) COMMENT 'Corrections that took something out: where > 0, smallest, largest and latest come from facts'
)
ENGINE = ${REPLICATED}AggregatingMergeTree
PARTITION BY toYear(bucket)
ORDER BY (account, feature, rev, bucket, client_id, entity_id)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Usage by feature, revision, quarter of an hour and customer around the ends of UTC months; merge the states';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_usage_client_edge_15m TO usage_client_edge_15m AS
SELECT
    account,
    feature,
    rev,
    toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC') AS bucket,
    client_id,
    entity_id,
    toInt64(count()) AS events,
    sum(toDecimal256(quantity, 9)) AS total,
    min(quantity) AS min_value,
    max(quantity) AS max_value,
    toUInt64(0) AS withdrawn
FROM ingest
ARRAY JOIN
    meters.feature AS feature,
    meters.rev AS rev,
    meters.quantity AS quantity
WHERE kind = 'delta' AND (account = '' OR toYYYYMM(timestamp + INTERVAL 14 HOUR) != toYYYYMM(timestamp - INTERVAL 12 HOUR))
GROUP BY
    account,
    feature,
    rev,
    bucket,
    client_id,
    entity_id
COMMENT 'Carries each block to usage_client_edge_15m';

CREATE MATERIALIZED VIEW IF NOT EXISTS corrections_to_usage_client_edge_15m TO usage_client_edge_15m AS
SELECT
    account,
    feature,
    rev,
    toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC') AS bucket,
    client_id,
    entity_id,
    sum(toInt64(sign)) AS events,
    sum(toDecimal256(quantity, 9) * sign) AS total,
    min(if(sign > 0, quantity, toDecimal128('99999999999999999999999999999.999999999', 9))) AS min_value,
    max(if(sign > 0, quantity, toDecimal128('-99999999999999999999999999999.999999999', 9))) AS max_value,
    countIf(sign < 0) AS withdrawn
FROM corrections
ARRAY JOIN
    meters.feature AS feature,
    meters.rev AS rev,
    meters.quantity AS quantity
WHERE kind = 'delta' AND (account = '' OR toYYYYMM(timestamp + INTERVAL 14 HOUR) != toYYYYMM(timestamp - INTERVAL 12 HOUR))
GROUP BY
    account,
    feature,
    rev,
    bucket,
    client_id,
    entity_id
COMMENT 'Carries corrections to usage_client_edge_15m';
