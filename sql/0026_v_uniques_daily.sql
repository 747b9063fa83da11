-- Distinct values for people.
-- Rows of account '' are the worker's marks (pipeline.stages.sink), no usage.
CREATE VIEW IF NOT EXISTS v_uniques_daily
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
