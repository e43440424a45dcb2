-- The end of every script: one JSON line for `bench/load.py`.
--
-- A run's percentiles are wrk's own, which correct for coordinated omission: an answer that took n times the mean
-- interval of its connection counts as the n requests that would have waited. They can only be too high.

local summary = {}

function summary.percentiles(sorted)
   local function at(share) return sorted[math.max(1, math.ceil(share * #sorted))] or 0 end
   return string.format('{"p50_us":%d,"p99_us":%d,"count":%d}', at(0.50), at(0.99), #sorted)
end

-- `extra` is more JSON members, each preceded by a comma.
function summary.print(run, latency, extra)
   local errors = run.errors
   io.write(string.format(
      '\nRESULT {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"socket_errors":%d,"status_errors":%d%s}\n',
      run.requests, run.duration, latency:percentile(50), latency:percentile(99),
      errors.connect + errors.read + errors.write + errors.timeout, errors.status, extra or ""))
end

return summary
