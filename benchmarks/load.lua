-- What wrk sends, and the line of JSON that it ends with. Times are microseconds.

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"recipient": "ada@example.com", "subject": "Your order", "body": "It is on its way to you."}'

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "duration": %d, "p50": %d, "p99": %d, "max": %d, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
