-- Facts for people.
-- Rows of account '' are the worker's marks (pipeline.stages.sink), no usage.
CREATE VIEW IF NOT EXISTS v_events
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
