-- In one line that a program can read: seconds, requests, p50 and p99 in microseconds, and each kind of failure.
done = function(summary, latency)
  local failed = summary.errors
  io.write(string.format("DONE %f %d %d %d %d %d %d %d %d\n", summary.duration / 1e6, summary.requests,
    latency:percentile(50), latency:percentile(99),
    failed.connect, failed.read, failed.write, failed.status, failed.timeout))
end
