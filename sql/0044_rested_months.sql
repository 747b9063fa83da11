-- A month of facts that nothing was inserted into for a day is merged into one part: its bills, and what else is asked of
-- months that are over, then read each cell of a projection once instead of once in each part, and one part's files.
-- Months over 150 GB (max_bytes_to_merge_at_max_space_in_pool) are left as they are.
ALTER TABLE events MODIFY SETTING min_age_to_force_merge_seconds = 86400, min_age_to_force_merge_on_partition_only = 1, enable_max_bytes_limit_for_min_age_to_force_merge = 1;
