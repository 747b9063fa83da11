-- Events by name for people: also those that no feature meters.
-- Rows of account '' are the worker's marks (pipeline.stages.sink), no usage.
CREATE VIEW IF NOT EXISTS v_events_daily
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
