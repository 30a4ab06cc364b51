-- The REST edge: makes of the transcoder's lenient JSON, and of every failure, what the contract says. It is the first
-- filter, so the first to see a request and the last to see its answer, also one that Envoy makes before any filter. Of
-- native gRPC it reads headers alone.
local is_json_of = require("json")
local ROUTES = require("rest")               -- generated from the protos: paths, methods, shapes of body and query
local ERRORS = require("errors")             -- generated from the table of errors: what the edge answers by itself
local NS = "ordernumbers.edge"               -- dynamic metadata: the request's id; for REST, details of a refusal
local HEADERS_BYTES_MAX, HEADERS_MAX = 16384, 100

-- Answered by Envoy itself, from what it knows of the servers.
ROUTES[#ROUTES + 1] = { path = "^/healthz$", allow = "GET, HEAD", GET = { query = {} }, HEAD = { query = {} } }

-- What the access log calls a route: never what a caller wrote, which could be a key.
local NAMED = {}
for _, route in ipairs(ROUTES) do
  route.name = route.path:gsub("%[%^/%]%+", "*"):gsub("[%^$%%]", "")
  NAMED[route.name] = route
end

local function remember(h, key, value)
  if value then h:streamInfo():dynamicMetadata():set(NS, key, value) end
end

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

-- All headers by name, in one walk: each call into Envoy costs more than all that is done with its answer. A name that
-- comes more than once has its values joined by commas.
local function read(headers)
  local said, bytes, count = {}, 0, 0
  for name, value in pairs(headers) do
    bytes, count = bytes + #name + #value, count + 1
    said[name] = said[name] and said[name] .. "," .. value or value
  end
  return said, bytes > HEADERS_BYTES_MAX or count > HEADERS_MAX
end

-- One spelling of one key: "bearer  x" must not have a rate limit of its own beside that of "Bearer x".
local function tidy_key(headers, said)
  local scheme, blanks, key = (said["authorization"] or ""):match("^(%a+)( +)([^ ,]+)$")
  if not scheme or scheme:lower() ~= "bearer" then return end
  if scheme ~= "Bearer" or blanks ~= " " then headers:replace("authorization", "Bearer " .. key) end
end

-- The headers that become gRPC metadata. A client's own grpc-timeout, grpc-encoding or bad *-bin would break the call.
local KEPT = { ["authorization"] = true, ["content-type"] = true, ["content-length"] = true, ["idempotency-key"] = true,
  ["transfer-encoding"] = true, ["user-agent"] = true, ["x-forwarded-for"] = true, ["x-forwarded-proto"] = true,
  ["x-request-id"] = true }
local function is_kept(name) return name:sub(1, 1) == ":" or KEPT[name] end
local function any() return true end

-- What is wrong with headers or trailers. Control characters have no place in HTTP (RFC 9110, 5.5). What becomes gRPC
-- metadata must be printable ASCII: gRPC's own log repeats what is not UTF-8, be it a key.
local function fault_of_headers(said, are_too_large, is_metadata)
  for name, value in pairs(said) do
    if value:find(is_metadata(name) and "[^ -~]" or "[%z\1-\8\10-\31\127]") then return "400" end
  end
  if are_too_large then return "431" end
end

-- Envoy joins the Host headers that a request has, and the :authority of HTTP/2 (RFC 9112, 3.2; RFC 9113, 8.3.1).
local function has_one_host(said) return not said[":authority"]:find(",", 1, true) end

local function split(target) return (target or ""):match("^([^?]*)%??(.*)$") end

local function route_of(path)
  for _, route in ipairs(ROUTES) do
    if path:find(route.path) then return route end
  end
end

local function is_grpc(content) return content == "application/grpc" or content:find("^application/grpc%+") ~= nil end

local function is_json(content)
  content = content:lower()
  return content:find("^application/json%s*$") or content:find("^application/json%s*;")
end

local function named(name, rule)             -- details of a refusal, if the name is fit to be repeated
  if name and #name <= 64 and name:find("^[%w_.%[%]-]+$") then
    return { details = ('{"%s":"%s"}'):format(name, rule) }
  end
end

local function fault_of_trailers(h)
  local trailers = h:trailers()
  if not trailers then return end
  local said, are_too_large = read(trailers)
  for name in pairs(said) do trailers:remove(name) end        -- they mean nothing to a server
  return fault_of_headers(said, are_too_large, any)
end

-- What is wrong with a REST request: an HTTP status and more about it; nil if nothing is.
local function fault_of_rest(headers, said, route, path, query)
  if path:find("%%2[fF]") or path:find("%%5[cC]") then return "400" end   -- no slash may hide
  if not route then return "404" end
  local takes = route[said[":method"]]
  if not takes then return "405", { allow = route.allow } end
  for pair in query:gmatch("[^&]+") do
    local name = pair:match("^[^=]*")
    if not (takes.query and takes.query[name]) then return "400", named(name, "unknown parameter") end
  end
  local content = said["content-type"] or ""
  if is_grpc(content) or takes.body and not is_json(content) then return "415" end
  for name in pairs(said) do
    if not is_kept(name) then headers:remove(name) end
  end
end

local function fault_of_grpc(said)
  if said[":method"] ~= "POST" then return "405" end
  if said["te"] ~= "trailers" then return "400" end    -- a proxy on the way may drop the status
end

local function check(h)
  local headers = h:headers()
  identify(h, headers)
  local said, are_too_large = read(headers)
  tidy_key(headers, said)
  local path, query = split(said[":path"])
  local route = route_of(path)
  local grpc = not route and is_grpc(said["content-type"] or "")
  local rest = not grpc or h:streamInfo():protocol() ~= "HTTP/2"
  remember(h, "path", route and route.name or grpc and path:match("^/[%w.]+/%a+$"))
  remember(h, "grpc", grpc)
  remember(h, "rest", rest)
  remember(h, "head", said[":method"] == "HEAD")
  local fault = fault_of_headers(said, are_too_large, grpc and any or is_kept) or not has_one_host(said) and "400"
  if fault then return fault end
  if grpc and rest then return "426" end     -- its status would be in trailers, which Envoy drops on HTTP/1.1
  if grpc then return fault_of_grpc(said) end
  return fault_of_rest(headers, said, route, path, query)
end

-- A gRPC message is sent on whole: no server waits for the rest of it, and none has begun what was cut off.
local function fault_of_grpc_body(h)
  local is_ours = h:headers():get(":path"):find("^/ordernumbers%.v1%.")
  if is_ours and h:body() then return fault_of_trailers(h) end
end

local function fault_of_rest_body(h, route)
  local takes = route[h:headers():get(":method")]
  if not takes.body then return end
  local body = h:body(true)                  -- more than the listener's buffer limit: Envoy answers 413
  local ok, name, rule = is_json_of(body:getBytes(0, body:length()), takes.body)
  if not ok then return "400", named(name, rule) end
  return fault_of_trailers(h)
end

-- Behind the rate limit, since it is most of the work.
local function check_body(h)
  local meta = h:streamInfo():dynamicMetadata():get(NS)
  if not meta then return end
  if meta.rest then return fault_of_rest_body(h, NAMED[meta.path]) end
  return fault_of_grpc_body(h)
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
  remember(h, "details", more.details)
  h:respond({ [":status"] = status, allow = more.allow }, "")
end

function envoy_on_request(h) answer_if(h, check) end

-- ----------------------------------------------------------------- the answer

local OURS = '{"@type":"type.googleapis.com/ordernumbers.v1.ErrorResponse",'   -- the last of the transcoder's details

-- An answer without our ErrorResponse: Envoy's own, or that of a server that broke. What is not listed is INTERNAL.
local function envelope(status, meta)
  local error = ERRORS[status]
  local details = meta.details and ',"details":' .. meta.details or ""
  return ('{"success":false,"error":{"code":"%s","message":"%s","request_id":"%s"%s}}')
    :format(error.code, error.message, meta.id, details)
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
local function scrub(headers, unwanted)
  if headers then remove(headers, unwanted) end
end

-- The server's word on the HTTP status, which no gRPC code could say of 402 or 422: with the headers of an answer that
-- is nothing but a refusal, otherwise behind it.
local function told_status(h, headers)
  local trailers = h:trailers()
  return headers:get("http-status") or trailers and trailers:get("http-status")
end

local LOCAL_STATUS = "x-envoy-local-status"  -- of an answer that Envoy made: its HTTP status, before gRPC's makes it 200

local function say_status(headers, error)
  headers:replace("grpc-status", error.grpc_status)
  headers:replace("grpc-message", error.message)
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
  elseif not ERRORS[status] then
    status = meta.early and "400" or "500"   -- what Envoy refuses before any filter is not proper HTTP
  end
  if not meta.head then buffer:setBytes(ours or envelope(status, meta)) end  -- Envoy would send it to HEAD as well
  headers:replace(":status", status)
  headers:replace("content-type", "application/json")
  if status == "401" then headers:replace("www-authenticate", "Bearer") end
  local error = ERRORS[status]
  if error and error.retry_after and not headers:get("retry-after") then
    headers:replace("retry-after", error.retry_after)
  end
  scrub(headers, internal)
  if meta.grpc then say_status(headers, error) end
end

-- The status of a call that no server has answered. Where the path is unknown Envoy says UNIMPLEMENTED, as a server does.
local function refuse_grpc(headers)
  local status = headers:get(LOCAL_STATUS)
  if status == "503" and is_unsettled(headers:get("grpc-message") or "") then status = "504" end
  if status and status ~= "404" then say_status(headers, ERRORS[status] or ERRORS["500"]) end
end

-- Of an answer made before envoy_on_request ran: what Envoy and envoy.yaml have put into its headers.
local function unmet(headers)
  local rest = not headers:get("grpc-status")
  local head = headers:get("x-envoy-local-method") == "HEAD"
  return { early = true, id = headers:get("x-request-id"), rest = rest, head = head }
end

local function answer(h)
  local headers = h:headers()
  local meta = h:streamInfo():dynamicMetadata():get(NS) or unmet(headers)
  headers:replace("x-request-id", meta.id)
  if not meta.rest then
    refuse_grpc(headers)
    scrub(headers, internal_to_grpc)
    scrub(h:trailers(), internal_to_grpc)
    return
  end
  if not meta.status and headers:get(":status") == "200" then
    scrub(headers, internal)                 -- without body(): a long success must never meet a buffer limit
  else
    refuse(h, meta)
  end
  scrub(h:trailers(), any)                   -- those are gRPC's
end

function envoy_on_response(h) answer(h) end

return { on_request_behind_the_limit = function(h) answer_if(h, check_body) end }
