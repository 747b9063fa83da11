-- Events by the values of each string dimension, and the sums of each number dimension, by quarter of an hour.
CREATE TABLE IF NOT EXISTS events_dimension_15m
(
    account       String COMMENT 'Tenant',
    event_name    String COMMENT 'Event name, empty for events without one',
    dimension     String COMMENT 'Declared dimension',
    dimension_rev UInt64 COMMENT 'Revision of the dimension',
    is_number     UInt8 COMMENT '1: the states are of the number dimension itself; 0: of the event value',
    text          String COMMENT 'Value of a string dimension, empty for a number dimension',
    bucket        DateTime('UTC') COMMENT 'Start of the quarter of an hour, UTC: the coarsest step that the hours of every time zone begin on',
    events        SimpleAggregateFunction(sum, Int64) COMMENT 'Number of events',
    total         SimpleAggregateFunction(sum, Decimal(76, 9)) COMMENT 'Sum of the quantity; wider than the facts, whose type would wrap silently',
    min_value     SimpleAggregateFunction(min, Decimal(38, 9)) COMMENT 'Smallest quantity; not to be used where withdrawn > 0',
    max_value     SimpleAggregateFunction(max, Decimal(38, 9)) COMMENT 'Largest quantity; not to be used where withdrawn > 0',
    withdrawn     SimpleAggregateFunction(sum, UInt64) COMMENT 'Corrections that took something out: where > 0, smallest, largest and latest come from facts'
)
ENGINE = ${REPLICATED}AggregatingMergeTree
PARTITION BY toYear(bucket)
ORDER BY (account, event_name, dimension, dimension_rev, is_number, text, bucket)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Events by name, dimension and quarter of an hour: the event value by the values of string dimensions, the number itself for number dimensions; merge the states';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_events_dimension_15m TO events_dimension_15m AS
SELECT
    account,
    event_name,
    dimension,
    dimension_rev,
    is_number,
    text,
    toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC') AS bucket,
    toInt64(count()) AS events,
    sum(toDecimal256(if(is_number = 1, number, value), 9)) AS total,
    min(if(is_number = 1, number, value)) AS min_value,
    max(if(is_number = 1, number, value)) AS max_value,
    toUInt64(0) AS withdrawn
FROM ingest
ARRAY JOIN
    dims.name AS dimension,
    dims.rev AS dimension_rev,
    dims.is_number AS is_number,
    dims.text AS text,
    dims.number AS number
WHERE kind = 'delta'
GROUP BY
    account,
    event_name,
    dimension,
    dimension_rev,
    is_number,
    text,
    bucket
COMMENT 'Carries each block to events_dimension_15m';

CREATE MATERIALIZED VIEW IF NOT EXISTS corrections_to_events_dimension_15m TO events_dimension_15m AS
SELECT
    account,
    event_name,
    dimension,
    dimension_rev,
    is_number,
    text,
    toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC') AS bucket,
    sum(toInt64(sign)) AS events,
    sum(toDecimal256(if(is_number = 1, number, value), 9) * sign) AS total,
    min(if(sign > 0, if(is_number = 1, number, value), toDecimal128('99999999999999999999999999999.999999999', 9))) AS min_value,
    max(if(sign > 0, if(is_number = 1, number, value), toDecimal128('-99999999999999999999999999999.999999999', 9))) AS max_value,
    countIf(sign < 0) AS withdrawn
FROM corrections
ARRAY JOIN
    dims.name AS dimension,
    dims.rev AS dimension_rev,
    dims.is_number AS is_number,
    dims.text AS text,
    dims.number AS number
WHERE kind = 'delta'
GROUP BY
    account,
    event_name,
    dimension,
    dimension_rev,
    is_number,
    text,
    bucket
COMMENT 'Carries corrections to events_dimension_15m';
