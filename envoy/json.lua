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

-- Bytes are compared where possible: LuaJIT's interpreter reads one without a call into C.
local QUOTE, COMMA, COLON, OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT = ('",:[]{}'):byte(1, -1)
local TAB, NEWLINE, RETURN, SPACE, LETTER_N = ("\t\n\r n"):byte(1, -1)
local FIRST_BYTE = { string = QUOTE, list = OPEN_LIST, object = OPEN_OBJECT }

local function kind(shape) return type(shape) == "string" and shape or shape[1] and "list" or "object" end

-- Returns the position of the first byte that is not blank, from i on, and the byte.
local function skip_blanks(s, i)
  local byte = s:byte(i)
  while byte == SPACE or byte == NEWLINE or byte == RETURN or byte == TAB do
    i = i + 1
    byte = s:byte(i)
  end
  return i, byte
end

-- All functions below read what begins at i. They return the position after it, or nil if it is not there.

-- Reads a value. After nil it also returns the path of the value at fault and the rule it breaks. Without these two the
-- syntax is wrong.
local function read(s, i, shape)
  local wanted = kind(shape)
  if s:byte(i) ~= FIRST_BYTE[wanted] then
    local found = KIND_OF[s:match("^%a+", i) or s:sub(i, i)]
    if found and found ~= wanted and found ~= BASE_KIND[wanted] then return nil, "", "must be " .. A[wanted] end
  end
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
    if s:byte(i) == QUOTE then return i + 1 end
    i = s:match('^\\["\\/bfnrt]()', i) or s:match("^\\u%x%x%x%x()", i)
  end
end

function READ.list(s, i, shape)
  if s:byte(i) ~= OPEN_LIST then return nil end
  local index, byte = 0, nil
  i, byte = skip_blanks(s, i + 1)
  if byte == CLOSE_LIST then return i + 1 end
  while true do
    local after, path, rule = read(s, i, shape[1])
    if not after then return nil, path and ("[%d]%s"):format(index, path), rule end
    i, byte = skip_blanks(s, after)
    if byte == CLOSE_LIST then return i + 1 end
    if byte ~= COMMA then return nil end
    i, index = skip_blanks(s, i + 1), index + 1
  end
end

-- Returns a member's name without its escapes of the form \u00XX.
local function unescaped(name)
  return (name:gsub("\\u00(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

-- Reads a member's name, the colon and the blanks after it. Returns the name first.
local function read_name(s, i)
  local after = READ.string(s, i)
  if not after then return nil end
  local colon, byte = skip_blanks(s, after)
  if byte ~= COLON then return nil end
  return s:sub(i + 1, after - 2), (skip_blanks(s, colon + 1))
end

local function read_value_or_null(s, i, shape)
  local after = s:byte(i) == LETTER_N and s:match("^null()", i)
  if after then return after end
  return read(s, i, shape)
end

-- Reads a member and adds its name to `seen`.
local function read_member(s, i, shape, seen)
  local name, value = read_name(s, i)
  if not name then return nil end
  if not shape[name] then name = unescaped(name) end
  if not shape[name] then return nil, "." .. name, "unknown member" end
  if seen[name] then return nil, "." .. name, "repeated member" end
  seen[name] = true
  local after, path, rule = read_value_or_null(s, value, shape[name])
  return after, path and "." .. name .. path, rule
end

function READ.object(s, i, shape)
  if s:byte(i) ~= OPEN_OBJECT then return nil end
  local seen, byte = {}, nil
  i, byte = skip_blanks(s, i + 1)
  if byte == CLOSE_OBJECT then return i + 1 end
  while true do
    local after, path, rule = read_member(s, i, shape, seen)
    if not after then return nil, path, rule end
    i, byte = skip_blanks(s, after)
    if byte == CLOSE_OBJECT then return i + 1 end
    if byte ~= COMMA then return nil end
    i = skip_blanks(s, i + 1)
  end
end

-- Whether a text is JSON of this shape. If not, and if they are known: the member at fault ("numbers[1]") and its rule.
return function(s, shape)
  local after, path, rule = read(s, skip_blanks(s, 1), shape)
  if after and type(shape) == "table" then after = skip_blanks(s, after) end     -- a body, not a parameter of a query
  return after == #s + 1, path and path:match("^%.(.+)$"), rule
end
