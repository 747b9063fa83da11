-- Usage of each feature by the values of each string dimension, account-wide by quarter of an hour.
CREATE TABLE IF NOT EXISTS usage_dimension_15m
(
    account       String COMMENT 'Tenant',
    feature       String COMMENT 'Feature',
    rev           UInt64 COMMENT 'Revision of the feature that metered the events',
    dimension     String COMMENT 'Declared dimension',
    dimension_rev UInt64 COMMENT 'Revision of the dimension',
    value         String COMMENT 'Value of the dimension',
    bucket        DateTime('UTC') COMMENT 'Start of the quarter of an hour, UTC: the coarsest step that the hours of every time zone begin on',
    events        SimpleAggregateFunction(sum, Int64) COMMENT 'Number of events',
    total         SimpleAggregateFunction(sum, Decimal(76, 9)) COMMENT 'Sum of the quantity; wider than the facts, whose type would wrap silently',
    min_value     SimpleAggregateFunction(min, Decimal(38, 9)) COMMENT 'Smallest quantity; not to be used where withdrawn > 0',
    max_value     SimpleAggregateFunction(max, Decimal(38, 9)) COMMENT 'Largest quantity; not to be used where withdrawn > 0',
    withdrawn     SimpleAggregateFunction(sum, UInt64) COMMENT 'Corrections that took something out: where > 0, smallest, largest and latest come from facts'
)
ENGINE = ${REPLICATED}AggregatingMergeTree
PARTITION BY toYear(bucket)
ORDER BY (account, feature, rev, dimension, dimension_rev, value, bucket)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Usage by feature, revision, dimension value and quarter of an hour; merge the states';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_usage_dimension_15m TO usage_dimension_15m AS
SELECT
    account,
    feature,
    rev,
    dimension,
    dimension_rev,
    value,
    toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC') AS bucket,
    toInt64(count()) AS events,
    sum(toDecimal256(quantity, 9)) AS total,
    min(quantity) AS min_value,
    max(quantity) AS max_value,
    toUInt64(0) AS withdrawn
FROM
(
    SELECT
        account,
        timestamp,
        meter_feature AS feature,
        meter_rev AS rev,
        meter_quantity AS quantity,
        dims.name,
        dims.rev,
        dims.text,
        dims.is_number
    FROM ingest
    ARRAY JOIN
        meters.feature AS meter_feature,
        meters.rev AS meter_rev,
        meters.quantity AS meter_quantity
    WHERE kind = 'delta'
)
ARRAY JOIN
    dims.name AS dimension,
    dims.rev AS dimension_rev,
    dims.text AS value,
    dims.is_number AS is_number
WHERE is_number = 0
GROUP BY
    account,
    feature,
    rev,
    dimension,
    dimension_rev,
    value,
    bucket
COMMENT 'Carries each block to usage_dimension_15m';

CREATE MATERIALIZED VIEW IF NOT EXISTS corrections_to_usage_dimension_15m TO usage_dimension_15m AS
SELECT
    account,
    feature,
    rev,
    dimension,
    dimension_rev,
    value,
    toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC') AS bucket,
    sum(toInt64(sign)) AS events,
    sum(toDecimal256(quantity, 9) * sign) AS total,
    min(if(sign > 0, quantity, toDecimal128('99999999999999999999999999999.999999999', 9))) AS min_value,
    max(if(sign > 0, quantity, toDecimal128('-99999999999999999999999999999.999999999', 9))) AS max_value,
    countIf(sign < 0) AS withdrawn
FROM
(
    SELECT
        account,
        timestamp,
        meter_feature AS feature,
        meter_rev AS rev,
        meter_quantity AS quantity, sign,
        dims.name,
        dims.rev,
        dims.text,
        dims.is_number
    FROM corrections
    ARRAY JOIN
        meters.feature AS meter_feature,
        meters.rev AS meter_rev,
        meters.quantity AS meter_quantity
    WHERE kind = 'delta'
)
ARRAY JOIN
    dims.name AS dimension,
    dims.rev AS dimension_rev,
    dims.text AS value,
    dims.is_number AS is_number
WHERE is_number = 0
GROUP BY
    account,
    feature,
    rev,
    dimension,
    dimension_rev,
    value,
    bucket
COMMENT 'Carries corrections to usage_dimension_15m';
