-- Events by dimension for people.
-- Rows of account '' are the worker's marks (pipeline.stages.sink), no usage.
CREATE VIEW IF NOT EXISTS v_events_by_dimension_daily
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
