-- Opt-in, see README "Queries": one customer's hours, days and periods in any zone, for customers with many events. Facts of
-- one customer with the same features as one row for each quarter of an hour. Parts keep it true by themselves: it needs
-- no marks, no audit and no repair. The quarter is one function of the timestamp and stands behind the customer, and marks
-- are neither many nor far apart: what a statement takes is mostly to find them. DROP takes away what former versions made
-- of other expressions; MATERIALIZE makes it for the facts that are there.
ALTER TABLE events DROP PROJECTION IF EXISTS usage_customer_15m;

ALTER TABLE events ADD PROJECTION IF NOT EXISTS usage_customer_15m
(
    SELECT
        account,
        kind,
        client_id,
        toStartOfFifteenMinutes(timestamp),
        entity_id,
        `meters.feature`,
        count(),
        sumForEach(CAST(`meters.quantity`, 'Array(Decimal(76, 9))'))
    GROUP BY
        account,
        kind,
        client_id,
        toStartOfFifteenMinutes(timestamp),
        entity_id,
        `meters.feature`
) WITH SETTINGS (index_granularity = 1024);

ALTER TABLE events MATERIALIZE PROJECTION usage_customer_15m;
