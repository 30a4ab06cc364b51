-- The filter behind the rate limit: it looks at the bodies of requests. How it does so is in edge.lua.
local edge = require("edge")
envoy_on_request = edge.on_request_behind_the_limit
envoy_on_response = nil                      -- edge.lua's own, which its own filter runs
