-- The edge's script. It checks requests more strictly than Envoy does, and gives every error the form of the contract.
-- On a success it does nothing: Envoy's own filters set and remove the headers. Each call into Envoy is costly. So a
-- common order makes few of them, and needs no dynamic metadata.
jit.off()                                    -- compiled code is 15 µs slower between so many calls into Envoy
local check_json, broken_parameter, ulid = require("json"), require("query"), require("ulid")
local ROUTES = require("rest")               -- generated from protos/
local ERRORS = require("errors")             -- generated from server/errors.py
local NAMESPACE = "ordernumbers.edge"        -- of our dynamic metadata, which the access log reads too
local HEADERS_BYTES_MAX, HEADERS_MAX = 16384, 100

-- Envoy itself responds to a proper request for this path, from its health checks of the servers. No rate limit holds
-- here, so no body is read.
local HEALTH_CHECK = { query = {}, ignores_body = true }
ROUTES[#ROUTES + 1] = { path = "^/healthz$", allow = "GET, HEAD", GET = HEALTH_CHECK, HEAD = HEALTH_CHECK }

-- The access log has the name of a route, not the path that the caller sent. That path could contain a key. The name of
-- a fixed path is the path itself.
local ROUTE_BY_NAME, ROUTES_WITH_VARIABLES = {}, {}
for _, route in ipairs(ROUTES) do
  route.name = route.path:gsub("%[%^/%]%+", "*"):gsub("[%^$%%]", "")
  ROUTE_BY_NAME[route.name] = route
  if route.name:find("*", 1, true) then ROUTES_WITH_VARIABLES[#ROUTES_WITH_VARIABLES + 1] = route end
end

-- In envoy.yaml the metadata of its routes has this path. So the access log has it from there, which costs less.
local LOGGED_BY_ENVOY = "/v1/phone-numbers/orders"

-- Returns the route of a page with which Envoy itself responds. server/run/docs_page.py adds such routes to Envoy, if
-- they are not switched off. Other paths do not get as far as the calls into Envoy.
local function find_page(h, path)
  if path ~= "/openapi.json" and not path:find("^/docs") or h:streamInfo():routeName() ~= "docs" then return nil end
  return { name = path, allow = "GET, HEAD", GET = { query = {} }, HEAD = { query = {} } }
end

-- Returns the route, if there is one, then the path and the query.
local function find_route(h, target)
  local route = ROUTE_BY_NAME[target]
  if route then return route, target, "" end
  local path, query = target:match("^([^?]*)%??(.*)$")
  if ROUTE_BY_NAME[path] then return ROUTE_BY_NAME[path], path, query end
  for _, candidate in ipairs(ROUTES_WITH_VARIABLES) do
    if path:find(candidate.path) then return candidate, path, query end
  end
  return find_page(h, path), path, query
end

local function is_grpc(media_type)
  return media_type == "application/grpc" or media_type:find("^application/grpc%+") ~= nil
end

local function is_json(media_type)
  if media_type == "application/json" then return true end
  media_type = media_type:lower()
  return media_type:find("^application/json%s*$") or media_type:find("^application/json%s*;")
end

local function store(h, key, value)
  if value ~= nil then h:streamInfo():dynamicMetadata():set(NAMESPACE, key, value) end
end

local function stored(h) return h:streamInfo():dynamicMetadata():get(NAMESPACE) or {} end

-- ---------------------------------------------------------------- the headers of a request

-- What a value may not contain. Control characters are not allowed in HTTP (RFC 9110, section 5.5). gRPC metadata must
-- be printable ASCII: gRPC would write a value that is not UTF-8 into its own log, and that value could be a key. A
-- comma in :authority means several Host headers, which Envoy joins (RFC 9112, section 3.2; RFC 9113, section 8.3.1).
local CONTROL, NOT_PRINTABLE, NOT_ONE_HOST = "[%z\1-\8\10-\31\127]", "[^ -~]", "[^ -+--~]"

-- Over REST, only these headers become gRPC metadata. A client's own grpc-timeout, grpc-encoding or malformed *-bin
-- would break the call.
local FORWARDED = { [":authority"] = NOT_ONE_HOST }
for _, name in ipairs({ ":method", ":path", ":protocol", ":scheme", "authorization", "content-type", "content-length",
  "idempotency-key", "traceparent", "transfer-encoding", "user-agent", "x-forwarded-for", "x-forwarded-proto", "x-request-id",
  "x-envoy-external-address" }) do           -- Envoy adds this last one, and its routes remove it
  FORWARDED[name] = NOT_PRINTABLE
end
local FORWARDED_BY_GRPC = { [":authority"] = NOT_ONE_HOST }      -- and all others

-- Returns the HTTP status of an error, or nil. Then the names of the headers that `forbidden` has not: their values may
-- not contain `otherwise`. Then the traceparent, if there is one. One loop does it all, because each call into Envoy
-- costs more than our work on its result.
local function read_headers(headers, forbidden, otherwise)
  local bytes, count, other_names, is_improper, traceparent = 0, 0, {}, false, nil
  for name, value in pairs(headers) do
    bytes, count = bytes + #name + #value, count + 1
    if name == "traceparent" then traceparent = traceparent and "several" or value end
    if not forbidden[name] then other_names[#other_names + 1] = name end
    if value:find(forbidden[name] or otherwise) then is_improper = true end
  end
  if is_improper then return "400", other_names end
  return (bytes > HEADERS_BYTES_MAX or count > HEADERS_MAX) and "431" or nil, other_names, traceparent
end

local function remove_all(headers, names)
  for _, name in ipairs(names) do headers:remove(name) end
end

-- The place of a call in a trace: https://www.w3.org/TR/trace-context/#traceparent-header
local TRACEPARENT = "^(%x%x)%-(" .. ("%x"):rep(32) .. ")%-(" .. ("%x"):rep(16) .. ")%-%x%x(.*)$"

-- Returns the ids of the trace and of the caller's span, or nil if the traceparent is malformed.
local function ids_in(traceparent)
  local version, trace_id, span_id, more = traceparent:match(TRACEPARENT)
  if not version or version == "ff" or traceparent:find("%u") then return end
  if trace_id:find("^0+$") or span_id:find("^0+$") then return end
  if more ~= "" and (version == "00" or more:sub(1, 1) ~= "-") then return end
  return trace_id, span_id
end

-- Forwards a traceparent, but not its flag: a stranger must not decide that the servers trace a call. If Envoy itself
-- traces calls, it puts its own in place of this one.
local function set_traceparent(h, headers, traceparent)
  local trace_id, span_id = ids_in(traceparent)
  if not trace_id then return headers:remove("traceparent") end
  headers:replace("traceparent", ("00-%s-%s-00"):format(trace_id, span_id))
  store(h, "trace_id", trace_id)
end

-- The servers do not use trailers.
local function error_of_trailers(h)
  local trailers = h:trailers()
  if not trailers then return end
  local status, names = read_headers(trailers, {}, NOT_PRINTABLE)
  remove_all(trailers, names)
  return status
end

-- ---------------------------------------------------------------- a request

-- The functions error_of_… return nil, or the HTTP status of an error and sometimes more about it. They get the whole
-- message with body(), so that no server waits for the rest of one, and none starts a call that is cut off.

-- Returns the details of a refusal: a member or parameter with its rule. The name comes from the caller. So the
-- response repeats it only if it is short and plain.
local function details_of(name, rule)
  if name and #name <= 64 and name:find("^[%w_.%[%]-]+$") then
    return { details = ('{"%s":"%s"}'):format(name, rule) }
  end
end

-- An escaped slash could hide a segment of the path.
local function has_escaped_slash(path) return path:find("%%2[fF]") or path:find("%%5[cC]") end

local function error_of_target(route, path, query, method)
  if not route or route.name ~= path then
    if has_escaped_slash(path) then return "400" end
    if not route then return "404" end
  end
  local takes = route[method]
  if not takes then return "405", { allow = route.allow } end
  if query ~= "" then
    local name, rule = broken_parameter(query, takes.query)
    if rule then return "400", details_of(name, rule) end
  end
end

local function error_of_media_type(media_type, takes)
  if takes.body then return not is_json(media_type) and "415" or nil end
  return is_grpc(media_type) and "415" or nil
end

-- The transcoder would read a body where none belongs, and its members would replace the id in the path.
local function error_of_body(h, takes)
  local body = h:body(takes.body ~= nil)     -- Envoy responds 413 to a body above the listener's buffer limit
  if takes.body then
    local ok, name, rule = check_json(body:getBytes(0, body:length()), takes.body)
    if not ok then return "400", details_of(name, rule) end
  elseif body and body:length() > 0 then
    return "400"
  end
  return error_of_trailers(h)
end

local function error_of_rest(h, headers, route, path, query)
  local status, other_names, traceparent = read_headers(headers, FORWARDED, CONTROL)
  if status then return status end
  if traceparent then set_traceparent(h, headers, traceparent) end
  local more, method = nil, headers:get(":method")
  status, more = error_of_target(route, path, query, method)
  if status then return status, more end
  local takes = route[method]
  status = error_of_media_type(headers:get("content-type") or "", takes)
  if status then return status end
  remove_all(headers, other_names)
  if route.name ~= LOGGED_BY_ENVOY then store(h, "path", route.name) end
  if not takes.ignores_body then return error_of_body(h, takes) end
end

local function error_of_grpc(h, headers, path)
  local status, _, traceparent = read_headers(headers, FORWARDED_BY_GRPC, NOT_PRINTABLE)
  if status then return status end
  if traceparent then set_traceparent(h, headers, traceparent) end
  -- Over HTTP/1.1 its status would be in trailers, which Envoy drops.
  if h:streamInfo():protocol() ~= "HTTP/2" then return "426" end
  if headers:get(":method") ~= "POST" then return "405" end
  if headers:get("te") ~= "trailers" then return "400" end         -- without it, a proxy in between may drop the status
  store(h, "path", path:match("^/[%w.]+/%a+$"))
  if path:find("^/ordernumbers%.v1%.") and h:body() then return error_of_trailers(h) end
end

local function error_of_request(h)
  local headers = h:headers()
  headers:replace("x-request-id", ulid.make(h:timestamp(), headers:get("x-request-id")))
  local route, path, query = find_route(h, headers:get(":path") or "")
  if not route and is_grpc(headers:get("content-type") or "") then return error_of_grpc(h, headers, path) end
  return error_of_rest(h, headers, route, path, query)
end

-- Remembers for the response and the access log what the call is and why it is refused.
local function remember(h, status, details)
  local headers = h:headers()
  local route, path = find_route(h, headers:get(":path") or "")
  local grpc = not route and is_grpc(headers:get("content-type") or "")
  store(h, "path", route and route.name or grpc and path:match("^/[%w.]+/%a+$") or nil)
  store(h, "id", headers:get("x-request-id"))
  store(h, "grpc", grpc)
  store(h, "rest", not grpc or h:streamInfo():protocol() ~= "HTTP/2")
  store(h, "status", status)                 -- Envoy changes the status to 200 if the request's content-type is gRPC's
  store(h, "details", details)
end

function envoy_on_request(h)
  local ok, status, more = pcall(error_of_request, h)  -- after an error in a script Envoy would forward the request
  if not ok then
    h:logErr(status)
    status, more = "500", nil
  end
  if not status then return end
  more = more or {}
  remember(h, status, more.details)
  h:respond({ [":status"] = status, allow = more.allow }, "")
end

-- ---------------------------------------------------------------- an error response

-- The transcoder's details end with our ErrorResponse.
local OURS = '{"@type":"type.googleapis.com/ordernumbers.v1.ErrorResponse",'

-- Returns the body for an error without an ErrorResponse. Envoy made the error, or a server failed to respond properly.
local function error_body(status, call)
  local error = ERRORS[status]
  local details = call.details and ',"details":' .. call.details or ""
  return ('{"success":false,"error":{"code":"%s","message":"%s","request_id":"%s"%s}}')
    :format(error.code, error.message, call.id, details)
end

local function error_response_in(text)
  local _, at = text:find(OURS, 1, true)
  return at and "{" .. text:sub(at + 1, -3)
end

-- Whether Envoy gave up a call that a server may have started. Only after these reasons it is certain that none has.
-- After any other reason the order may have been carried out. Then 503 would be wrong, because clients and proxies
-- repeat a call by themselves after 503.
local NOT_STARTED = { "connection failure", "connection timeout", "overflow", "refused stream" }
local function may_have_started(status, text)
  if status ~= "503" and status ~= "502" then return false end
  local reason = text:match("reset reason: (.*)")
  if not reason then return false end
  for _, not_started in ipairs(NOT_STARTED) do
    if reason:find(not_started, 1, true) then return false end
  end
  return true
end

-- Returns the HTTP status that the server chose. No gRPC status stands for 402 or 422, so the server sends it in a
-- header of its own: in the headers if the response is only an error, else in the trailers.
local function status_from_server(h, headers)
  local trailers = h:trailers()
  return headers:get("http-status") or trailers and trailers:get("http-status")
end

-- envoy.yaml sets this header on Envoy's own responses: their HTTP status, before Envoy changes it to 200 for gRPC.
local LOCAL_STATUS = "x-envoy-local-status"

local function set_grpc_status(headers, error)
  headers:replace("grpc-status", error.grpc_status)
  headers:replace("grpc-message", error.message)
end

local function remove_grpc_headers(headers)
  local _, names = read_headers(headers, {}, CONTROL)
  for _, name in ipairs(names) do
    if name:find("^grpc%-") then headers:remove(name) end
  end
end

local function finish_rest_error(h, call)
  local buffer = h:body(true)
  local headers = h:headers()                -- body() invalidates the headers that were read before it
  local status, text = call.status, buffer:getBytes(0, buffer:length())
  local ours = error_response_in(text)
  if ours then
    status = status_from_server(h, headers) or status
  elseif may_have_started(status, text) then
    status = "504"
  elseif not ERRORS[status] then
    status = call.early and "400" or "500"   -- what Envoy refuses before any filter runs is not valid HTTP
  end
  -- Envoy would send a body to HEAD as well.
  if headers:get("x-envoy-local-method") ~= "HEAD" then buffer:setBytes(ours or error_body(status, call)) end
  headers:replace(":status", status)
  headers:replace("content-type", "application/json")
  if status == "401" then headers:replace("www-authenticate", "Bearer") end
  local error = ERRORS[status]
  if error and error.retry_after and not headers:get("retry-after") then
    headers:replace("retry-after", error.retry_after)
  end
  remove_grpc_headers(headers)
  if call.grpc then set_grpc_status(headers, error) end
end

-- Sets the gRPC status of a call to which no server responded. Envoy responds UNIMPLEMENTED to an unknown path, as a
-- server does.
local function finish_grpc_error(headers)
  local status = headers:get(LOCAL_STATUS)
  if may_have_started(status, headers:get("grpc-message") or "") then status = "504" end
  if status and status ~= "404" then set_grpc_status(headers, ERRORS[status] or ERRORS["500"]) end
end

-- The names of Envoy's routes for gRPC.
local GRPC_ROUTES = { grpc = true, health = true, reflection = true }

-- Returns what is known of a call that this script has not refused. Perhaps it has not even seen the request: Envoy
-- responds by itself to health checks, beyond a rate limit, and to bytes that are not proper HTTP. Without a route the
-- id could be the client's own.
local function call_of(h, headers)
  local request, envoy_route = h:requestHeaders(), h:streamInfo():routeName()
  local route = request and find_route(h, request:get(":path") or "")
  if route then store(h, "path", route.name) end
  local is_unknown = envoy_route == "" and not route
  local grpc = GRPC_ROUTES[envoy_route] or is_unknown and is_grpc(headers:get("content-type") or "")
  return { id = envoy_route ~= "" and request:get("x-request-id") or headers:get("x-request-id"), grpc = grpc,
    rest = not grpc or h:streamInfo():protocol() ~= "HTTP/2" }
end

function envoy_on_response(h)
  local headers = h:headers()
  -- A success ends here, without body(), because a long one must not reach a buffer limit.
  if headers:get(":status") == "200" and not headers:get(LOCAL_STATUS) then return end
  local call = stored(h)
  if not call.status then call = call_of(h, headers) end
  call.status = call.status or headers:get(LOCAL_STATUS) or headers:get(":status")
  call.early = not ulid.is(call.id)          -- this script has not seen the request
  if call.early then call.id = ulid.make(h:timestamp(), call.id) end
  headers:replace("x-request-id", call.id)
  if not call.rest then
    finish_grpc_error(headers)
  elseif call.status ~= "200" then           -- else it is Envoy's response to a health check
    finish_rest_error(h, call)
  end
end
