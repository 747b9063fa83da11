-- Blocks of which the tables that get rows of few blocks get nothing (sets, distinct values, the ends of months) pass
-- those by: views of tables that get nothing are planned and marked like any other, which was a fifth of what a small
-- insert costs the store. Such a block goes to `ingest_plain`, from which all other tables are fed; any other one to
-- `ingest`, which feeds the sparse tables and passes it on. Views keep their names, which tokens go by; what comes by way
-- of `ingest` comes through one view more, which makes other tokens, so `tally migrate` first waits for what is under way.
CREATE TABLE IF NOT EXISTS ingest_plain AS ingest
ENGINE = Null
COMMENT 'Entry of blocks that no sparse table gets anything of: feeds events, event_ids and the rollups that every block reaches; keeps no rows';

-- Blocks of before have marks in every table.
ALTER TABLE blocks ADD COLUMN IF NOT EXISTS sparse UInt8 DEFAULT 1 COMMENT '1: the block is marked in the sparse tables too' AFTER rules;

DROP VIEW IF EXISTS ingest_to_events;

DROP VIEW IF EXISTS ingest_to_event_ids;

DROP VIEW IF EXISTS ingest_to_events_client_day;

DROP VIEW IF EXISTS ingest_to_usage_client_day;

DROP VIEW IF EXISTS ingest_to_ingest_shapes_15m;

DROP VIEW IF EXISTS ingest_to_usage_client_edge_15m;

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_ingest_plain TO ingest_plain AS
SELECT *
FROM ingest
COMMENT 'Carries a block on to the tables that every block reaches';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_events TO events AS
SELECT
    account,
    client_id,
    entity_id,
    timestamp,
    append_time,
    transaction_id,
    id_hash,
    event_name,
    feature_id,
    kind,
    target_id,
    value,
    data,
    `meters.feature`,
    `meters.rev`,
    `meters.quantity`,
    `meters.distinct_hash`,
    `dims.name`,
    `dims.rev`,
    `dims.text`,
    `dims.number`,
    `dims.is_number`,
    catalog_version,
    epoch,
    `partition`,
    `offset`,
    line,
    block_start
FROM ingest_plain
COMMENT 'Carries each block to events';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_event_ids TO event_ids AS
SELECT
    `partition`,
    id_hash,
    epoch,
    `offset`,
    line,
    content_hash,
    append_time
FROM ingest_plain
COMMENT 'Carries the ids of each block to event_ids';

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
FROM ingest_plain
WHERE kind = 'delta'
GROUP BY
    account,
    event_name,
    client_id,
    entity_id,
    day
COMMENT 'Carries each block to events_client_day';

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
    FROM ingest_plain
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
FROM ingest_plain
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

-- Marks pass whenever they are, but those of blocks that are not marked here, which have no distinct value.
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
    meters.quantity AS quantity,
    meters.distinct_hash AS distinct_hash
WHERE kind = 'delta'
    AND if(account = '', distinct_hash != 0, toYYYYMM(timestamp + INTERVAL 14 HOUR) != toYYYYMM(timestamp - INTERVAL 12 HOUR))
GROUP BY
    account,
    feature,
    rev,
    bucket,
    client_id,
    entity_id
COMMENT 'Carries each block to usage_client_edge_15m';
