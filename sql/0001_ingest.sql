-- The one table that blocks are inserted into. It keeps nothing: views carry each block on to facts, ids and
-- rollups, under one token. A request that arrives past its deadline is refused as a whole.
CREATE TABLE IF NOT EXISTS ingest
(
    account                String COMMENT 'Tenant, taken from the API key or the record header',
    client_id              String COMMENT 'Customer, as the account names it',
    entity_id              String COMMENT 'Part of the customer (seat, workspace, project); empty when none was sent',
    timestamp              DateTime64(6, 'UTC') COMMENT 'When the use happened, as sent',
    append_time            DateTime64(3, 'UTC') COMMENT 'When Kafka appended the record; no other clock touches a row',
    transaction_id         String COMMENT 'Idempotency key of the event',
    id_hash                UInt128 COMMENT 'xxh3_128 of the length-prefixed account and transaction_id',
    event_name             String COMMENT 'Event name as sent; empty when none was sent',
    feature_id             String COMMENT 'Feature as sent by the door; empty when none was sent',
    kind                   Enum8('delta' = 1, 'set' = 2, 'void' = 3, 'amend' = 4) COMMENT 'What the event does to usage; only delta is counted by the rollups',
    target_id              String COMMENT 'transactionId that a void or amend names; empty otherwise',
    value                  Decimal(38, 9) COMMENT 'Value as sent, 1 when none was sent',
    data                   String COMMENT 'Data of the event, JSON as sent; empty when none was sent',
    `meters.feature`       Array(String) COMMENT 'Features that the event is metered by',
    `meters.rev`           Array(UInt64) COMMENT 'Revision of each feature: the catalog offset that defined it',
    `meters.quantity`      Array(Decimal(38, 9)) COMMENT 'What the event adds to each feature',
    `meters.distinct_hash` Array(UInt128) COMMENT 'Hash of the counted value for features that count distinct values, else 0',
    `dims.name`            Array(String) COMMENT 'Declared dimensions that the event carries',
    `dims.rev`             Array(UInt64) COMMENT 'Revision of each dimension: the catalog offset that declared it',
    `dims.text`            Array(String) COMMENT 'Value of a string dimension, empty for a number dimension',
    `dims.number`          Array(Decimal(38, 9)) COMMENT 'Value of a number dimension, 0 for a string dimension',
    `dims.is_number`       Array(UInt8) COMMENT '1 for a number dimension, 0 for a string dimension',
    catalog_version        Int64 COMMENT 'Version of the catalog that mapped the event',
    epoch                  UInt32 COMMENT 'Epoch of the events topic',
    `partition`            UInt32 COMMENT 'Partition of the events topic',
    `offset`               UInt64 COMMENT 'Offset of the record',
    line                   UInt32 COMMENT 'Line within the record, from 0',
    block_start            UInt64 COMMENT 'First offset of the block that stored the event',
    content_hash           UInt64 COMMENT 'Hash of the canonical content: tells a duplicate from a conflict',
    deadline               DateTime64(3, 'UTC') COMMENT 'The server refuses rows that arrive later than this',
    CONSTRAINT in_time CHECK deadline >= now64(3)
)
ENGINE = Null
COMMENT 'Entry of blocks: feeds events, event_ids, sets and every rollup by views; keeps no rows';
