-- Requests of wrk: one event of about 250 bytes each, or with BENCH_LIST > 1 that many as NDJSON. Every id is new.
-- At the end one line of JSON: answers, refusals, seconds, p50 and p99 in milliseconds.
local many = tonumber(os.getenv("BENCH_LIST"))
local prefix = os.getenv("BENCH_IDS")
local number = 0

local function event(customer, time, id, data, name)
   number = number + 1
   return string.format(
      '{"%s":"customer-%d","%s":"%s","%s":"%s-%012d","%s":"generation","value":%d,"%s":{"region":"eu-central-1",' ..
      '"model":"large-2026","status":"ok","stream":true,"tokens":%d}}',
      customer, number % 50, time, "2026-11-05T06:36:42.541Z", id, prefix, number, name, number % 9 + 1, data, number)
end

wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_KEY")
wrk.headers["Content-Type"] = many > 1 and "application/x-ndjson" or "application/json"

function request()
   if many == 1 then
      return wrk.format(nil, nil, nil, event("customer_id", "timestamp", "idempotency_key", "properties", "event_name"))
   end
   local lines = {}
   for i = 1, many do
      lines[i] = event("clientId", "timestamp", "transactionId", "data", "eventName")
   end
   return wrk.format(nil, nil, nil, table.concat(lines, "\n"))
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format('\nresult {"answers":%d,"refused":%d,"seconds":%.6f,"p50_ms":%.3f,"p99_ms":%.3f}\n',
      summary.requests, errors.status + errors.connect + errors.read + errors.write + errors.timeout,
      summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
