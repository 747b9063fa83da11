-- What costs the store least of a block's aggregates: the four rollups without customers are made of one table of
-- shapes instead of four passes over all rows, and usage by customer is added up before features are unfolded. The
-- views keep their names, which tokens go by; those of the four are reached another way now, which makes other tokens,
-- so `tally migrate` first waits for what is under way.

-- One row for each combination of event name, features and dimension values and quarter of an hour of a block: what an
-- account has of these is little, however many customers it has. Keeps no rows.
CREATE TABLE IF NOT EXISTS ingest_shapes_15m
(
    account         String COMMENT 'Tenant',
    event_name      String COMMENT 'Event name, empty for events without one',
    bucket          DateTime('UTC') COMMENT 'Start of the quarter of an hour, UTC',
    features        Array(String) COMMENT 'Features that each of the events is metered by',
    revs            Array(UInt64) COMMENT 'Revision of each feature',
    dimensions      Array(String) COMMENT 'Declared dimensions that each of the events carries',
    dimension_revs  Array(UInt64) COMMENT 'Revision of each dimension',
    texts           Array(String) COMMENT 'Value of a string dimension, empty for a number dimension',
    is_numbers      Array(UInt8) COMMENT '1 for a number dimension, 0 for a string dimension',
    number          Int64 COMMENT 'Number of events',
    value_sum       Decimal(76, 9) COMMENT 'Sum of the value',
    value_min       Decimal(38, 9) COMMENT 'Smallest value',
    value_max       Decimal(38, 9) COMMENT 'Largest value',
    quantity_sums   Array(Decimal(76, 9)) COMMENT 'Sum of the quantity, by feature',
    quantity_mins   Array(Decimal(38, 9)) COMMENT 'Smallest quantity, by feature',
    quantity_maxs   Array(Decimal(38, 9)) COMMENT 'Largest quantity, by feature',
    latests         Array(AggregateFunction(argMax, Decimal(38, 9), UInt256)) COMMENT 'Quantity of the last event, by feature',
    dimension_sums  Array(Decimal(76, 9)) COMMENT 'Sum of the number, by dimension; 0 for a string dimension',
    dimension_mins  Array(Decimal(38, 9)) COMMENT 'Smallest number, by dimension',
    dimension_maxs  Array(Decimal(38, 9)) COMMENT 'Largest number, by dimension'
)
ENGINE = Null
COMMENT 'Shapes of each block: feeds the rollups without customers by views; keeps no rows';

DROP VIEW IF EXISTS ingest_to_usage_15m;

DROP VIEW IF EXISTS ingest_to_usage_dimension_15m;

DROP VIEW IF EXISTS ingest_to_events_15m;

DROP VIEW IF EXISTS ingest_to_events_dimension_15m;

DROP VIEW IF EXISTS ingest_to_usage_client_day;

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_ingest_shapes_15m TO ingest_shapes_15m AS
SELECT
    account,
    event_name,
    toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC') AS bucket,
    meters.feature AS features,
    meters.rev AS revs,
    dims.name AS dimensions,
    dims.rev AS dimension_revs,
    dims.text AS texts,
    dims.is_number AS is_numbers,
    toInt64(count()) AS number,
    sum(toDecimal256(value, 9)) AS value_sum,
    min(value) AS value_min,
    max(value) AS value_max,
    sumForEach(CAST(meters.quantity, 'Array(Decimal(76, 9))')) AS quantity_sums,
    minForEach(meters.quantity) AS quantity_mins,
    maxForEach(meters.quantity) AS quantity_maxs,
    argMaxStateForEach(meters.quantity, arrayWithConstant(length(meters.quantity),
        bitShiftLeft(toUInt256(toUnixTimestamp64Micro(timestamp)), 202)
            + bitShiftLeft(toUInt256(toUnixTimestamp64Milli(append_time)), 160)
            + bitShiftLeft(toUInt256(epoch), 128)
            + bitShiftLeft(toUInt256(`partition`), 96)
            + bitShiftLeft(toUInt256(`offset`), 32)
            + line)) AS latests,
    sumForEach(CAST(dims.number, 'Array(Decimal(76, 9))')) AS dimension_sums,
    minForEach(dims.number) AS dimension_mins,
    maxForEach(dims.number) AS dimension_maxs
FROM ingest
WHERE kind = 'delta'
GROUP BY
    account,
    event_name,
    bucket,
    features,
    revs,
    dimensions,
    dimension_revs,
    texts,
    is_numbers
COMMENT 'Carries the shapes of each block to ingest_shapes_15m';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_usage_15m TO usage_15m AS
SELECT
    account,
    feature,
    rev,
    bucket,
    sum(number) AS events,
    sum(quantity_sum) AS total,
    min(quantity_min) AS min_value,
    max(quantity_max) AS max_value,
    argMaxMergeState(last) AS latest,
    toUInt64(0) AS withdrawn
FROM ingest_shapes_15m
ARRAY JOIN
    features AS feature,
    revs AS rev,
    quantity_sums AS quantity_sum,
    quantity_mins AS quantity_min,
    quantity_maxs AS quantity_max,
    latests AS last
GROUP BY
    account,
    feature,
    rev,
    bucket
COMMENT 'Carries each block to usage_15m';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_usage_dimension_15m TO usage_dimension_15m AS
SELECT
    account,
    feature,
    rev,
    dimension,
    dimension_rev,
    value,
    bucket,
    sum(number) AS events,
    sum(quantity_sum) AS total,
    min(quantity_min) AS min_value,
    max(quantity_max) AS max_value,
    toUInt64(0) AS withdrawn
FROM
(
    SELECT
        account,
        bucket,
        number,
        feature,
        rev,
        quantity_sum,
        quantity_min,
        quantity_max,
        dimensions,
        dimension_revs,
        texts,
        is_numbers
    FROM ingest_shapes_15m
    ARRAY JOIN
        features AS feature,
        revs AS rev,
        quantity_sums AS quantity_sum,
        quantity_mins AS quantity_min,
        quantity_maxs AS quantity_max
)
ARRAY JOIN
    dimensions AS dimension,
    dimension_revs AS dimension_rev,
    texts AS value,
    is_numbers AS is_number
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

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_events_15m TO events_15m AS
SELECT
    account,
    event_name,
    bucket,
    sum(number) AS events,
    sum(value_sum) AS total,
    min(value_min) AS min_value,
    max(value_max) AS max_value,
    toUInt64(0) AS withdrawn
FROM ingest_shapes_15m
GROUP BY
    account,
    event_name,
    bucket
COMMENT 'Carries each block to events_15m';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_events_dimension_15m TO events_dimension_15m AS
SELECT
    account,
    event_name,
    dimension,
    dimension_rev,
    is_number,
    text,
    bucket,
    sum(number) AS events,
    sum(if(is_number = 1, dimension_sum, value_sum)) AS total,
    min(if(is_number = 1, dimension_min, value_min)) AS min_value,
    max(if(is_number = 1, dimension_max, value_max)) AS max_value,
    toUInt64(0) AS withdrawn
FROM ingest_shapes_15m
ARRAY JOIN
    dimensions AS dimension,
    dimension_revs AS dimension_rev,
    is_numbers AS is_number,
    texts AS text,
    dimension_sums AS dimension_sum,
    dimension_mins AS dimension_min,
    dimension_maxs AS dimension_max
GROUP BY
    account,
    event_name,
    dimension,
    dimension_rev,
    is_number,
    text,
    bucket
COMMENT 'Carries each block to events_dimension_15m';

-- Adds up by event before it unfolds the features: one look-up of a long key instead of one for each feature.
CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_usage_client_day TO usage_client_day AS
SELECT
    account,
    feature,
    rev,
    client_id,
    entity_id,
    day,
    number AS events,
    total,
    min_value,
    max_value,
    latest,
    toUInt64(0) AS withdrawn
FROM
(
    SELECT
        account,
        client_id,
        entity_id,
        toDate(timestamp) AS day,
        meters.feature AS features,
        meters.rev AS revs,
        toInt64(count()) AS number,
        sumForEach(CAST(meters.quantity, 'Array(Decimal(76, 9))')) AS totals,
        minForEach(meters.quantity) AS mins,
        maxForEach(meters.quantity) AS maxs,
        argMaxStateForEach(meters.quantity, arrayWithConstant(length(meters.quantity),
            bitShiftLeft(toUInt256(toUnixTimestamp64Micro(timestamp)), 202)
                + bitShiftLeft(toUInt256(toUnixTimestamp64Milli(append_time)), 160)
                + bitShiftLeft(toUInt256(epoch), 128)
                + bitShiftLeft(toUInt256(`partition`), 96)
                + bitShiftLeft(toUInt256(`offset`), 32)
                + line)) AS latests
    FROM ingest
    WHERE kind = 'delta'
    GROUP BY
        account,
        client_id,
        entity_id,
        day,
        features,
        revs
)
ARRAY JOIN
    features AS feature,
    revs AS rev,
    totals AS total,
    mins AS min_value,
    maxs AS max_value,
    latests AS latest
COMMENT 'Carries each block to usage_client_day';
