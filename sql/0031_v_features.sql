-- The catalog's features for people: latest revision of each.
CREATE VIEW IF NOT EXISTS v_features
(
    account     String COMMENT 'Account',
    id          String COMMENT 'Feature',
    name        String COMMENT 'Name',
    type        String COMMENT 'BINARY or CONSUMABLE',
    aggregation String COMMENT 'How quantities become usage',
    event_names Array(String) COMMENT 'Event names that feed it',
    archived    UInt8 COMMENT '1: meters nothing any more',
    rev         UInt64 COMMENT 'Latest revision'
)
AS
SELECT
    f.account AS account,
    f.id AS id,
    argMax(f.name, f.rev) AS name,
    toString(argMax(f.type, f.rev)) AS type,
    toString(argMax(f.aggregation, f.rev)) AS aggregation,
    argMax(f.event_names, f.rev) AS event_names,
    argMax(f.archived, f.rev) AS archived,
    max(f.rev) AS rev
FROM features AS f
GROUP BY
    account,
    id
COMMENT 'Latest revision of each feature';
