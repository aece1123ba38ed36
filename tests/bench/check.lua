-- wrk: posts one body over and over, compares every answer with the expected one, and prints one line of JSON.
-- Arguments: file of the request's body, file of the answer's body, requests pipelined per connection.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

local function content(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

function init(args)
  checked, wrong = 0, 0
  expected = content(args[2])
  local one = wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, content(args[1]))
  pipelined = string.rep(one, tonumber(args[3]))
end

function request()
  return pipelined
end

function response(status, headers, body)
  checked = checked + 1
  if status ~= 200 or body ~= expected then
    wrong = wrong + 1
  end
end

function done(summary, latency, requests)
  local all, bad = 0, 0
  for _, thread in ipairs(threads) do
    all = all + thread:get("checked")
    bad = bad + thread:get("wrong")
  end
  local e = summary.errors
  print(string.format(
    'penstock-wrk {"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "checked": %d, "wrong": %d, "errors": %d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), all, bad,
    e.connect + e.read + e.write + e.status + e.timeout))
end
