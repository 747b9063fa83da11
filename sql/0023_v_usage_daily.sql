-- Usage for people: states merged, all revisions of a feature together.
-- Rows of account '' are the worker's marks (pipeline.stages.sink), no usage.
CREATE VIEW IF NOT EXISTS v_usage_daily
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
