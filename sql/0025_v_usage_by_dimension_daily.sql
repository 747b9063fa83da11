-- Account-wide usage for people, by the values of string dimensions.
-- Rows of account '' are the worker's marks (pipeline.stages.sink), no usage.
CREATE VIEW IF NOT EXISTS v_usage_by_dimension_daily
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
