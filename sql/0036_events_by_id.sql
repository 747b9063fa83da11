-- A fact by its id, wherever its customer and its month are: for receipts. Parts that were there before are read whole
-- until they merge, or until ALTER TABLE events MATERIALIZE INDEX events_by_id.
ALTER TABLE events ADD INDEX IF NOT EXISTS events_by_id id_hash TYPE bloom_filter(0.01) GRANULARITY 1;
