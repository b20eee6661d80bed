-- End a request that was let in: what it really used takes the place of what was reserved. A second call does nothing.
-- KEYS as in admit.lua
-- ARGV[1] request   ARGV[2] tokens reserved   ARGV[3] tokens used   ARGV[4] GPU ms used
-- ARGV[5] tokens a minute   ARGV[6] is there a limit of tokens a day ("1" or "")   ARGV[7] of GPU time ("1" or "")
-- Returns 1 where it was under way.
if redis.call('ZREM', KEYS[3], ARGV[1] .. ' ' .. ARGV[2]) == 0 then return 0 end
local difference = ARGV[3] - ARGV[2]
local reserved = math.min(tonumber(ARGV[2]), tonumber(ARGV[5]) or 0)
if reserved > 0 and tonumber(ARGV[3]) ~= reserved then
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local tat = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), now)
  tat = math.max(now, tat + (ARGV[3] - reserved) * 60000000 / ARGV[5])
  if tat > now then
    redis.call('SET', KEYS[2], string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000) + 1)
  else
    redis.call('DEL', KEYS[2])
  end
end
if ARGV[6] ~= '' and difference ~= 0 then
  redis.call('INCRBY', KEYS[4], difference)
  redis.call('EXPIRE', KEYS[4], 172800)
end
if ARGV[7] ~= '' and tonumber(ARGV[4]) > 0 then
  redis.call('INCRBY', KEYS[5], ARGV[4])
  redis.call('EXPIRE', KEYS[5], 172800)
end
return 1
