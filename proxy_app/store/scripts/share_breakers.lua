-- Tell other workers which breakers opened and closed, and learn of theirs.
-- KEYS[1] hash: who is skipped -> "openings:open until, ms"
-- ARGV[1] how long an entry is kept after its time, ms   ARGV[2] how many of the following triples opened
-- ARGV[3..] name, openings, open for ms (those that opened); then names (those that closed)
-- Returns a flat list of name, openings, milliseconds until it may be tried (negative: since).
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local opened = tonumber(ARGV[2])
for i = 0, opened - 1 do
  local until_ms = string.format('%.0f', now_ms + ARGV[5 + 3 * i])
  redis.call('HSET', KEYS[1], ARGV[3 + 3 * i], ARGV[4 + 3 * i] .. ':' .. until_ms)
end
-- All of it fades once nobody looks any more: the longest time is a minute.
if opened > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1] * 2 + 60000) end
for i = 3 + 3 * opened, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
local found = {}
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local openings, until_ms = string.match(entries[i + 1], '^(%d+):(%d+)$')
  if not until_ms or until_ms + ARGV[1] < now_ms then
    redis.call('HDEL', KEYS[1], entries[i])
  else
    found[#found + 1] = entries[i]
    found[#found + 1] = tonumber(openings)
    found[#found + 1] = math.floor(until_ms - now_ms)
  end
end
return found
