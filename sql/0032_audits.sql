-- Results of the running audit (`tally auditor`): proof over time that nothing drifts, and where the next quick one goes
-- on. One row an audit.
CREATE TABLE IF NOT EXISTS audits
(
    topic      String COMMENT 'Events topic',
    at         DateTime64(3, 'UTC') COMMENT 'When the audit ended',
    scope      Enum8('full' = 1, 'quick' = 2) COMMENT 'full: the whole store; quick: what was counted since the last clean audit',
    drift      UInt64 COMMENT 'Broken promises; 0 when all hold',
    events     UInt64 COMMENT 'Events of the blocks that were looked at',
    accepted   UInt64 COMMENT 'Of them counted',
    duplicates UInt64 COMMENT 'Of them seen before with the same content',
    conflicts  UInt64 COMMENT 'Of them seen before with other content',
    rejected   UInt64 COMMENT 'Of them refused',
    rerouted   UInt64 COMMENT 'Of them sent on to the partition of their id',
    blocks     UInt64 COMMENT 'Blocks that were looked at',
    cells      UInt64 COMMENT 'Cells of rollups that were recomputed (full) or marks that were counted (quick)',
    seconds    Float64 COMMENT 'How long the audit took',
    findings   Array(String) COMMENT 'The first broken promises: check, place and what is wrong',
    state      String COMMENT 'JSON: ends of the partitions and blocks by month, from which the next quick audit goes on; empty when it found drift'
)
ENGINE = ${REPLICATED}MergeTree
ORDER BY (topic, at)
TTL toDateTime(at) + INTERVAL 90 DAY
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Results of the running audit, kept for 90 days';

CREATE VIEW IF NOT EXISTS v_audits
(
    at       DateTime64(3, 'UTC') COMMENT 'When the audit ended',
    scope    String COMMENT 'full: the whole store; quick: what was counted since the last clean audit',
    drift    UInt64 COMMENT 'Broken promises; 0 when all hold',
    events   UInt64 COMMENT 'Events of the blocks that were looked at',
    blocks   UInt64 COMMENT 'Blocks that were looked at',
    seconds  Float64 COMMENT 'How long the audit took',
    findings Array(String) COMMENT 'The first broken promises: check, place and what is wrong'
)
AS
SELECT
    at,
    toString(scope) AS scope,
    drift,
    events,
    blocks,
    seconds,
    findings
FROM audits
ORDER BY at DESC
COMMENT 'Audits of the last 90 days, newest first';
