-- What was lost and told, for people.
CREATE VIEW IF NOT EXISTS v_gaps
(
    topic       String COMMENT 'Events topic',
    epoch       UInt32 COMMENT 'Epoch',
    `partition` UInt32 COMMENT 'Partition',
    `start`     UInt64 COMMENT 'First offset that was given up',
    `end`       UInt64 COMMENT 'First offset after them',
    offsets     UInt64 COMMENT 'Records lost at most',
    lost_after  DateTime64(3, 'UTC') COMMENT 'Append time up to which the partition had been counted; 1970 when it never was',
    reason      String COMMENT 'Why',
    told_by     String COMMENT 'Who gave them up',
    told_at     DateTime64(3, 'UTC') COMMENT 'When'
)
AS
SELECT
    g.topic AS topic,
    g.epoch AS epoch,
    g.`partition` AS `partition`,
    g.`start` AS `start`,
    g.`end` AS `end`,
    g.`end` - g.`start` AS offsets,
    max(if(b.`end` <= g.`start`, b.append_time_max, toDateTime64(0, 3, 'UTC'))) AS lost_after,
    g.reason AS reason,
    g.told_by AS told_by,
    g.told_at AS told_at
FROM (SELECT * FROM gaps FINAL) AS g
LEFT JOIN (SELECT topic, epoch, `partition`, `end`, append_time_max FROM blocks FINAL WHERE month = 0) AS b
    ON g.topic = b.topic AND g.epoch = b.epoch AND g.`partition` = b.`partition`
GROUP BY
    topic,
    epoch,
    `partition`,
    `start`,
    `end`,
    reason,
    told_by,
    told_at
COMMENT 'Ranges of events that were deleted before they were counted and given up';
