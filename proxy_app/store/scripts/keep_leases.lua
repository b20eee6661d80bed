-- Add or prolong leases, and end others.
-- KEYS[1] one backend's zset: lease -> expiry, ms
-- ARGV[1] time to live, ms   ARGV[2] how many of the following are kept; the rest is ended   ARGV[3..] leases
-- Returns how many are in flight.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
for i = 3, #ARGV do
  if i - 2 <= tonumber(ARGV[2]) then
    redis.call('ZADD', KEYS[1], now_ms + ARGV[1], ARGV[i])
  else
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
if tonumber(ARGV[2]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return redis.call('ZCARD', KEYS[1])
