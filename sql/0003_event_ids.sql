-- The first position of every id, for ever: what the dedup table is looked up in where expiry may have taken an id,
-- and what it is rebuilt from. No raw id is kept, so a deleted customer leaves none.
CREATE TABLE IF NOT EXISTS event_ids
(
    `partition`  UInt32 COMMENT 'Partition of the events topic; an id always lies in the same one',
    id_hash      UInt128 COMMENT 'xxh3_128 of the length-prefixed account and transaction_id',
    epoch        UInt32 COMMENT 'Epoch of the first sighting',
    `offset`     UInt64 COMMENT 'Offset of the first sighting',
    line         UInt32 COMMENT 'Line of the first sighting',
    content_hash UInt64 COMMENT 'Hash of the canonical content',
    append_time  DateTime64(3, 'UTC') COMMENT 'When Kafka appended the first sighting'
)
ENGINE = ${REPLICATED}MergeTree
ORDER BY (`partition`, id_hash)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'First position of every counted id, kept for ever';

CREATE MATERIALIZED VIEW IF NOT EXISTS ingest_to_event_ids TO event_ids AS
SELECT
    `partition`,
    id_hash,
    epoch,
    `offset`,
    line,
    content_hash,
    append_time
FROM ingest
COMMENT 'Carries the ids of each block to event_ids';
