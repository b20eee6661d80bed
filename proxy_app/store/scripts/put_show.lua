-- Store a show document; the least recently used ones make room.
-- KEYS[1] the document's hash   KEYS[2] its body, where that is big   KEYS[3] zset: document -> last use, ms
-- KEYS[4] hash: document -> bytes, and "total" -> their sum
-- ARGV[1] digest   ARGV[2] stored at, UTC seconds   ARGV[3] size, bytes   ARGV[4] body, or "" where it is big
-- ARGV[5] budget of all documents, bytes
-- Returns how many documents were dropped.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local old = tonumber(redis.call('HGET', KEYS[4], KEYS[1]) or '0')
redis.call('HSET', KEYS[1], 'd', ARGV[1], 't', ARGV[2], 's', ARGV[3])
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[1], 'b')
  redis.call('PERSIST', KEYS[2])
else
  redis.call('HSET', KEYS[1], 'b', ARGV[4])
  redis.call('DEL', KEYS[2])
end
redis.call('HSET', KEYS[4], KEYS[1], ARGV[3])
local total = redis.call('HINCRBY', KEYS[4], 'total', tonumber(ARGV[3]) - old)
redis.call('ZADD', KEYS[3], now_ms, KEYS[1])
local dropped = 0
while total > tonumber(ARGV[5]) do
  -- Two of the same millisecond are ordered by name: the new one may stand first, and it stays.
  local first = redis.call('ZRANGE', KEYS[3], 0, 1)
  local oldest = first[1] == KEYS[1] and first[2] or first[1]
  if not oldest or oldest == KEYS[1] then break end
  local size = tonumber(redis.call('HGET', KEYS[4], oldest) or '0')
  redis.call('DEL', oldest, oldest .. ':body')
  redis.call('ZREM', KEYS[3], oldest)
  redis.call('HDEL', KEYS[4], oldest)
  total = redis.call('HINCRBY', KEYS[4], 'total', -size)
  dropped = dropped + 1
end
return dropped
