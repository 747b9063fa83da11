-- The ledger: what each block is, written before the block is inserted. The same block written again replaces itself.
CREATE TABLE IF NOT EXISTS blocks
(
    topic           String COMMENT 'Events topic',
    epoch           UInt32 COMMENT 'Epoch of the topic',
    `partition`     UInt32 COMMENT 'Partition of the topic',
    `start`         UInt64 COMMENT 'First offset of the block',
    `end`           UInt64 COMMENT 'Offset after the last one of the block',
    month           UInt32 COMMENT '0: the block itself with its counts; else YYYYMM of the timestamps that this row sums up',
    events          UInt64 COMMENT 'Events that the block read; 0 in the row of a month',
    accepted        UInt64 COMMENT 'Events counted; 0 in the row of a month',
    duplicates      UInt64 COMMENT 'Events seen before with the same content; 0 in the row of a month',
    conflicts       UInt64 COMMENT 'Events seen before with other content; 0 in the row of a month',
    rejected        UInt64 COMMENT 'Lines refused; 0 in the row of a month',
    rerouted        UInt64 COMMENT 'Events sent on to the partition of their id; 0 in the row of a month',
    rows            UInt64 COMMENT 'Rows stored in facts',
    value_sum       Decimal(76, 9) COMMENT 'Sum of their value',
    id_hash_sum     UInt128 COMMENT 'Sum of their id_hash, wrapping at 2^128',
    crc             UInt64 COMMENT 'Checksum over rows and verdicts, as in the intent',
    catalog_version Int64 COMMENT 'Version of the catalog that mapped the block',
    rules           UInt32 COMMENT 'Version of the worker''s stages',
    stated_at       DateTime64(3, 'UTC') COMMENT 'When the intent was stated',
    append_time_max DateTime64(3, 'UTC') COMMENT 'Latest append time in the block',
    written_at      DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When the row was written'
)
ENGINE = ${REPLICATED}ReplacingMergeTree(written_at)
ORDER BY (topic, epoch, `partition`, `start`, month)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Ledger of blocks: one row a block and one more for each month in it; read it with FINAL';
