-- Drop show documents.
-- KEYS[1] zset: document -> last use   KEYS[2] hash: document -> bytes, and "total"
-- ARGV the documents' hashes
-- Returns how many there were.
local dropped = 0
for _, document in ipairs(ARGV) do
  local size = tonumber(redis.call('HGET', KEYS[2], document) or '0')
  dropped = dropped + redis.call('DEL', document)
  redis.call('DEL', document .. ':body')
  redis.call('ZREM', KEYS[1], document)
  redis.call('HDEL', KEYS[2], document)
  redis.call('HINCRBY', KEYS[2], 'total', -size)
end
return dropped
