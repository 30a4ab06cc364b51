-- Checks that a text is strict JSON (RFC 8259) of a known shape. A shape is "string", "number", "int32", "uint32",
-- "boolean", a list { element }, or an object { member = shape, ... }. A member may also be null, which means that it is
-- absent.
--
-- The transcoder is lenient: it drops unknown members and nulls in lists, joins repeated members, flattens lists and
-- repairs the syntax. It does check the meaning of escapes and code points, so this script does not.
local READ = {}
local A = { string = "a string", number = "a number", int32 = "an integer", uint32 = "an integer",
  boolean = "a boolean", list = "a list", object = "an object" }

-- The kind of a value, by its first word or character.
local KIND_OF = { ['"'] = "string", ["-"] = "number", ["["] = "list", ["{"] = "object", ["true"] = "boolean",
  ["false"] = "boolean", null = "null" }
for digit = 0, 9 do KIND_OF[tostring(digit)] = "number" end
local BASE_KIND = { int32 = "number", uint32 = "number" }

local function kind(shape) return type(shape) == "string" and shape or shape[1] and "list" or "object" end

-- All functions below return the position after what they read, or nil if it is not there.

-- Reads a mark, with the blanks before and after it.
local function read_mark(s, i, mark) return s:match("^[ \t\r\n]*" .. mark .. "[ \t\r\n]*()", i) end

-- Reads a value. After nil it also returns the path of the value at fault and the rule it breaks. Without these two the
-- syntax is wrong.
local function read(s, i, shape)
  local wanted, found = kind(shape), KIND_OF[s:match("^%a+", i) or s:sub(i, i)]
  if found and found ~= wanted and found ~= BASE_KIND[wanted] then return nil, "", "must be " .. A[wanted] end
  return READ[wanted](s, i, shape)
end

function READ.boolean(s, i) return s:match("^true()", i) or s:match("^false()", i) end

function READ.number(s, i)
  i = s:match("^%-?0()", i) or s:match("^%-?[1-9]%d*()", i)
  i = i and (s:match("^%.%d+()", i) or i)
  return i and (s:match("^[eE][+-]?%d+()", i) or i)
end

-- In JSON an integer has many spellings: 100, 100.0 and 1e2 are the same number.
local function integer(min, max)
  return function(s, i)
    local after = READ.number(s, i)
    local value = after and tonumber(s:sub(i, after - 1))
    if value and not (value >= min and value <= max and value % 1 == 0) then
      return nil, "", ("must be an integer of %d..%d"):format(min, max)
    end
    return after
  end
end
READ.int32, READ.uint32 = integer(-2147483648, 2147483647), integer(0, 4294967295)

function READ.string(s, i)
  i = s:match('^"()', i)
  while i do
    i = s:match('^[^"\\%z\1-\31]*()', i)
    local after = s:match('^"()', i)
    if after then return after end
    i = s:match('^\\["\\/bfnrt]()', i) or s:match("^\\u%x%x%x%x()", i)
  end
end

function READ.list(s, i, shape)
  i = read_mark(s, i, "%[")
  local after, index = i and read_mark(s, i, "%]"), 0
  while i and not after do
    local value_end, path, rule = read(s, i, shape[1])
    if not value_end then return nil, path and ("[%d]%s"):format(index, path), rule end
    after, i, index = read_mark(s, value_end, "%]"), read_mark(s, value_end, ","), index + 1
  end
  return after
end

-- Reads a member's name and the colon. Returns the name first. The name may be written with escapes, as \u00XX.
local function read_name(s, i)
  local after = READ.string(s, i)
  local name = after and s:sub(i + 1, after - 2):gsub("\\u00(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end)
  return name, after and read_mark(s, after, ":")
end

function READ.object(s, i, shape)
  i = read_mark(s, i, "{")
  local after, seen = i and read_mark(s, i, "}"), {}
  while i and not after do
    local name, value = read_name(s, i)
    if not value then return nil end
    if not shape[name] then return nil, "." .. name, "unknown member" end
    if seen[name] then return nil, "." .. name, "repeated member" end
    seen[name] = true
    local value_end, path, rule = s:match("^null()", value)
    if not value_end then value_end, path, rule = read(s, value, shape[name]) end
    if not value_end then return nil, path and "." .. name .. path, rule end
    after, i = read_mark(s, value_end, "}"), read_mark(s, value_end, ",")
  end
  return after
end

-- Whether a text is JSON of this shape. If not, and if they are known: the member at fault ("numbers[1]") and its rule.
return function(s, shape)
  local after, path, rule = read(s, read_mark(s, 1, ""), shape)
  return after == #s + 1, path and path:match("^%.(.+)$"), rule
end
