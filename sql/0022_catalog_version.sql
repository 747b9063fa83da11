-- Mirror of the catalog topic for SQL; the topic is the truth. How far the mirror is.
CREATE TABLE IF NOT EXISTS catalog_version
(
    topic      String COMMENT 'Catalog topic',
    version    Int64 COMMENT 'Offset up to which the mirror is complete; -1 for an empty catalog',
    written_at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When the row was written'
)
ENGINE = ${REPLICATED}ReplacingMergeTree(version)
ORDER BY (topic)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Version of the mirrored catalog; read it with FINAL';
