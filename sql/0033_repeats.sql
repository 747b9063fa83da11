-- Every line that came again, duplicate or conflict, by position: what a receipt's "times seen" is read from. Hashes
-- only, so that a deleted customer leaves no id. Kept for ever; whoever wants less sets a TTL on append_time, and the
-- audit's check `repeats` then names the blocks whose rows have gone.
CREATE TABLE IF NOT EXISTS repeats
(
    topic       String COMMENT 'Events topic',
    epoch       UInt32 COMMENT 'Epoch of the topic',
    `partition` UInt32 COMMENT 'Partition of the topic',
    `offset`    UInt64 COMMENT 'Offset of the record',
    line        UInt32 COMMENT 'Line within the record, from 0',
    id_hash     UInt128 COMMENT 'xxh3_128 of the length-prefixed account and transaction_id',
    verdict     Enum8('duplicate' = 1, 'conflict' = 2) COMMENT 'duplicate: seen before with the same content; conflict: with other content',
    append_time DateTime64(3, 'UTC') COMMENT 'When Kafka appended the record',
    block_start UInt64 COMMENT 'First offset of the block that judged the line'
)
ENGINE = ${REPLICATED}ReplacingMergeTree
PARTITION BY toYYYYMM(append_time)
ORDER BY (id_hash, topic, epoch, `partition`, `offset`, line)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Duplicates and conflicts by position, sorted by id; read it with FINAL';

ALTER TABLE blocks ADD COLUMN IF NOT EXISTS repeats_kept UInt8 DEFAULT 0 COMMENT '1: the block''s duplicates and conflicts are in repeats; 0: counted before that table was there' AFTER rerouted;
