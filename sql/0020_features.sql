-- Mirror of the catalog topic for SQL; the topic is the truth. Every revision is a row.
CREATE TABLE IF NOT EXISTS features
(
    account           String COMMENT 'Account',
    id                String COMMENT 'Feature',
    rev               UInt64 COMMENT 'Offset of the record in the catalog topic',
    name              String COMMENT 'Name for people',
    type              Enum8('BINARY' = 1, 'CONSUMABLE' = 2) COMMENT 'BINARY or CONSUMABLE',
    unit_label        String COMMENT 'Unit, singular',
    unit_label_plural String COMMENT 'Unit, plural',
    metadata          String COMMENT 'JSON object that the account keeps with it',
    event_names       Array(String) COMMENT 'Event names that feed the feature',
    aggregation       Enum8('sum' = 1, 'count' = 2, 'max' = 3, 'min' = 4, 'latest' = 5, 'unique' = 6, 'average' = 7) COMMENT 'How quantities become usage',
    value_key         String COMMENT 'Dotted path in data that the quantity is taken from, or empty',
    unique_key        String COMMENT 'Dotted path in data whose distinct values are counted, or empty',
    filter            String COMMENT 'JSON object: dotted path in data to the values that let an event through',
    effective_from    DateTime64(6, 'UTC') COMMENT 'Timestamp of events from which the revision holds',
    archived          UInt8 COMMENT '1: meters nothing from then on'
)
ENGINE = ${REPLICATED}ReplacingMergeTree
ORDER BY (account, id, rev)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Features, all revisions';
