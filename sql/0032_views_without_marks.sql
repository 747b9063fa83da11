-- The worker marks each block and month in every table by a row of account '' (pipeline.stages.sink). Those rows are no
-- usage: the views for people leave them out.
CREATE OR REPLACE VIEW v_usage_daily
(
    account   String COMMENT 'Tenant',
    feature   String COMMENT 'Feature',
    client_id String COMMENT 'Customer',
    entity_id String COMMENT 'Part of the customer, or empty',
    day       Date COMMENT 'UTC day',
    events    Int64 COMMENT 'Number of events',
    total     Decimal(76, 9) COMMENT 'Sum of the quantity',
    smallest  Decimal(38, 9) COMMENT 'Smallest quantity',
    largest   Decimal(38, 9) COMMENT 'Largest quantity',
    latest    Decimal(38, 9) COMMENT 'Quantity of the last event'
)
AS
SELECT
    r.account AS account,
    r.feature AS feature,
    r.client_id AS client_id,
    r.entity_id AS entity_id,
    r.day AS day,
    sum(r.events) AS events,
    sum(r.total) AS total,
    min(r.min_value) AS smallest,
    max(r.max_value) AS largest,
    argMaxMerge(r.latest) AS latest
FROM usage_client_day AS r
WHERE r.account != ''
GROUP BY
    account,
    feature,
    client_id,
    entity_id,
    day
COMMENT 'Usage of each feature by customer and UTC day';

CREATE OR REPLACE VIEW v_usage_hourly
(
    account  String COMMENT 'Tenant',
    feature  String COMMENT 'Feature',
    hour     DateTime('UTC') COMMENT 'Start of the UTC hour',
    events   Int64 COMMENT 'Number of events',
    total    Decimal(76, 9) COMMENT 'Sum of the quantity',
    smallest Decimal(38, 9) COMMENT 'Smallest quantity',
    largest  Decimal(38, 9) COMMENT 'Largest quantity',
    latest   Decimal(38, 9) COMMENT 'Quantity of the last event'
)
AS
SELECT
    r.account AS account,
    r.feature AS feature,
    toStartOfHour(r.bucket) AS hour,
    sum(r.events) AS events,
    sum(r.total) AS total,
    min(r.min_value) AS smallest,
    max(r.max_value) AS largest,
    argMaxMerge(r.latest) AS latest
FROM usage_15m AS r
WHERE r.account != ''
GROUP BY
    account,
    feature,
    hour
COMMENT 'Usage of each feature, account-wide, by UTC hour';

CREATE OR REPLACE VIEW v_usage_by_dimension_daily
(
    account   String COMMENT 'Tenant',
    feature   String COMMENT 'Feature',
    dimension String COMMENT 'Declared dimension',
    value     String COMMENT 'Value of the dimension',
    day       Date COMMENT 'UTC day',
    events    Int64 COMMENT 'Number of events',
    total     Decimal(76, 9) COMMENT 'Sum of the quantity',
    smallest  Decimal(38, 9) COMMENT 'Smallest quantity',
    largest   Decimal(38, 9) COMMENT 'Largest quantity'
)
AS
SELECT
    r.account AS account,
    r.feature AS feature,
    r.dimension AS dimension,
    r.value AS value,
    toDate(r.bucket) AS day,
    sum(r.events) AS events,
    sum(r.total) AS total,
    min(r.min_value) AS smallest,
    max(r.max_value) AS largest
FROM usage_dimension_15m AS r
WHERE r.account != ''
GROUP BY
    account,
    feature,
    dimension,
    value,
    day
COMMENT 'Usage of each feature by dimension value and UTC day';

CREATE OR REPLACE VIEW v_uniques_daily
(
    account   String COMMENT 'Tenant',
    feature   String COMMENT 'Feature',
    client_id String COMMENT 'Customer',
    entity_id String COMMENT 'Part of the customer, or empty',
    day       Date COMMENT 'UTC day',
    uniques   UInt64 COMMENT 'Number of distinct values, exact'
)
AS
SELECT
    account,
    feature,
    client_id,
    entity_id,
    day,
    uniqExact(distinct_hash) AS uniques
FROM
(
    SELECT
        account,
        feature,
        client_id,
        entity_id,
        day,
        distinct_hash
    FROM usage_uniques_client_day
    WHERE account != ''
    GROUP BY
        account,
        feature,
        client_id,
        entity_id,
        day,
        distinct_hash
    HAVING sum(events) > 0
)
GROUP BY
    account,
    feature,
    client_id,
    entity_id,
    day
COMMENT 'Distinct values of each feature by customer and UTC day';

CREATE OR REPLACE VIEW v_events_daily
(
    account    String COMMENT 'Tenant',
    event_name String COMMENT 'Event name, empty for events without one',
    client_id  String COMMENT 'Customer',
    entity_id  String COMMENT 'Part of the customer, or empty',
    day        Date COMMENT 'UTC day',
    events     Int64 COMMENT 'Number of events',
    total      Decimal(76, 9) COMMENT 'Sum of the quantity',
    smallest   Decimal(38, 9) COMMENT 'Smallest quantity',
    largest    Decimal(38, 9) COMMENT 'Largest quantity'
)
AS
SELECT
    r.account AS account,
    r.event_name AS event_name,
    r.client_id AS client_id,
    r.entity_id AS entity_id,
    r.day AS day,
    sum(r.events) AS events,
    sum(r.total) AS total,
    min(r.min_value) AS smallest,
    max(r.max_value) AS largest
FROM events_client_day AS r
WHERE r.account != ''
GROUP BY
    account,
    event_name,
    client_id,
    entity_id,
    day
COMMENT 'Events by name, customer and UTC day';

CREATE OR REPLACE VIEW v_events_by_dimension_daily
(
    account    String COMMENT 'Tenant',
    event_name String COMMENT 'Event name, empty for events without one',
    dimension  String COMMENT 'Declared dimension',
    is_number  UInt8 COMMENT '1: sums of the number dimension itself; 0: of the event value',
    text       String COMMENT 'Value of a string dimension, empty for a number dimension',
    day        Date COMMENT 'UTC day',
    events     Int64 COMMENT 'Number of events',
    total      Decimal(76, 9) COMMENT 'Sum of the quantity',
    smallest   Decimal(38, 9) COMMENT 'Smallest quantity',
    largest    Decimal(38, 9) COMMENT 'Largest quantity'
)
AS
SELECT
    r.account AS account,
    r.event_name AS event_name,
    r.dimension AS dimension,
    r.is_number AS is_number,
    r.text AS text,
    toDate(r.bucket) AS day,
    sum(r.events) AS events,
    sum(r.total) AS total,
    min(r.min_value) AS smallest,
    max(r.max_value) AS largest
FROM events_dimension_15m AS r
WHERE r.account != ''
GROUP BY
    account,
    event_name,
    dimension,
    is_number,
    text,
    day
COMMENT 'Events by name, dimension and UTC day';

CREATE OR REPLACE VIEW v_events
(
    account        String COMMENT 'Tenant',
    client_id      String COMMENT 'Customer',
    entity_id      String COMMENT 'Part of the customer, or empty',
    timestamp      DateTime64(6, 'UTC') COMMENT 'When the use happened',
    transaction_id String COMMENT 'Idempotency key',
    event_name     String COMMENT 'Event name as sent',
    feature_id     String COMMENT 'Feature as sent',
    value          Decimal(38, 9) COMMENT 'Value as sent',
    features       Array(String) COMMENT 'Features that meter the event; empty: unmapped',
    dimensions     Map(String, String) COMMENT 'String dimensions',
    data           String COMMENT 'Data of the event as sent',
    append_time    DateTime64(3, 'UTC') COMMENT 'When Kafka appended it',
    `partition`    UInt32 COMMENT 'Partition',
    `offset`       UInt64 COMMENT 'Offset',
    line           UInt32 COMMENT 'Line of the record'
)
AS
SELECT
    account,
    client_id,
    entity_id,
    timestamp,
    transaction_id,
    event_name,
    feature_id,
    value,
    meters.feature AS features,
    mapFromArrays(
        arrayFilter((name, is_number) -> is_number = 0, dims.name, dims.is_number),
        arrayFilter((text, is_number) -> is_number = 0, dims.text, dims.is_number)
    ) AS dimensions,
    data,
    append_time,
    `partition`,
    `offset`,
    line
FROM events
WHERE account != ''
COMMENT 'Every counted event';
