-- The script of the filter after the rate limit: it checks the bodies of requests. To check them is most of the edge's
-- work, so the rate limit comes first. The code is in edge.lua.
local edge = require("edge")
envoy_on_request = edge.check_body
envoy_on_response = nil                      -- edge.lua has set it, but its own filter runs it
