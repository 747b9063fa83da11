-- How far each partition is counted; written by the workers every second, on idle partitions too.
CREATE TABLE IF NOT EXISTS progress
(
    topic          String COMMENT 'Events topic',
    `partition`    UInt32 COMMENT 'Partition',
    epoch          UInt32 COMMENT 'Epoch of the topic',
    complete_until DateTime64(3, 'UTC') COMMENT 'Every event acknowledged before this is counted',
    position       UInt64 COMMENT 'Offset up to which everything is counted',
    `end`          UInt64 COMMENT 'End of the partition when it was looked at',
    written_at     DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When the row was written'
)
ENGINE = ${REPLICATED}ReplacingMergeTree(written_at)
ORDER BY (topic, `partition`)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Progress of each partition; read it with FINAL';
