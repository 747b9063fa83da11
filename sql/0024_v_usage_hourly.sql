-- Account-wide usage for people, by UTC hour.
-- Rows of account '' are the worker's marks (pipeline.stages.sink), no usage.
CREATE VIEW IF NOT EXISTS v_usage_hourly
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
