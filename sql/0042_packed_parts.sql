-- For blocks of few events. A part of each block goes to every table: it lies in one file instead of a dozen until it
-- has grown to 16 MiB, since making and deleting files was half of such a block's cost, and facts have a file a column only
-- once they are merged; parts are merged once some sixteen of a size are there, instead of whenever the server is idle.
ALTER TABLE events MODIFY SETTING min_bytes_for_full_part_storage = 16777216, min_bytes_for_wide_part = 67108864, merge_selector_base = 16;
ALTER TABLE event_ids MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE sets MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE usage_client_day MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE usage_15m MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE usage_dimension_15m MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE usage_uniques_client_day MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE usage_client_edge_15m MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE events_client_day MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE events_15m MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE events_dimension_15m MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE blocks MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE progress MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
ALTER TABLE repeats MODIFY SETTING min_bytes_for_full_part_storage = 16777216, merge_selector_base = 16;
