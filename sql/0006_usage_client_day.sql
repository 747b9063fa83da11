-- Usage of each feature by customer and UTC day: what months, balances and lists of customers are read from.
CREATE TABLE IF NOT EXISTS usage_client_day
(
    account   String COMMENT 'Tenant',
    feature   String COMMENT 'Feature',
    rev       UInt64 COMMENT 'Revision of the feature that metered the events',
    client_id String COMMENT 'Customer',
    entity_id String COMMENT 'Part of the customer, or empty',
    day       Date COMMENT 'UTC day',
    events    SimpleAggregateFunction(sum, Int64) COMMENT 'Number of events',
    total     SimpleAggregateFunction(sum, Decimal(76, 9)) COMMENT 'Sum of the quantity; wider than the facts, whose type would wrap silently',
    min_value SimpleAggregateFunction(min, Decimal(38, 9)) COMMENT 'Smallest quantity; not to be used where withdrawn > 0',
    max_value SimpleAggregateFunction(max, Decimal(38, 9)) COMMENT 'Largest quantity; not to be used where withdrawn > 0',
    latest    AggregateFunction(argMax, Decimal(38, 9), UInt256) COMMENT 'Quantity of the last event by timestamp, append time and position, packed in that order into 256 bits; not to be used where withdrawn > 0',
    withdrawn SimpleAggregateFunction(sum, UInt64) COMMENT 'Corrections that took something out: where > 0, smallest, largest and latest come from facts'
)
ENGINE = ${REPLICATED}AggregatingMergeTree
PARTITION BY toYear(day)
ORDER BY (account, feature, rev, client_id, entity_id, day)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Usage by feature, revision, customer, entity and UTC day; merge the states';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_usage_client_day TO usage_client_day AS
SELECT
    account,
    feature,
    rev,
    client_id,
    entity_id,
    toDate(timestamp) AS day,
    toInt64(count()) AS events,
    sum(toDecimal256(quantity, 9)) AS total,
    min(quantity) AS min_value,
    max(quantity) AS max_value,
    argMaxState(quantity, bitShiftLeft(toUInt256(toUnixTimestamp64Micro(timestamp)), 202)
            + bitShiftLeft(toUInt256(toUnixTimestamp64Milli(append_time)), 160)
            + bitShiftLeft(toUInt256(epoch), 128)
            + bitShiftLeft(toUInt256(`partition`), 96)
            + bitShiftLeft(toUInt256(`offset`), 32)
            + line) AS latest,
    toUInt64(0) AS withdrawn
FROM ingest
ARRAY JOIN
    meters.feature AS feature,
    meters.rev AS rev,
    meters.quantity AS quantity
WHERE kind = 'delta'
GROUP BY
    account,
    feature,
    rev,
    client_id,
    entity_id,
    day
COMMENT 'Carries each block to usage_client_day';

CREATE MATERIALIZED VIEW IF NOT EXISTS corrections_to_usage_client_day TO usage_client_day AS
SELECT
    account,
    feature,
    rev,
    client_id,
    entity_id,
    toDate(timestamp) AS day,
    sum(toInt64(sign)) AS events,
    sum(toDecimal256(quantity, 9) * sign) AS total,
    min(if(sign > 0, quantity, toDecimal128('99999999999999999999999999999.999999999', 9))) AS min_value,
    max(if(sign > 0, quantity, toDecimal128('-99999999999999999999999999999.999999999', 9))) AS max_value,
    argMaxIfState(quantity, bitShiftLeft(toUInt256(toUnixTimestamp64Micro(timestamp)), 202)
            + bitShiftLeft(toUInt256(toUnixTimestamp64Milli(append_time)), 160)
            + bitShiftLeft(toUInt256(epoch), 128)
            + bitShiftLeft(toUInt256(`partition`), 96)
            + bitShiftLeft(toUInt256(`offset`), 32)
            + line, sign > 0) AS latest,
    countIf(sign < 0) AS withdrawn
FROM corrections
ARRAY JOIN
    meters.feature AS feature,
    meters.rev AS rev,
    meters.quantity AS quantity
WHERE kind = 'delta'
GROUP BY
    account,
    feature,
    rev,
    client_id,
    entity_id,
    day
COMMENT 'Carries corrections to usage_client_day';
