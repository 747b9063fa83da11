-- Lives of the events topic: tells a new topic from lost offsets.
CREATE TABLE IF NOT EXISTS epochs
(
    topic        String COMMENT 'Events topic',
    epoch        UInt32 COMMENT 'Number of the life, from 0',
    `partition`  UInt32 COMMENT 'Partition',
    topic_id     String COMMENT 'Id that Kafka gave the topic',
    partitions   UInt32 COMMENT 'Number of partitions',
    first_offset UInt64 COMMENT 'First offset that is counted',
    started_at   DateTime64(3, 'UTC') COMMENT 'When the epoch began'
)
ENGINE = ${REPLICATED}ReplacingMergeTree(started_at)
ORDER BY (topic, epoch, `partition`)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Epochs of the events topic; read it with FINAL';
