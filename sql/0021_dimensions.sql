-- Mirror of the catalog topic for SQL; the topic is the truth. Every revision is a row.
CREATE TABLE IF NOT EXISTS dimensions
(
    account        String COMMENT 'Account',
    key            String COMMENT 'Dotted path in data',
    rev            UInt64 COMMENT 'Offset of the record in the catalog topic',
    type           Enum8('string' = 1, 'number' = 2) COMMENT 'string: grouped by; number: summed, min, max, averaged',
    effective_from DateTime64(6, 'UTC') COMMENT 'Timestamp of events from which the revision holds',
    archived       UInt8 COMMENT '1: aggregated no more from then on'
)
ENGINE = ${REPLICATED}ReplacingMergeTree
ORDER BY (account, key, rev)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Dimensions, all revisions';
