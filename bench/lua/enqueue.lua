-- POSTs of the same messages over and over: arguments are the messages in a request and the characters in a body.
-- One message is sent alone, several as a batch. Nothing runs in Lua while the load runs: the request is made once.

local summary = require("summary")

function init(arguments)
   local count, characters = tonumber(arguments[1]), tonumber(arguments[2])
   local message = '{"body":"' .. string.rep("x", characters) .. '"}'
   wrk.method = "POST"
   wrk.headers["Content-Type"] = "application/json"
   wrk.body = count == 1 and message or '{"messages":[' .. string.rep(message, count, ",") .. "]}"
end

function done(run, latency)
   summary.print(run, latency)
end
