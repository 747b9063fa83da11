-- Mirror of the catalog topic for SQL; the topic is the truth. Latest revision of each account with FINAL.
CREATE TABLE IF NOT EXISTS accounts
(
    id   String COMMENT 'Account',
    name String COMMENT 'Name for people',
    mode Enum8('live' = 1, 'test' = 2) COMMENT 'Live, or a test account beside it',
    rev  UInt64 COMMENT 'Offset of the record in the catalog topic'
)
ENGINE = ${REPLICATED}ReplacingMergeTree(rev)
ORDER BY (id)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Accounts; read it with FINAL';
