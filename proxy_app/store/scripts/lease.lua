-- Take a lease on the backend with the fewest in flight.
-- KEYS one zset per backend: lease -> expiry, ms
-- ARGV[1] the lease   ARGV[2] time to live, ms   ARGV[3] where to start looking (1..#KEYS): breaks ties in turn
-- Returns the index (1..#KEYS) of the backend.
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local best, fewest
for step = 0, #KEYS - 1 do
  local i = (ARGV[3] - 1 + step) % #KEYS + 1
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now_ms)
  local count = redis.call('ZCARD', KEYS[i])
  if not fewest or count < fewest then best, fewest = i, count end
end
redis.call('ZADD', KEYS[best], now_ms + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[best], ARGV[2])
return best
