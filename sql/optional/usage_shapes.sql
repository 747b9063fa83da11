-- Opt-in, see README "Queries": questions by customer and dimension, or by several dimensions, over months in any zone.
-- Facts of one customer with the same dimensions and features as one row: for each quarter of an hour within the last 14
-- and the first 12 hours of a UTC month, and for all that lies between. Parts keep it true by themselves: it needs no
-- marks, no audit and no repair. Texts are LowCardinality: they are compared as numbers. DROP takes away what former
-- versions made of other expressions; MATERIALIZE makes it for the facts that are there.
ALTER TABLE events DROP PROJECTION IF EXISTS usage_shapes;

ALTER TABLE events ADD PROJECTION IF NOT EXISTS usage_shapes
(
    SELECT
        account,
        kind,
        if(toYYYYMM(timestamp + toIntervalHour(14)) != toYYYYMM(timestamp - toIntervalHour(12)), toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC'), toDateTime(toStartOfMonth(timestamp), 'UTC') + toIntervalHour(12)),
        client_id,
        entity_id,
        CAST(`meters.feature`, 'Array(LowCardinality(String))'),
        CAST(`dims.name`, 'Array(LowCardinality(String))'),
        CAST(`dims.text`, 'Array(LowCardinality(String))'),
        `dims.is_number`,
        count(),
        sumForEach(CAST(`meters.quantity`, 'Array(Decimal(76, 9))'))
    GROUP BY
        account,
        kind,
        if(toYYYYMM(timestamp + toIntervalHour(14)) != toYYYYMM(timestamp - toIntervalHour(12)), toDateTime(toStartOfFifteenMinutes(timestamp), 'UTC'), toDateTime(toStartOfMonth(timestamp), 'UTC') + toIntervalHour(12)),
        client_id,
        entity_id,
        CAST(`meters.feature`, 'Array(LowCardinality(String))'),
        CAST(`dims.name`, 'Array(LowCardinality(String))'),
        CAST(`dims.text`, 'Array(LowCardinality(String))'),
        `dims.is_number`
);

ALTER TABLE events MATERIALIZE PROJECTION usage_shapes;
