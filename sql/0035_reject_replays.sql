-- Replays of refused lines, append-only: which line, when, how, and where what was sent lies. Noted as sent once Kafka
-- has acknowledged it: a crash in between leaves the reject open, and the next replay sends the same id, which counts
-- once. The id of a line that has none of its own is noted before (sent = 0), so that no later replay takes another.
CREATE TABLE IF NOT EXISTS reject_replays
(
    topic            String COMMENT 'Events topic of the reject',
    epoch            UInt32 COMMENT 'Epoch of the reject',
    `partition`      UInt32 COMMENT 'Partition of the reject',
    `offset`         UInt64 COMMENT 'Offset of the reject',
    line             UInt32 COMMENT 'Line of the reject within its record',
    replayed_at      DateTime64(3, 'UTC') COMMENT 'When it was sent again, by the clock of who sent it',
    transaction_id   String COMMENT 'Id that was sent: the line''s own, or one derived from its position',
    id_hash          UInt128 COMMENT 'xxh3_128 of the length-prefixed account and transaction_id',
    means            String COMMENT 'as it came, or what was mended',
    sent             UInt8 COMMENT '1: Kafka has acknowledged it; 0: it was about to be sent, positions are 0',
    to_partition     UInt32 COMMENT 'Partition that it was sent to',
    to_offset        UInt64 COMMENT 'Offset of the record that carries it',
    to_line          UInt32 COMMENT 'Its line within that record'
)
ENGINE = ${REPLICATED}ReplacingMergeTree
ORDER BY (topic, epoch, `partition`, `offset`, line, sent, id_hash, to_partition, to_offset, to_line)
SETTINGS ${DEDUP_WINDOW}
COMMENT 'Replays of refused lines; read it with FINAL';

CREATE VIEW IF NOT EXISTS v_rejects
(
    account         String COMMENT 'Tenant of the record',
    topic           String COMMENT 'Events topic',
    epoch           UInt32 COMMENT 'Epoch of the topic',
    `partition`     UInt32 COMMENT 'Partition',
    `offset`        UInt64 COMMENT 'Offset of the record',
    line            UInt32 COMMENT 'Line within the record, from 0',
    verdict         String COMMENT 'rejected: not a valid event; conflict: an id seen before with other content',
    status          String COMMENT 'open: not replayed; in_flight: replayed, not counted yet; accepted, duplicate, conflict, rejected_again: what became of the replay. Of a conflict: conflict, since the first stands',
    reason          String COMMENT 'Stable code of the first fault',
    field           String COMMENT 'Field of the first fault, or empty',
    message         String COMMENT 'All faults in words',
    transaction_id  String COMMENT 'Id of the line, where it could be read',
    event_name      String COMMENT 'Event name of the line, where it could be read',
    append_time     DateTime64(3, 'UTC') COMMENT 'When Kafka appended the record',
    bytes           String COMMENT 'The line as it came; any bytes',
    replays         UInt64 COMMENT 'How many times it was replayed',
    replayed_at     DateTime64(3, 'UTC') COMMENT 'When it was replayed last; 1970 when it was not',
    replayed_id     String COMMENT 'Id that the replay sent, or was about to send; empty when there was none',
    replayed_as     String COMMENT 'as it came, or what was mended; empty when there was no replay',
    reasons         Array(String) COMMENT 'Stable codes of all faults',
    fields          Array(String) COMMENT 'Fields of all faults',
    defaulted       UInt8 COMMENT '1: the door that sent the line had filled in its timestamp',
    to_partition    UInt32 COMMENT 'Partition of the replay that the status tells of',
    to_offset       UInt64 COMMENT 'Offset of that replay',
    to_line         UInt32 COMMENT 'Line of that replay',
    counted_epoch   UInt32 COMMENT 'Epoch of the event that counts under the id; see counted',
    counted_offset  UInt64 COMMENT 'Offset of the event that counts under the id, in to_partition; see counted',
    counted_line    UInt32 COMMENT 'Line of the event that counts under the id; see counted',
    counted         UInt8 COMMENT '1: an event counts under the id that was replayed'
)
AS
SELECT
    r.account AS account,
    r.topic AS topic,
    r.epoch AS epoch,
    r.`partition` AS `partition`,
    r.`offset` AS `offset`,
    r.line AS line,
    toString(r.verdict) AS verdict,
    multiIf(r.verdict = 'conflict', 'conflict', n.replays = 0, 'open', n.status) AS status,
    r.reason AS reason,
    r.field AS field,
    r.message AS message,
    r.transaction_id AS transaction_id,
    JSONExtractString(r.bytes, 'eventName') AS event_name,
    r.append_time AS append_time,
    r.bytes AS bytes,
    n.replays AS replays,
    n.replayed_at AS replayed_at,
    n.replayed_id AS replayed_id,
    n.replayed_as AS replayed_as,
    if(empty(r.`errors.code`), [r.reason], r.`errors.code`) AS reasons,
    if(empty(r.`errors.field`), [r.field], r.`errors.field`) AS fields,
    has(arrayZip(r.`headers.name`, r.`headers.value`), ('defaulted', 'timestamp')) AS defaulted,
    n.to_partition AS to_partition,
    n.to_offset AS to_offset,
    n.to_line AS to_line,
    n.counted_epoch AS counted_epoch,
    n.counted_offset AS counted_offset,
    n.counted_line AS counted_line,
    n.counted AS counted
FROM
(
    SELECT *
    FROM rejects
    FINAL
) AS r
LEFT JOIN
(
    -- of several replays the one that counts tells the status, else the last
    SELECT
        topic,
        epoch,
        `partition`,
        `offset`,
        line,
        sum(o.sent) AS replays,
        maxIf(o.replayed_at, o.sent = 1) AS replayed_at,
        argMax(o.status, o.rank) AS status,
        argMax(o.transaction_id, o.rank) AS replayed_id,
        argMaxIf(o.means, o.rank, o.sent = 1) AS replayed_as,
        argMax(o.to_partition, o.rank) AS to_partition,
        argMax(o.to_offset, o.rank) AS to_offset,
        argMax(o.to_line, o.rank) AS to_line,
        argMax(o.counted_epoch, o.rank) AS counted_epoch,
        argMax(o.counted_offset, o.rank) AS counted_offset,
        argMax(o.counted_line, o.rank) AS counted_line,
        argMax(o.counted, o.rank) AS counted
    FROM
    (
        SELECT
            p.topic AS topic,
            p.epoch AS epoch,
            p.`partition` AS `partition`,
            p.`offset` AS `offset`,
            p.line AS line,
            p.replayed_at AS replayed_at,
            p.transaction_id AS transaction_id,
            p.means AS means,
            p.sent AS sent,
            p.to_partition AS to_partition,
            p.to_offset AS to_offset,
            p.to_line AS to_line,
            i.epoch AS counted_epoch,
            i.`offset` AS counted_offset,
            i.line AS counted_line,
            i.counted AS counted,
            multiIf(
                p.sent = 0, 'open',
                i.counted = 1 AND i.`offset` = p.to_offset AND i.line = p.to_line, 'accepted',
                s.verdict = 1, 'duplicate',
                s.verdict = 2, 'conflict',
                a.again = 1, 'rejected_again',
                'in_flight'
            ) AS status,
            (p.sent, status = 'accepted', p.replayed_at, p.to_offset) AS rank
        FROM
        (
            SELECT *
            FROM reject_replays
            FINAL
        ) AS p
        LEFT JOIN
        (
            SELECT `partition`, id_hash, epoch, `offset`, line, toUInt8(1) AS counted
            FROM event_ids
            WHERE (`partition`, id_hash) IN (
                SELECT to_partition, id_hash
                FROM reject_replays
            )
        ) AS i ON i.`partition` = p.to_partition AND i.id_hash = p.id_hash
        LEFT JOIN
        (
            SELECT topic, `partition`, id_hash, `offset`, line, max(toUInt8(x.verdict)) AS verdict
            FROM repeats AS x
            WHERE id_hash IN (
                SELECT id_hash
                FROM reject_replays
            )
            GROUP BY topic, `partition`, id_hash, `offset`, line
        ) AS s ON s.topic = p.topic AND s.`partition` = p.to_partition AND s.id_hash = p.id_hash
            AND s.`offset` = p.to_offset AND s.line = p.to_line
        LEFT JOIN
        (
            SELECT topic, `partition`, id_hash, `offset`, line, toUInt8(1) AS again
            FROM rejects AS x
            WHERE x.verdict = 'rejected' AND id_hash IN (
                SELECT id_hash
                FROM reject_replays
            )
            GROUP BY topic, `partition`, id_hash, `offset`, line
        ) AS a ON a.topic = p.topic AND a.`partition` = p.to_partition AND a.id_hash = p.id_hash
            AND a.`offset` = p.to_offset AND a.line = p.to_line
    ) AS o
    GROUP BY topic, epoch, `partition`, `offset`, line
) AS n ON n.topic = r.topic AND n.epoch = r.epoch AND n.`partition` = r.`partition` AND n.`offset` = r.`offset`
    AND n.line = r.line
COMMENT 'Refused lines and conflicts, and what became of those that were replayed';
