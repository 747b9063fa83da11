-- A key that was rotated stays good for a while; a key may have a limit of its own.
ALTER TABLE keys
    ADD COLUMN IF NOT EXISTS expires Nullable(DateTime64(6, 'UTC')) COMMENT 'Until when it is good, NULL for ever',
    ADD COLUMN IF NOT EXISTS events_per_s Nullable(UInt32) COMMENT 'Events per second and process of the API; 0 for no limit, NULL for the default',
    ADD COLUMN IF NOT EXISTS burst Nullable(UInt32) COMMENT 'Events at once above that; NULL for ten seconds of them';
