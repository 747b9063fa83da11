-- Ranges of the events topic that were given up: deleted before they were counted, and skipped by a person.
CREATE TABLE IF NOT EXISTS gaps
(
    topic       String COMMENT 'Events topic',
    epoch       UInt32 COMMENT 'Epoch of the topic',
    `partition` UInt32 COMMENT 'Partition of the topic',
    `start`     UInt64 COMMENT 'First offset that was given up',
    `end`       UInt64 COMMENT 'First offset after them, where the workers go on',
    reason      String COMMENT 'Why, in the words of whoever gave them up',
    told_by     String COMMENT 'User and host that gave them up',
    told_at     DateTime64(3, 'UTC') COMMENT 'When they were given up'
)
ENGINE = ${REPLICATED}ReplacingMergeTree(told_at)
ORDER BY (topic, epoch, `partition`, `start`)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Ranges given up by `tally offsets skip`, one row each; the ledger has each of them too, with rules 0';
