-- Makes request ids: ULIDs, which are 10 digits of time and 16 random digits, in base 32.
local DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

local function base32(n, length)
  local digits = {}
  for at = length, 1, -1 do
    digits[at] = DIGITS:sub(n % 32 + 1, n % 32 + 1)
    n = math.floor(n / 32)
  end
  return table.concat(digits)
end

-- The first eight digits change about once a second.
local second, first_digits
local function time_digits(ms)
  local now = math.floor(ms / 1024)
  if now ~= second then second, first_digits = now, base32(now, 8) end
  local a, b = math.floor(ms / 32) % 32 + 1, ms % 32 + 1
  return first_digits .. DIGITS:sub(a, a) .. DIGITS:sub(b, b)
end

local ulid = {}

-- Returns the ULID for a time in milliseconds and a UUIDv4, from which it takes 16 random digits. Digits of base 16 are
-- digits of base 32 too. (math.random would return the same numbers in every worker thread.)
function ulid.make(ms, uuid) return time_digits(ms) .. (uuid:sub(1, 4) .. uuid:sub(-12)):upper() end

function ulid.is(text) return #text == 26 end

return ulid
