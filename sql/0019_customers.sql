-- Mirror of the catalog topic for SQL; the topic is the truth. 
CREATE TABLE IF NOT EXISTS customers
(
    account  String COMMENT 'Account',
    id       String COMMENT 'Customer, the client_id of events',
    name     String COMMENT 'Name for people',
    email    String COMMENT 'E-mail address, or empty',
    metadata String COMMENT 'JSON object that the account keeps with it',
    created  DateTime64(6, 'UTC') COMMENT 'When the customer was made',
    rev      UInt64 COMMENT 'Offset of the record in the catalog topic',
    deleted  UInt8 COMMENT '1: the record was removed'
)
ENGINE = ${REPLICATED}ReplacingMergeTree(rev, deleted)
ORDER BY (account, id)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Customers; read it with FINAL';
