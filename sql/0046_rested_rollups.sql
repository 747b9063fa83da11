-- Rollups too are merged into few parts when they have rested: merges wait for sixteen parts of a size (0042), so that a
-- customer's months lay in ten parts and more, each of which an answer opens. A part is written again a day after the last
-- time at the earliest, so that a year's cells are written once a day at most, however busy it is.
ALTER TABLE usage_client_day MODIFY SETTING min_age_to_force_merge_seconds = 86400, enable_max_bytes_limit_for_min_age_to_force_merge = 1;
ALTER TABLE usage_15m MODIFY SETTING min_age_to_force_merge_seconds = 86400, enable_max_bytes_limit_for_min_age_to_force_merge = 1;
ALTER TABLE usage_dimension_15m MODIFY SETTING min_age_to_force_merge_seconds = 86400, enable_max_bytes_limit_for_min_age_to_force_merge = 1;
ALTER TABLE usage_uniques_client_day MODIFY SETTING min_age_to_force_merge_seconds = 86400, enable_max_bytes_limit_for_min_age_to_force_merge = 1;
ALTER TABLE usage_client_edge_15m MODIFY SETTING min_age_to_force_merge_seconds = 86400, enable_max_bytes_limit_for_min_age_to_force_merge = 1;
ALTER TABLE events_client_day MODIFY SETTING min_age_to_force_merge_seconds = 86400, enable_max_bytes_limit_for_min_age_to_force_merge = 1;
ALTER TABLE events_15m MODIFY SETTING min_age_to_force_merge_seconds = 86400, enable_max_bytes_limit_for_min_age_to_force_merge = 1;
ALTER TABLE events_dimension_15m MODIFY SETTING min_age_to_force_merge_seconds = 86400, enable_max_bytes_limit_for_min_age_to_force_merge = 1;
