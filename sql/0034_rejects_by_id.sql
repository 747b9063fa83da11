-- What a receipt and a replay need of a refused line: every fault with its field, the record's headers, and its id.
ALTER TABLE rejects
    ADD COLUMN IF NOT EXISTS `errors.field` Array(String) COMMENT 'Field of each fault, or empty',
    ADD COLUMN IF NOT EXISTS `errors.code` Array(String) COMMENT 'Stable code of each fault',
    ADD COLUMN IF NOT EXISTS `errors.message` Array(String) COMMENT 'Each fault in words',
    ADD COLUMN IF NOT EXISTS `headers.name` Array(String) COMMENT 'Names of the record''s headers',
    ADD COLUMN IF NOT EXISTS `headers.value` Array(String) COMMENT 'Values of the record''s headers; any bytes',
    ADD COLUMN IF NOT EXISTS id_hash UInt128 COMMENT 'xxh3_128 of the length-prefixed account and transaction_id; 0 where no id could be read';

ALTER TABLE rejects ADD INDEX IF NOT EXISTS rejects_by_id id_hash TYPE bloom_filter(0.01) GRANULARITY 1;
