-- Lines that are not counted because they are wrong, with their bytes, position and reason. Idempotent by position.
CREATE TABLE IF NOT EXISTS rejects
(
    account        String COMMENT 'Tenant of the record',
    topic          String COMMENT 'Events topic',
    epoch          UInt32 COMMENT 'Epoch of the topic',
    `partition`    UInt32 COMMENT 'Partition',
    `offset`       UInt64 COMMENT 'Offset of the record',
    line           UInt32 COMMENT 'Line within the record, from 0',
    verdict        Enum8('rejected' = 1, 'conflict' = 2) COMMENT 'rejected: not a valid event; conflict: an id seen before with other content',
    reason         String COMMENT 'Stable code of the reason',
    message        String COMMENT 'The reason in words',
    field          String COMMENT 'Field at fault, or empty',
    transaction_id String COMMENT 'Id of the event, where it could be read',
    bytes          String COMMENT 'The line as it came; any bytes',
    append_time    DateTime64(3, 'UTC') COMMENT 'When Kafka appended the record'
)
ENGINE = ${REPLICATED}ReplacingMergeTree(append_time)
ORDER BY (topic, epoch, `partition`, `offset`, line)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Refused lines and conflicts; read it with FINAL';
