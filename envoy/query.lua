-- Checks the parameters of a query. The transcoder would merge them into the message, even over the id in the path.
local check_json = require("json")

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

-- Returns the first parameter that breaks a rule, and that rule.
return function(query, shapes)
  local seen = {}
  for pair in query:gmatch("[^&]+") do
    local name, value = pair:match("^[^=]*"), pair:match("=(.*)$")
    local rule = broken_rule(shapes and shapes[name], value, seen[name])
    if rule then return name, rule end
    seen[name] = true
  end
end
