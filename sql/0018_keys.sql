-- Mirror of the catalog topic for SQL; the topic is the truth. Hashes only: a key itself is nowhere.
CREATE TABLE IF NOT EXISTS keys
(
    hash    String COMMENT 'Hash of the key, hexadecimal',
    account String COMMENT 'Account that the key acts for',
    name    String COMMENT 'Name for people',
    scopes  Array(String) COMMENT 'ingest, read, admin',
    hint    String COMMENT 'Last characters of the key',
    created DateTime64(6, 'UTC') COMMENT 'When the key was made',
    revoked Nullable(DateTime64(6, 'UTC')) COMMENT 'When it was revoked, NULL while it is good',
    rev     UInt64 COMMENT 'Offset of the record in the catalog topic',
    deleted UInt8 COMMENT '1: the record was removed'
)
ENGINE = ${REPLICATED}ReplacingMergeTree(rev, deleted)
ORDER BY (hash)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'API keys; read it with FINAL';
