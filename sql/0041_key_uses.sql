-- When a key was last used, by each process of the API every half minute; not in the catalog, whose versions workers
-- wait for.
CREATE TABLE IF NOT EXISTS key_uses
(
    account String COMMENT 'Account that the key acts for',
    hash    String COMMENT 'Hash of the key, hexadecimal',
    used    DateTime('UTC') COMMENT 'When it was used, to the minute'
)
ENGINE = ${REPLICATED}ReplacingMergeTree(used)
ORDER BY (account, hash)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Last use of each API key; read it with max(used)';
