-- Distinct values of the features that count them, one row a value with its number of events: exact, mergeable over
-- any customers and days, empty for all other features (a uniqExact state in every rollup row would cost all of them),
-- and a void takes a value out once its number of events is 0.
CREATE TABLE IF NOT EXISTS usage_uniques_client_day
(
    account       String COMMENT 'Tenant',
    feature       String COMMENT 'Feature',
    rev           UInt64 COMMENT 'Revision of the feature that metered the events',
    client_id     String COMMENT 'Customer',
    entity_id     String COMMENT 'Part of the customer, or empty',
    day           Date COMMENT 'UTC day',
    distinct_hash UInt128 COMMENT 'Hash of the counted value',
    events        SimpleAggregateFunction(sum, Int64) COMMENT 'Number of events that carried the value; 0 once all are withdrawn'
)
ENGINE = ${REPLICATED}AggregatingMergeTree
PARTITION BY toYear(day)
ORDER BY (account, feature, rev, client_id, entity_id, day, distinct_hash)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Distinct values by feature, revision, customer, entity and UTC day';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_usage_uniques_client_day TO usage_uniques_client_day AS
SELECT
    account,
    feature,
    rev,
    client_id,
    entity_id,
    toDate(timestamp) AS day,
    distinct_hash,
    toInt64(count()) AS events
FROM ingest
ARRAY JOIN
    meters.feature AS feature,
    meters.rev AS rev,
    meters.distinct_hash AS distinct_hash
WHERE kind = 'delta' AND distinct_hash != 0
GROUP BY
    account,
    feature,
    rev,
    client_id,
    entity_id,
    day,
    distinct_hash
COMMENT 'Carries each block to usage_uniques_client_day';

CREATE MATERIALIZED VIEW IF NOT EXISTS corrections_to_usage_uniques_client_day TO usage_uniques_client_day AS
SELECT
    account,
    feature,
    rev,
    client_id,
    entity_id,
    toDate(timestamp) AS day,
    distinct_hash,
    sum(toInt64(sign)) AS events
FROM corrections
ARRAY JOIN
    meters.feature AS feature,
    meters.rev AS rev,
    meters.distinct_hash AS distinct_hash
WHERE kind = 'delta' AND distinct_hash != 0
GROUP BY
    account,
    feature,
    rev,
    client_id,
    entity_id,
    day,
    distinct_hash
COMMENT 'Carries corrections to usage_uniques_client_day';
