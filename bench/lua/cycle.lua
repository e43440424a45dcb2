-- Closed loop of enqueue, lease, ack: each answer makes the next request. wrk does not say to which connection a
-- response belongs, so there must be one connection a thread. Arguments are the messages in an enqueue, the characters
-- in a body, and the most messages in a lease. The URL ends in the queue's name.
--
-- `request` may be called twice for one step (wrk tries it once at the start), so only `response` moves on.

local ffi = require("ffi")
local summary = require("summary")

ffi.cdef [[
   typedef struct { long seconds; long nanoseconds; } raftq_timespec;
   int clock_gettime(int clock, raftq_timespec *time);
]]

local time = ffi.new("raftq_timespec")
local requests, step, sent, cycle = {}, "enqueue", nil, nil

-- Globals: `done` runs in another Lua state and fetches them from each thread.
acked, failed, failure = 0, 0, ""
enqueue_us, lease_us, ack_us, cycle_us = {}, {}, {}, {}

local function now_us()
   ffi.C.clock_gettime(1, time)
   return tonumber(time.seconds) * 1e6 + tonumber(time.nanoseconds) / 1e3
end

local function post(path, body)
   return wrk.format("POST", wrk.path .. path, nil, body)
end

function init(arguments)
   local count, characters = tonumber(arguments[1]), tonumber(arguments[2])
   local message = '{"body":"' .. string.rep("x", characters) .. '"}'
   wrk.headers["Content-Type"] = "application/json"
   requests.enqueue = post("/messages", '{"messages":[' .. string.rep(message, count, ",") .. "]}")
   requests.lease = post("/lease", '{"max":' .. arguments[3] .. "}")
end

-- The receipts of a lease, each with its quotes, found without decoding the messages around them.
local function receipts(body)
   local found, size, at = {}, 0, 1
   while true do
      local _, last = string.find(body, '"receipt":', at, true)
      if not last then return found, size end
      local first = string.find(body, '"', last + 1, true)
      at = string.find(body, '"', first + 1, true)
      size = size + 1
      found[size] = string.sub(body, first, at)
   end
end

local leased = 0

local function settled(body)
   local at, count = 1, 0
   while true do
      local _, last = string.find(body, '"done"', at, true)
      if not last then return count end
      at, count = last + 1, count + 1
   end
end

local advance = {}

function advance.enqueue() return "lease" end

function advance.lease(body)
   local found, size = receipts(body)
   leased = size
   if size == 0 then return "enqueue" end
   requests.ack = post("/ack", '{"receipts":[' .. table.concat(found, ",") .. "]}")
   return "ack"
end

function advance.ack(body)
   local count = settled(body)
   acked = acked + count
   if count < leased then failed, failure = failed + leased - count, "receipts answered other than done" end
   return "enqueue"
end

local recorded = {enqueue = enqueue_us, lease = lease_us, ack = ack_us}

function request()
   sent = now_us()
   if step == "enqueue" then cycle = sent end
   return requests[step]
end

function response(status, _, body)
   local now = now_us()
   if status ~= 200 and status ~= 201 then
      failed, failure = failed + 1, step .. " answered " .. status .. " " .. string.sub(body, 1, 200)
      step = "enqueue"
      return
   end
   table.insert(recorded[step], now - sent)
   if step == "ack" then table.insert(cycle_us, now - cycle) end
   step = advance[step](body)
end

local threads = {}

function setup(thread) table.insert(threads, thread) end

local function merged(name)
   local all = {}
   for _, thread in ipairs(threads) do
      for _, value in ipairs(thread:get(name)) do all[#all + 1] = value end
   end
   table.sort(all)
   return summary.percentiles(all)
end

function done(run, latency)
   local total, wrong, why = 0, 0, ""
   for _, thread in ipairs(threads) do
      total, wrong = total + thread:get("acked"), wrong + thread:get("failed")
      if thread:get("failed") > 0 then why = thread:get("failure") end
   end
   why = why:gsub('"', "'"):gsub("[%c\\]", " ")
   local steps = {}
   for _, name in ipairs({"enqueue", "lease", "ack", "cycle"}) do
      steps[#steps + 1] = string.format('"%s":%s', name, merged(name .. "_us"))
   end
   summary.print(run, latency, string.format(',"acked":%d,"failed":%d,"failure":"%s","steps":{%s}',
      total, wrong, why, table.concat(steps, ",")))
end
