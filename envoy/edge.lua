-- The REST edge: makes of the transcoder's lenient JSON, and of every failure, what the contract says. It is the first
-- filter, so the first to see a request and the last to see its answer. Of native gRPC it touches headers alone.
local is_json_of = require("json")
local ROUTES = require("rest")               -- generated from the protos: paths, methods, shapes of body and query
local NS = "ordernumbers.edge"               -- dynamic metadata: the request's id; for REST, details of a refusal

-- Answered by Envoy itself, from what it knows of the servers.
ROUTES[#ROUTES + 1] = { path = "^/healthz$", allow = "GET, HEAD", GET = { query = {} }, HEAD = { query = {} } }

local function remember(h, key, value) h:streamInfo():dynamicMetadata():set(NS, key, value) end

local function remove(headers, unwanted)     -- in two steps: headers cannot change while they are walked
  local names = {}
  for name in pairs(headers) do
    if unwanted(name) then names[#names + 1] = name end
  end
  for _, name in ipairs(names) do headers:remove(name) end
end

-- ---------------------------------------------------------------- the request

-- A ULID from Envoy's own UUIDv4: the time, then five random bits of each of its bytes. (math.random would start
-- alike in every worker.)
local BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
local function ulid(ms, uuid)
  local id = {}
  local function put(at, n) id[at] = BASE32:sub(n + 1, n + 1) end
  for at = 10, 1, -1 do put(at, ms % 32); ms = math.floor(ms / 32) end
  for byte in uuid:gmatch("%x%x") do put(#id + 1, tonumber(byte, 16) % 32) end
  return table.concat(id)
end

local function identify(h, headers)
  local id = ulid(h:timestamp(), headers:get("x-request-id"))
  headers:replace("x-request-id", id)
  remember(h, "id", id)
end

-- One spelling of one key: "bearer  x" must not have a rate limit of its own beside that of "Bearer x".
local function tidy_key(headers)
  local scheme, key = (headers:get("authorization") or ""):match("^(%a+) +([^ ,]+)$")
  if scheme and scheme:lower() == "bearer" then headers:replace("authorization", "Bearer " .. key) end
end

-- The headers that become gRPC metadata. A client's own grpc-timeout, grpc-encoding or bad *-bin would break the call.
local KEPT = { ["authorization"] = true, ["content-type"] = true, ["content-length"] = true, ["idempotency-key"] = true,
  ["transfer-encoding"] = true, ["user-agent"] = true, ["x-forwarded-for"] = true, ["x-forwarded-proto"] = true,
  ["x-request-id"] = true }
local function unkept(name) return name:sub(1, 1) ~= ":" and not KEPT[name] end

local function split(target) return (target or ""):match("^([^?]*)%??(.*)$") end

local function route_of(path)
  for _, route in ipairs(ROUTES) do
    if path:find(route.path) then return route end
  end
end

local function is_grpc(content) return content == "application/grpc" or content:find("^application/grpc%+") end

local function is_json(content)
  content = content:lower()
  return content:find("^application/json%s*$") or content:find("^application/json%s*;")
end

local function named(name, rule)             -- details of a refusal, if the name is fit to be repeated
  if name and #name <= 64 and name:find("^[%w_.%[%]-]+$") then
    return { details = ('{"%s":"%s"}'):format(name, rule) }
  end
end

-- What is wrong with a REST request: an HTTP status and more about it; nil if nothing is.
local function fault(headers, route, query)
  if not route then return "404" end
  local takes = route[headers:get(":method")]
  if not takes then return "405", { allow = route.allow } end
  for pair in query:gmatch("[^&]+") do
    local name = pair:match("^[^=]*")
    if not (takes.query and takes.query[name]) then return "400", named(name, "unknown parameter") end
  end
  local content = headers:get("content-type") or ""
  if is_grpc(content) or takes.body and not is_json(content) then return "415" end
  remove(headers, unkept)
end

local function check(h)
  local headers = h:headers()
  identify(h, headers)
  tidy_key(headers)
  local path, query = split(headers:get(":path"))
  local route = route_of(path)
  if route or not is_grpc(headers:get("content-type") or "") then
    remember(h, "rest", true)
    remember(h, "head", headers:get(":method") == "HEAD")
    return fault(headers, route, query)
  end
end

-- Behind the rate limit, since it is most of the work.
local function check_body(h)
  local meta = h:streamInfo():dynamicMetadata():get(NS)
  if not (meta and meta.rest) then return end
  local headers = h:headers()
  local takes = route_of((split(headers:get(":path"))))[headers:get(":method")]
  if not takes.body then return end
  local body = h:body(true)                  -- more than the listener's buffer limit: Envoy answers 413
  local ok, name, rule = is_json_of(body:getBytes(0, body:length()), takes.body)
  if not ok then return "400", named(name, rule) end
end

local function answer_if(h, refuses)
  local ok, status, more = pcall(refuses, h) -- when a script fails Envoy lets the request through: here it must not
  if not ok then
    h:logErr(status)
    status, more = "500", nil
  end
  if not status then return end
  more = more or {}
  remember(h, "status", status)              -- should it claim to be gRPC, Envoy will answer it 200
  if more.details then remember(h, "details", more.details) end
  h:respond({ [":status"] = status, allow = more.allow }, "")
end

function envoy_on_request(h) answer_if(h, check) end

-- ----------------------------------------------------------------- the answer

local OURS = '{"@type":"type.googleapis.com/ordernumbers.v1.ErrorResponse",'   -- the last of the transcoder's details

-- Answers without our ErrorResponse: Envoy's own, or those of a server that broke. What is not listed is INTERNAL.
local OTHER = {
  ["400"] = { "INVALID_INPUT", "malformed request" },
  ["404"] = { "NOT_FOUND", "not found" },
  ["405"] = { "METHOD_NOT_ALLOWED", "method not allowed" },
  ["408"] = { "TIMEOUT", "request not received in time" },
  ["413"] = { "PAYLOAD_TOO_LARGE", "request body too large" },
  ["415"] = { "UNSUPPORTED_MEDIA_TYPE", "content-type must be application/json" },
  ["429"] = { "RATE_LIMITED", "too many requests" },
  ["503"] = { "UNAVAILABLE", "service unavailable" },
  ["504"] = { "TIMEOUT", "request timed out" },
}
local ALSO = {
  ["401"] = { "www-authenticate", "Bearer" },
  ["429"] = { "retry-after", "1" },
  ["503"] = { "retry-after", "1" },
}

local function envelope(status, meta)
  local code, message = unpack(OTHER[status] or { "INTERNAL", "internal error" })
  local details = meta.details and ',"details":' .. meta.details or ""
  return ('{"success":false,"error":{"code":"%s","message":"%s","request_id":"%s"%s}}')
    :format(code, message, meta.id, details)
end

local function unwrap(text)
  local _, at = text:find(OURS, 1, true)
  return at and "{" .. text:sub(at + 1, -3)
end

-- Why Envoy gave up a call to a server. Only of these is it certain that no server has begun it; after any other the
-- order may have been carried out, and 503, which clients and proxies send again by themselves, would not be true.
local UNBEGUN = { "connection failure", "connection timeout", "overflow", "refused stream" }
local function is_unsettled(text)
  local reason = text:match("reset reason: (.*)")
  if not reason then return false end
  for _, unbegun in ipairs(UNBEGUN) do
    if reason:find(unbegun, 1, true) then return false end
  end
  return true
end

-- Not by response_headers_to_remove: the router would take grpc-status away before the transcoder has read it.
local function internal(name) return name == "http-status" or name:find("^grpc%-") or name:find("^x%-envoy%-") end
local function internal_to_grpc(name) return name == "http-status" or name:find("^x%-envoy%-") end
local function any() return true end
local function scrub(headers, unwanted)
  if headers then remove(headers, unwanted) end
end

-- The server's word on the HTTP status, which no gRPC code could say of 402 or 422: with the headers of an answer that
-- is nothing but a refusal, otherwise behind it.
local function told_status(h, headers)
  local trailers = h:trailers()
  return headers:get("http-status") or trailers and trailers:get("http-status")
end

local function refuse(h, meta)
  local buffer = h:body(true)
  local headers = h:headers()                -- after body() only: handles taken before it are dead
  local status = meta.status or headers:get(":status")
  local text = buffer:getBytes(0, buffer:length())
  local ours = unwrap(text)
  if ours then
    status = told_status(h, headers) or status
  elseif status == "503" and is_unsettled(text) then
    status = "504"
  elseif not OTHER[status] then
    status = "500"
  end
  if not meta.head then buffer:setBytes(ours or envelope(status, meta)) end  -- Envoy would send it to HEAD as well
  headers:replace(":status", status)
  headers:replace("content-type", "application/json")
  local also = ALSO[status]
  if also and not headers:get(also[1]) then headers:replace(unpack(also)) end
  scrub(headers, internal)
end

function envoy_on_response(h)
  local meta = h:streamInfo():dynamicMetadata():get(NS)
  if not meta then return end                -- made before any filter ran: local_reply_config has answered
  h:headers():replace("x-request-id", meta.id)
  if not meta.rest then
    if h:headers():get("grpc-status") == "14" and is_unsettled(h:headers():get("grpc-message") or "") then
      h:headers():replace("grpc-status", "4")
      h:headers():replace("grpc-message", "request timed out")
    end
    scrub(h:headers(), internal_to_grpc)
    scrub(h:trailers(), internal_to_grpc)
    return
  end
  if not meta.status and h:headers():get(":status") == "200" then
    scrub(h:headers(), internal)             -- without body(): a long success must never meet a buffer limit
  else
    refuse(h, meta)
  end
  scrub(h:trailers(), any)                   -- those are gRPC's
end

return { on_request_behind_the_limit = function(h) answer_if(h, check_body) end }
