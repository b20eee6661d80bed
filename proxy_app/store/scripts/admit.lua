-- Let one more request of a key in, or say which limit refuses it. All or nothing.
-- KEYS[1] requests: theoretical arrival time, µs   KEYS[2] tokens a minute: the same
-- KEYS[3] zset under way: "request tokens" -> expiry, ms   KEYS[4] tokens of the day   KEYS[5] GPU ms of the day
-- ARGV[1] request   ARGV[2] time to live of what is under way, ms
-- ARGV[3] requests a minute   ARGV[4] burst   ARGV[5] under way   ARGV[6] tokens a minute   ARGV[7] tokens a day
-- ARGV[8] GPU ms a day   ARGV[9] tokens reserved   ("" where there is no such limit)
-- Returns {refused, retry after ms, requests left, tokens left}; refused: "" or the limit's name; left: -1 without one.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local now_ms = math.floor(now / 1000)
local reserve = tonumber(ARGV[9])
local DAY = 172800

local function whole(number) return string.format('%.0f', number) end

-- What crashed workers had reserved comes back.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now_ms)) do
  local tokens = tonumber(string.match(member, ' (%d+)$'))
  redis.call('ZREM', KEYS[3], member)
  -- It may have been yesterday's: never more than there is today.
  local back = math.min(tokens, tonumber(redis.call('GET', KEYS[4]) or '0'))
  if back > 0 then redis.call('DECRBY', KEYS[4], back) end
end

local function meter(key, limit, burst, cost)
  local interval = 60000000 / limit
  local tat = math.max(tonumber(redis.call('GET', key) or '0'), now)
  local after = tat + interval * cost
  local allowed_at = after - interval * (limit + burst)
  return after, allowed_at, math.floor((interval * (limit + burst) - (after - now)) / interval)
end

local requests_after, tokens_after
local requests_left, tokens_left = -1, -1
if ARGV[3] ~= '' then
  local limit = tonumber(ARGV[3])
  if limit == 0 then return {'rpm', 60000, 0, -1} end
  local allowed_at
  requests_after, allowed_at, requests_left = meter(KEYS[1], limit, tonumber(ARGV[4]), 1)
  if now + 1 < allowed_at then return {'rpm', math.ceil((allowed_at - now) / 1000), 0, -1} end
end
if ARGV[5] ~= '' and redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[5]) then
  return {'concurrent', 1000, requests_left, -1}
end
if ARGV[6] ~= '' then
  local limit = tonumber(ARGV[6])
  if limit == 0 then return {'tpm', 60000, requests_left, 0} end
  local allowed_at
  tokens_after, allowed_at, tokens_left = meter(KEYS[2], limit, 0, math.min(reserve, limit))
  if now + 1 < allowed_at then return {'tpm', math.ceil((allowed_at - now) / 1000), requests_left, 0} end
end
local to_midnight = (86400 - time[1] % 86400) * 1000
if ARGV[7] ~= '' then
  local used = tonumber(redis.call('GET', KEYS[4]) or '0')
  if used >= tonumber(ARGV[7]) then return {'tpd', to_midnight, requests_left, 0} end
  local left = tonumber(ARGV[7]) - used - reserve
  if tokens_left < 0 or left < tokens_left then tokens_left = math.max(0, left) end
end
if ARGV[8] ~= '' and tonumber(redis.call('GET', KEYS[5]) or '0') >= tonumber(ARGV[8]) then
  return {'gpu', to_midnight, requests_left, tokens_left}
end

if requests_after then
  redis.call('SET', KEYS[1], whole(requests_after), 'PX', math.ceil((requests_after - now) / 1000) + 1)
end
if tokens_after then
  redis.call('SET', KEYS[2], whole(tokens_after), 'PX', math.ceil((tokens_after - now) / 1000) + 1)
end
if ARGV[7] ~= '' then
  redis.call('INCRBY', KEYS[4], reserve)
  redis.call('EXPIRE', KEYS[4], DAY)
end
redis.call('ZADD', KEYS[3], now_ms + ARGV[2], ARGV[1] .. ' ' .. ARGV[9])
redis.call('PEXPIRE', KEYS[3], ARGV[2] * 2)
return {'', 0, requests_left, tokens_left}
