curl -X POST "https://api.useautumn.com/v1/events" \
-H "Authorization: Bearer am_sk_1234567890" \
-H "Content-Type: application/json" \
-d '{
"customer_id": "user-123",
"feature_id": "ai-messages",
"value": 1
}'

curl -X POST "https://api.useautumn.com/v1/usage" \
-H "Authorization: Bearer am_sk_1234567890" \
-H "Content-Type: application/json" \
-d '{
"customer_id": "user-123",
"feature_id": "seats",
"value": 3
}'

curl -X POST "https://api.useautumn.com/v1/events" \
-H "Authorization: Bearer am_sk_1234567890" \
-H "Content-Type: application/json" \
-d '{
"customer_id": "user-123",
"value": 1,
"event_name": "blog_post_generation"
}'
