-- Strict JSON (RFC 8259) of a known shape: "string", "number", "boolean", { element } or { member = shape, ... }; null
-- stands for an absent member. The transcoder would drop unknown members and nulls in lists, join repeated members,
-- flatten lists and mend the syntax. Escapes, code points and digits are left to it: what it cannot read it refuses.
local READ = {}
local A = { string = "a string", number = "a number", boolean = "a boolean", list = "a list", object = "an object" }

-- Which kind of value a word or a first character begins.
local KIND_OF = { ['"'] = "string", ["-"] = "number", ["["] = "list", ["{"] = "object", ["true"] = "boolean",
  ["false"] = "boolean", null = "null" }
for digit = 0, 9 do KIND_OF[tostring(digit)] = "number" end

local function kind(shape) return type(shape) == "string" and shape or shape[1] and "list" or "object" end

-- Past a mark and the blanks around it; nil where it is not.
local function past(s, i, mark) return s:match("^[ \t\r\n]*" .. mark .. "[ \t\r\n]*()", i) end

-- Past the value at i; or nil, and if more than the syntax is wrong: the place at fault and the rule it breaks.
local function read(s, i, shape)
  local wanted, found = kind(shape), KIND_OF[s:match("^%a+", i) or s:sub(i, i)]
  if found and found ~= wanted then return nil, "", "must be " .. A[wanted] end
  return READ[wanted](s, i, shape)
end

function READ.boolean(s, i) return s:match("^true()", i) or s:match("^false()", i) end

function READ.number(s, i)
  i = s:match("^%-?0()", i) or s:match("^%-?[1-9]%d*()", i)
  i = i and (s:match("^%.%d+()", i) or i)
  return i and (s:match("^[eE][+-]?%d+()", i) or i)
end

function READ.string(s, i)
  i = s:match('^"()', i)
  while i do
    i = s:match('^[^"\\%z\1-\31]*()', i)
    local behind = s:match('^"()', i)
    if behind then return behind end
    i = s:match('^\\["\\/bfnrt]()', i) or s:match("^\\u%x%x%x%x()", i)
  end
end

function READ.list(s, i, shape)
  i = past(s, i, "%[")
  local behind, at = i and past(s, i, "%]"), 0
  while i and not behind do
    local value, place, rule = read(s, i, shape[1])
    if not value then return nil, place and ("[%d]%s"):format(at, place), rule end
    behind, i, at = past(s, value, "%]"), past(s, value, ","), at + 1
  end
  return behind
end

-- A member's name, written plainly or with \u00XX, and the position of its value.
local function read_name(s, i)
  local behind = READ.string(s, i)
  local name = behind and s:sub(i + 1, behind - 2):gsub("\\u00(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end)
  return name, behind and past(s, behind, ":")
end

function READ.object(s, i, shape)
  i = past(s, i, "{")
  local behind, seen = i and past(s, i, "}"), {}
  while i and not behind do
    local name, at = read_name(s, i)
    if not at then return nil end
    if not shape[name] then return nil, "." .. name, "unknown member" end
    if seen[name] then return nil, "." .. name, "repeated member" end
    seen[name] = true
    local value, place, rule = s:match("^null()", at)
    if not value then value, place, rule = read(s, at, shape[name]) end
    if not value then return nil, place and "." .. name .. place, rule end
    behind, i = past(s, value, "}"), past(s, value, ",")
  end
  return behind
end

-- Whether a text is JSON of this shape, and if not, where known, the member at fault ("numbers[1]") and its rule.
return function(s, shape)
  local behind, place, rule = read(s, past(s, 1, ""), shape)
  return behind == #s + 1, place and place:match("^%.(.+)$"), rule
end
