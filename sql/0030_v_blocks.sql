-- The ledger for people.
CREATE VIEW IF NOT EXISTS v_blocks
(
    topic           String COMMENT 'Events topic',
    epoch           UInt32 COMMENT 'Epoch',
    `partition`     UInt32 COMMENT 'Partition',
    `start`         UInt64 COMMENT 'First offset',
    `end`           UInt64 COMMENT 'Offset after the last one',
    events          UInt64 COMMENT 'Events read',
    accepted        UInt64 COMMENT 'Counted',
    duplicates      UInt64 COMMENT 'Seen before, same content',
    conflicts       UInt64 COMMENT 'Seen before, other content',
    rejected        UInt64 COMMENT 'Refused',
    rerouted        UInt64 COMMENT 'Sent on to the partition of their id',
    catalog_version Int64 COMMENT 'Catalog that mapped the block',
    stated_at       DateTime64(3, 'UTC') COMMENT 'When the intent was stated',
    append_time_max DateTime64(3, 'UTC') COMMENT 'Latest append time in the block'
)
AS
SELECT
    topic,
    epoch,
    `partition`,
    `start`,
    `end`,
    events,
    accepted,
    duplicates,
    conflicts,
    rejected,
    rerouted,
    catalog_version,
    stated_at,
    append_time_max
FROM blocks
FINAL
WHERE month = 0
COMMENT 'Blocks with their verdicts, one row each';
