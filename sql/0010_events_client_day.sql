-- Events by name, customer and UTC day: also those that no feature meters (yet).
CREATE TABLE IF NOT EXISTS events_client_day
(
    account    String COMMENT 'Tenant',
    event_name String COMMENT 'Event name, empty for events without one',
    client_id  String COMMENT 'Customer',
    entity_id  String COMMENT 'Part of the customer, or empty',
    day        Date COMMENT 'UTC day',
    events     SimpleAggregateFunction(sum, Int64) COMMENT 'Number of events',
    total      SimpleAggregateFunction(sum, Decimal(76, 9)) COMMENT 'Sum of the quantity; wider than the facts, whose type would wrap silently',
    min_value  SimpleAggregateFunction(min, Decimal(38, 9)) COMMENT 'Smallest quantity; not to be used where withdrawn > 0',
    max_value  SimpleAggregateFunction(max, Decimal(38, 9)) COMMENT 'Largest quantity; not to be used where withdrawn > 0',
    withdrawn  SimpleAggregateFunction(sum, UInt64) COMMENT 'Corrections that took something out: where > 0, smallest, largest and latest come from facts'
)
ENGINE = ${REPLICATED}AggregatingMergeTree
PARTITION BY toYear(day)
ORDER BY (account, event_name, client_id, entity_id, day)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Events by name, customer, entity and UTC day; merge the states';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_events_client_day TO events_client_day AS
SELECT
    account,
    event_name,
    client_id,
    entity_id,
    toDate(timestamp) AS day,
    toInt64(count()) AS events,
    sum(toDecimal256(value, 9)) AS total,
    min(value) AS min_value,
    max(value) AS max_value,
    toUInt64(0) AS withdrawn
FROM ingest
WHERE kind = 'delta'
GROUP BY
    account,
    event_name,
    client_id,
    entity_id,
    day
COMMENT 'Carries each block to events_client_day';

CREATE MATERIALIZED VIEW IF NOT EXISTS corrections_to_events_client_day TO events_client_day AS
SELECT
    account,
    event_name,
    client_id,
    entity_id,
    toDate(timestamp) AS day,
    sum(toInt64(sign)) AS events,
    sum(toDecimal256(value, 9) * sign) AS total,
    min(if(sign > 0, value, toDecimal128('99999999999999999999999999999.999999999', 9))) AS min_value,
    max(if(sign > 0, value, toDecimal128('-99999999999999999999999999999.999999999', 9))) AS max_value,
    countIf(sign < 0) AS withdrawn
FROM corrections
WHERE kind = 'delta'
GROUP BY
    account,
    event_name,
    client_id,
    entity_id,
    day
COMMENT 'Carries corrections to events_client_day';
