-- The same cells, made in two steps: the events of a block have few combinations of features and dimensions, so they are
-- summed by whole combinations before these are taken apart into features and dimensions.
ALTER TABLE ingest_to_usage_dimension_15m MODIFY QUERY
SELECT
    account,
    feature,
    rev,
    dimension,
    dimension_rev,
    value,
    bucket,
    toInt64(sum(number)) AS events,
    sum(part) AS total,
    min(smallest) AS min_value,
    max(largest) AS max_value,
    toUInt64(0) AS withdrawn
FROM
(
    SELECT
        account,
        bucket,
        feature,
        rev,
        dims.name,
        dims.rev,
        dims.text,
        dims.is_number,
        number,
        part,
        smallest,
        largest
    FROM
    (
        SELECT
            account,
            toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC') AS bucket,
            meters.feature,
            meters.rev,
            dims.name,
            dims.rev,
            dims.text,
            dims.is_number,
            count() AS number,
            sumForEach(arrayMap(quantity -> toDecimal256(quantity, 9), meters.quantity)) AS parts,
            minForEach(meters.quantity) AS smallest_each,
            maxForEach(meters.quantity) AS largest_each
        FROM ingest
        WHERE kind = 'delta'
        GROUP BY
            account,
            bucket,
            meters.feature,
            meters.rev,
            dims.name,
            dims.rev,
            dims.text,
            dims.is_number
    )
    ARRAY JOIN
        meters.feature AS feature,
        meters.rev AS rev,
        parts AS part,
        smallest_each AS smallest,
        largest_each AS largest
)
ARRAY JOIN
    dims.name AS dimension,
    dims.rev AS dimension_rev,
    dims.text AS value,
    dims.is_number AS is_number
WHERE is_number = 0
GROUP BY
    account,
    feature,
    rev,
    dimension,
    dimension_rev,
    value,
    bucket;
