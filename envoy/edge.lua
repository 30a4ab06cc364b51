-- The edge's script. It checks requests more strictly than Envoy does, and gives every error the form of the contract.
-- Its filter is the first. So it sees a request before all others, and a response after all others. It also sees the
-- responses that Envoy makes before any filter runs. Of a native gRPC call it reads only the headers and trailers.
local check_json = require("json")
local ROUTES = require("rest")               -- generated from protos/
local ERRORS = require("errors")             -- generated from server/errors.py
local NAMESPACE = "ordernumbers.edge"        -- of our dynamic metadata, which later filters and the access log read
local HEADERS_BYTES_MAX, HEADERS_MAX = 16384, 100

-- Envoy itself responds here, from its health checks of the servers.
ROUTES[#ROUTES + 1] = { path = "^/healthz$", allow = "GET, HEAD", GET = { query = {} }, HEAD = { query = {} } }

-- The access log has the name of a route, not the path that the caller sent. That path could contain a key. The name of
-- a fixed path is the path itself.
local ROUTE_BY_NAME, ROUTES_WITH_VARIABLES = {}, {}
for _, route in ipairs(ROUTES) do
  route.name = route.path:gsub("%[%^/%]%+", "*"):gsub("[%^$%%]", "")
  ROUTE_BY_NAME[route.name] = route
  if route.name:find("*", 1, true) then ROUTES_WITH_VARIABLES[#ROUTES_WITH_VARIABLES + 1] = route end
end

local function store(h, key, value)
  if value then h:streamInfo():dynamicMetadata():set(NAMESPACE, key, value) end
end

local function remove_headers(headers, is_unwanted)
  local names = {}                           -- headers cannot be removed while a loop reads them
  for name in pairs(headers) do
    if is_unwanted(name) then names[#names + 1] = name end
  end
  for _, name in ipairs(names) do headers:remove(name) end
end

-- ---------------------------------------------------------------- the headers of a request

-- A ULID: the time, then five bits of each random byte of Envoy's UUIDv4. (math.random would return the same numbers in
-- every worker thread.)
local BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
local function ulid(ms, uuid)
  local id = {}
  local function put(at, n) id[at] = BASE32:sub(n + 1, n + 1) end
  for at = 10, 1, -1 do put(at, ms % 32); ms = math.floor(ms / 32) end
  for byte in uuid:gmatch("%x%x") do put(#id + 1, tonumber(byte, 16) % 32) end
  return table.concat(id)
end

local function set_request_id(h, headers)
  local id = ulid(h:timestamp(), headers:get("x-request-id"))
  headers:replace("x-request-id", id)
  store(h, "id", id)
end

-- Returns all headers by name, and whether they are too large. It reads them in one loop, because each call into Envoy
-- costs more than all of our work on its result. If a name has several values, they are joined by commas.
local function read_headers(headers)
  local values, bytes, count = {}, 0, 0
  for name, value in pairs(headers) do
    bytes, count = bytes + #name + #value, count + 1
    values[name] = values[name] and values[name] .. "," .. value or value
  end
  return values, bytes > HEADERS_BYTES_MAX or count > HEADERS_MAX
end

-- Each key gets one spelling. Otherwise "bearer  x" would have a rate limit of its own beside that of "Bearer x".
local function normalize_key(headers, values)
  local scheme, blanks, key = (values["authorization"] or ""):match("^(%a+)( +)([^ ,]+)$")
  if not scheme or scheme:lower() ~= "bearer" then return end
  if scheme ~= "Bearer" or blanks ~= " " then headers:replace("authorization", "Bearer " .. key) end
end

-- Over REST, only these headers become gRPC metadata. A client's own grpc-timeout, grpc-encoding or malformed *-bin
-- would break the call.
local FORWARDED = { ["authorization"] = true, ["content-type"] = true, ["content-length"] = true,
  ["idempotency-key"] = true, ["transfer-encoding"] = true, ["user-agent"] = true, ["x-forwarded-for"] = true,
  ["x-forwarded-proto"] = true, ["x-request-id"] = true }
local function is_forwarded(name) return name:sub(1, 1) == ":" or FORWARDED[name] end
local function is_any() return true end

-- Control characters are not allowed in HTTP (RFC 9110, section 5.5). gRPC metadata must be printable ASCII. gRPC would
-- write a value that is not UTF-8 into its own log, and that value could be a key.
local function error_of_headers(values, are_too_large, is_metadata)
  for name, value in pairs(values) do
    if value:find(is_metadata(name) and "[^ -~]" or "[%z\1-\8\10-\31\127]") then return "400" end
  end
  if are_too_large then return "431" end
end

-- Envoy joins all Host headers of a request with the :authority of HTTP/2 (RFC 9112, section 3.2; RFC 9113, 8.3.1).
local function has_one_host(values) return not values[":authority"]:find(",", 1, true) end

local function split_target(target) return (target or ""):match("^([^?]*)%??(.*)$") end

local function find_route(path)
  local route = ROUTE_BY_NAME[path]
  if route then return route end
  for _, candidate in ipairs(ROUTES_WITH_VARIABLES) do
    if path:find(candidate.path) then return candidate end
  end
end

local function is_grpc(media_type)
  return media_type == "application/grpc" or media_type:find("^application/grpc%+") ~= nil
end

local function is_json(media_type)
  media_type = media_type:lower()
  return media_type:find("^application/json%s*$") or media_type:find("^application/json%s*;")
end

-- Returns the details of a refusal: a member or parameter with its rule. The name comes from the caller. So the
-- response repeats it only if it is short and plain.
local function details_of(name, rule)
  if name and #name <= 64 and name:find("^[%w_.%[%]-]+$") then
    return { details = ('{"%s":"%s"}'):format(name, rule) }
  end
end

-- Returns a text without its percent-encoding, or nil if that is malformed.
local function percent_decoded(text)
  if text:gsub("%%%x%x", ""):find("%", 1, true) then return nil end
  return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

-- Returns the rule that a parameter breaks. `value` is nil if the parameter has no "=".
local function broken_rule(shape, value, is_repeated)
  if not shape then return "unknown parameter" end
  if is_repeated and type(shape) == "string" then return "repeated parameter" end
  local text = value and percent_decoded(value)
  if not text or text:find("%z") then return "malformed value" end
  if type(shape) == "table" then shape = shape[1] end
  if shape == "string" then return end
  local ok, _, rule = check_json(text, shape)
  if not ok then return rule or "malformed value" end
end

local function error_of_query(query, shapes)
  local seen = {}
  for pair in query:gmatch("[^&]+") do
    local name, value = pair:match("^[^=]*"), pair:match("=(.*)$")
    local rule = broken_rule(shapes and shapes[name], value, seen[name])
    if rule then return "400", details_of(name, rule) end
    seen[name] = true
  end
end

-- The functions error_of_… return nil, or the HTTP status of an error and sometimes more about it.
local function error_of_rest(headers, values, route, path, query)
  if path:find("%%2[fF]") or path:find("%%5[cC]") then return "400" end   -- an escaped slash could hide a segment
  if not route then return "404" end
  local takes = route[values[":method"]]
  if not takes then return "405", { allow = route.allow } end
  if query ~= "" then
    local status, more = error_of_query(query, takes.query)
    if status then return status, more end
  end
  local media_type = values["content-type"] or ""
  if is_grpc(media_type) or takes.body and not is_json(media_type) then return "415" end
  for name in pairs(values) do
    if not is_forwarded(name) then headers:remove(name) end
  end
end

local function error_of_grpc(values)
  if values[":method"] ~= "POST" then return "405" end
  if values["te"] ~= "trailers" then return "400" end    -- without it, a proxy in between may drop the status
end

local function check_headers(h)
  local headers = h:headers()
  set_request_id(h, headers)
  local values, are_too_large = read_headers(headers)
  normalize_key(headers, values)
  local path, query = split_target(values[":path"])
  local route = find_route(path)
  local grpc = not route and is_grpc(values["content-type"] or "")
  local rest = not grpc or h:streamInfo():protocol() ~= "HTTP/2"
  store(h, "path", route and route.name or grpc and path:match("^/[%w.]+/%a+$"))
  store(h, "grpc", grpc)
  store(h, "rest", rest)
  store(h, "head", values[":method"] == "HEAD")
  local status = error_of_headers(values, are_too_large, grpc and is_any or is_forwarded)
  if status then return status end
  if not has_one_host(values) then return "400" end
  if grpc and rest then return "426" end     -- its status would be in trailers, which Envoy drops on HTTP/1.1
  if grpc then return error_of_grpc(values) end
  return error_of_rest(headers, values, route, path, query)
end

-- ---------------------------------------------------------------- the body of a request

local function error_of_trailers(h)
  local trailers = h:trailers()
  if not trailers then return end
  local values, are_too_large = read_headers(trailers)
  for name in pairs(values) do trailers:remove(name) end      -- the servers do not use trailers
  return error_of_headers(values, are_too_large, is_any)
end

-- body() waits for the whole message. So no server waits for the rest of one, and none starts a call that is cut off.
local function error_of_grpc_body(h)
  local is_ours = h:headers():get(":path"):find("^/ordernumbers%.v1%.")
  if is_ours and h:body() then return error_of_trailers(h) end
end

-- The transcoder would read such a body, and its members would replace the id in the path.
local function error_of_unwanted_body(h)
  local body = h:body()
  if body and body:length() > 0 then return "400" end
  return error_of_trailers(h)
end

local function error_of_rest_body(h, route)
  local takes = route[h:headers():get(":method")]
  if not takes.body then return error_of_unwanted_body(h) end
  local body = h:body(true)                  -- Envoy responds 413 to a body above the listener's buffer limit
  local ok, name, rule = check_json(body:getBytes(0, body:length()), takes.body)
  if not ok then return "400", details_of(name, rule) end
  return error_of_trailers(h)
end

local function check_body(h)
  local meta = h:streamInfo():dynamicMetadata():get(NAMESPACE)
  if not meta then return end
  if meta.rest then return error_of_rest_body(h, ROUTE_BY_NAME[meta.path]) end
  return error_of_grpc_body(h)
end

local function respond_if_refused(h, check)
  local ok, status, more = pcall(check, h)   -- after an error in a script Envoy would forward the request
  if not ok then
    h:logErr(status)
    status, more = "500", nil
  end
  if not status then return end
  more = more or {}
  store(h, "status", status)                 -- Envoy changes the status to 200 if the request's content-type is gRPC's
  store(h, "details", more.details)
  h:respond({ [":status"] = status, allow = more.allow }, "")
end

function envoy_on_request(h) respond_if_refused(h, check_headers) end

-- ---------------------------------------------------------------- the response

-- The transcoder's details end with our ErrorResponse.
local OURS = '{"@type":"type.googleapis.com/ordernumbers.v1.ErrorResponse",'

-- Returns the body for an error without an ErrorResponse. Envoy made the error, or a server failed to respond properly.
local function error_body(status, meta)
  local error = ERRORS[status]
  local details = meta.details and ',"details":' .. meta.details or ""
  return ('{"success":false,"error":{"code":"%s","message":"%s","request_id":"%s"%s}}')
    :format(error.code, error.message, meta.id, details)
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

-- Envoy's response_headers_to_remove cannot do this: it would remove grpc-status before the transcoder reads it.
local function is_internal(name) return name == "http-status" or name:find("^grpc%-") or name:find("^x%-envoy%-") end
local function is_internal_to_grpc(name) return name == "http-status" or name:find("^x%-envoy%-") end
local function remove_if_present(headers, is_unwanted)
  if headers then remove_headers(headers, is_unwanted) end
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

local function finish_error(h, meta)
  local buffer = h:body(true)
  local headers = h:headers()                -- body() invalidates the headers that were read before it
  local status = meta.status or headers:get(":status")
  local text = buffer:getBytes(0, buffer:length())
  local ours = error_response_in(text)
  if ours then
    status = status_from_server(h, headers) or status
  elseif may_have_started(status, text) then
    status = "504"
  elseif not ERRORS[status] then
    status = meta.early and "400" or "500"   -- what Envoy refuses before any filter runs is not valid HTTP
  end
  if not meta.head then buffer:setBytes(ours or error_body(status, meta)) end  -- Envoy would send it to HEAD as well
  headers:replace(":status", status)
  headers:replace("content-type", "application/json")
  if status == "401" then headers:replace("www-authenticate", "Bearer") end
  local error = ERRORS[status]
  if error and error.retry_after and not headers:get("retry-after") then
    headers:replace("retry-after", error.retry_after)
  end
  remove_if_present(headers, is_internal)
  if meta.grpc then set_grpc_status(headers, error) end
end

-- Sets the gRPC status of a call to which no server responded. Envoy responds UNIMPLEMENTED to an unknown path, as a
-- server does.
local function finish_grpc_error(headers)
  local status = headers:get(LOCAL_STATUS)
  if may_have_started(status, headers:get("grpc-message") or "") then status = "504" end
  if status and status ~= "404" then set_grpc_status(headers, ERRORS[status] or ERRORS["500"]) end
end

-- Returns the metadata of a response that was made before envoy_on_request ran. Envoy and envoy.yaml set these headers.
local function meta_of_early_response(headers)
  local rest = not headers:get("grpc-status")
  local head = headers:get("x-envoy-local-method") == "HEAD"
  return { early = true, id = headers:get("x-request-id"), rest = rest, head = head }
end

local function finish_response(h)
  local headers = h:headers()
  local meta = h:streamInfo():dynamicMetadata():get(NAMESPACE) or meta_of_early_response(headers)
  headers:replace("x-request-id", meta.id)
  if not meta.rest then
    finish_grpc_error(headers)
    remove_if_present(headers, is_internal_to_grpc)
    remove_if_present(h:trailers(), is_internal_to_grpc)
    return
  end
  if not meta.status and headers:get(":status") == "200" then
    remove_if_present(headers, is_internal)  -- without body(), because a long success must not reach a buffer limit
  else
    finish_error(h, meta)
  end
  remove_if_present(h:trailers(), is_any)    -- they are gRPC's
end

function envoy_on_response(h) finish_response(h) end

return { check_body = function(h) respond_if_refused(h, check_body) end }
